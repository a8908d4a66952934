package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Layers is what lies between a config set on a topic and its built-in default: broker configs, by Kafka's broker names. The
// maps are only read; any may be nil.
type Layers struct {
	Broker  map[string]string // set at run time on this broker
	Cluster map[string]string // set at run time for all brokers
	Static  map[string]string // from the broker's flags, environment or file
}

// Candidate is one value that a config has somewhere: the one in force, or one that it hides.
type Candidate struct {
	Name   string // the topic config's name, or a broker config's that stands behind it
	Value  string
	Source Source
}

// Entry is a config with its value in force.
type Entry struct {
	Def *Def
	// Value is the value in force; with Null there is none.
	Value  string
	Null   bool
	Source Source
	// Synonyms are all the values the config has, the one in force first (KIP-226); behind them those of the broker configs that would
	// count if they were taken away.
	Synonyms []Candidate
}

// resolve lists every value of a config, best first. set holds what is set on the resource itself (nil for a broker).
func (l Layers) resolve(d *Def, set map[string]string) []Candidate {
	var out []Candidate
	if v, ok := set[d.Name]; ok {
		src := SourceTopic
		if Groups.index[d.Name] == d {
			src = SourceGroup
		}
		out = append(out, Candidate{d.Name, v, src})
	}
	names := d.Synonyms
	if Brokers.index[d.Name] == d { // a broker config is its own synonym
		names = []Synonym{{Name: d.Name, Factor: 1}}
	}
	for _, s := range names {
		for _, layer := range []struct {
			m   map[string]string
			src Source
		}{{l.Broker, SourceBroker}, {l.Cluster, SourceClusterDefault}, {l.Static, SourceStatic}} {
			if v, ok := layer.m[s.Name]; ok {
				out = append(out, Candidate{s.Name, v, layer.src})
			}
		}
	}
	for _, s := range names {
		if b, ok := Brokers.Lookup(s.Name); ok && !b.NullDefault {
			return append(out, Candidate{s.Name, b.Default, SourceDefault})
		}
	}
	if len(names) == 0 && !d.NullDefault {
		out = append(out, Candidate{d.Name, d.Default, SourceDefault})
	}
	return out
}

// convert gives a candidate's value in the unit of d.
func (d *Def) convert(c Candidate) string {
	if c.Name == d.Name {
		return c.Value
	}
	for _, s := range d.Synonyms {
		if s.Name == c.Name && s.Factor > 1 {
			n, err := strconv.ParseInt(strings.TrimSpace(c.Value), 10, 64)
			if err != nil {
				return c.Value // not a number: the caller's parse says so
			}
			if n >= 0 {
				n *= s.Factor // below 2^31 times 3600000: no overflow
			}
			return strconv.FormatInt(n, 10)
		}
	}
	return c.Value
}

func (l Layers) entry(d *Def, set map[string]string) Entry {
	e := Entry{Def: d, Synonyms: l.resolve(d, set)}
	if len(e.Synonyms) == 0 {
		e.Null, e.Source = true, SourceDefault
		return e
	}
	e.Value, e.Source = d.convert(e.Synonyms[0]), e.Synonyms[0].Source
	for _, name := range d.fallbacks {
		e.Synonyms = append(e.Synonyms, l.resolve(Brokers.index[name], nil)...)
	}
	return e
}

// DescribeTopic lists the configs of a topic on which set is set, in order of name; only those in names unless names is nil.
// Names that do not exist are left out, as Kafka does.
func (l Layers) DescribeTopic(set map[string]string, names []string) []Entry {
	if set == nil {
		set = map[string]string{}
	}
	return l.describe(Topics, set, names)
}

// DescribeBroker lists a broker's configs, as DescribeTopic.
func (l Layers) DescribeBroker(names []string) []Entry { return l.describe(Brokers, nil, names) }

// DescribeClusterDefault lists only what has been set at run time for all brokers: Kafka's answer for the broker named "".
func (l Layers) DescribeClusterDefault(names []string) []Entry {
	var out []Entry
	for _, name := range slices.Sorted(maps.Keys(l.Cluster)) {
		d, ok := Brokers.Lookup(name)
		if !ok || !wanted(names, name) {
			continue
		}
		c := Candidate{name, l.Cluster[name], SourceClusterDefault}
		out = append(out, Entry{Def: d, Value: c.Value, Source: c.Source, Synonyms: []Candidate{c}})
	}
	return out
}

func (l Layers) describe(t *Table, set map[string]string, names []string) []Entry {
	var out []Entry
	for _, d := range t.Defs() {
		if d.Internal || !wanted(names, d.Name) {
			continue
		}
		out = append(out, l.entry(d, set))
	}
	return out
}

func wanted(names []string, name string) bool { return names == nil || slices.Contains(names, name) }

// BrokerValue returns the value in force of one broker config, without white space around it; "" if there is none.
func (l Layers) BrokerValue(name string) string {
	d, ok := Brokers.Lookup(name)
	if !ok {
		return ""
	}
	return strings.TrimSpace(l.entry(d, nil).Value)
}
