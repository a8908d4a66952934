// Package config holds every setting of Chronik: the topic and broker configs that Kafka clients see (tables of names, types,
// defaults and limits, and typed views of them), and the configuration of a node itself (flags, environment, file).
//
// Nothing here reads a clock, and only Load reads a file. Tables are built once and never change; everything is safe for
// concurrent reading.
package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Type is the type of a Kafka config, numbered as in DescribeConfigs (KIP-569).
type Type int8

// The types of Kafka configs.
const (
	Boolean Type = 1
	String  Type = 2
	Int     Type = 3 // 32 bits
	Short   Type = 4 // 16 bits
	Long    Type = 5 // 64 bits
	Double  Type = 6
	List    Type = 7 // comma-separated
)

// Source says where a config's value comes from, numbered as in DescribeConfigs (KIP-226). Lower numbers win.
type Source int8

// The sources of a config's value.
const (
	SourceTopic          Source = 1 // set on the topic
	SourceBroker         Source = 2 // set at run time on one broker
	SourceClusterDefault Source = 3 // set at run time for all brokers
	SourceStatic         Source = 4 // the broker's flags, environment or file
	SourceDefault        Source = 5 // built in
	SourceGroup          Source = 8 // set on the group
)

var (
	// ErrUnknownName matches the error for a config name that does not exist.
	ErrUnknownName = errors.New("unknown config name")
	// ErrInvalidValue matches the error for a value that a config does not take.
	ErrInvalidValue = errors.New("invalid config value")
	// ErrReadOnly matches the error for changing a broker config that is fixed while the broker runs.
	ErrReadOnly = errors.New("config is read-only")
	// ErrNullValue matches the error for an operation that needs a value and has none.
	ErrNullValue = errors.New("null config value")
)

// Error says what is wrong with one config. It matches one of this package's Err values.
type Error struct {
	Name   string
	Value  string
	Reason string // for people; names what to do where that is known
	kind   error
}

// Error implements error.
func (e *Error) Error() string { return e.Reason }

// Unwrap returns the kind: ErrUnknownName, ErrInvalidValue, ErrReadOnly or ErrNullValue.
func (e *Error) Unwrap() error { return e.kind }

// Synonym is a broker config whose value is a topic config's default.
type Synonym struct {
	Name string
	// Factor turns the broker config's unit into the topic config's (hours into milliseconds: 3600000).
	Factor int64
}

// Def describes one config: what clients are told, and what values it takes.
type Def struct {
	Name string
	Type Type
	// Default is the built-in value; with NullDefault there is none.
	Default     string
	NullDefault bool
	// Doc is a sentence or two for people.
	Doc string
	// Min and Max bound numbers, both inclusive.
	Min, Max float64
	// OneOf, when set, holds all values a String, or an element of a List, may have.
	OneOf []string
	// Repeats says that a List may hold an element twice, which then counts once.
	Repeats bool
	// Synonyms are the broker configs that give a topic config its default; earlier ones win.
	Synonyms []Synonym
	// fallbacks are the broker configs that count, one after the other, where this broker config is not set.
	fallbacks []string
	// Inert marks a name that Kafka knows, that is kept and shown, and that changes nothing here.
	Inert bool
	// ReadOnly marks a broker config that can't be changed while the broker runs.
	ReadOnly bool
	// Internal marks a config that is accepted but never listed.
	Internal bool
	// check refuses values beyond what the fields above say.
	check func(value string) error
}

// Valid describes the values taken, for a message or a manual; "" when anything of the type is.
func (d *Def) Valid() string {
	switch {
	case len(d.OneOf) > 0:
		return "one of " + strings.Join(d.OneOf, ", ")
	case d.Type == Boolean:
		return "true or false"
	case d.Type == Int || d.Type == Short || d.Type == Long || d.Type == Double:
		lo, hi := d.Min, d.Max
		tmin, tmax := limits(d.Type)
		switch {
		case lo > tmin && hi < tmax:
			return fmt.Sprintf("%s to %s", number(lo), number(hi))
		case lo > tmin:
			return "at least " + number(lo)
		case hi < tmax:
			return "at most " + number(hi)
		}
	}
	return ""
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

func limits(t Type) (lo, hi float64) {
	switch t {
	case Short:
		return math.MinInt16, math.MaxInt16
	case Int:
		return math.MinInt32, math.MaxInt32
	case Long:
		return math.MinInt64, math.MaxInt64
	default:
		return math.Inf(-1), math.Inf(1)
	}
}

// Validate checks value as Kafka parses it: white space around numbers, booleans and list elements does not matter, booleans
// are of any case. The error is an *Error that matches ErrInvalidValue.
func (d *Def) Validate(value string) error {
	if reason := d.refuse(value); reason != "" {
		return &Error{Name: d.Name, Value: value, kind: ErrInvalidValue,
			Reason: fmt.Sprintf("Invalid value %s for configuration %s: %s", clip(value), d.Name, reason)}
	}
	if d.check != nil {
		if err := d.check(value); err != nil {
			return &Error{Name: d.Name, Value: value, kind: ErrInvalidValue,
				Reason: fmt.Sprintf("Invalid value %s for configuration %s: %v", clip(value), d.Name, err)}
		}
	}
	return nil
}

// clip keeps a hostile value from coming back whole in an error.
func clip(v string) string {
	const most = 128
	if len(v) > most {
		return strconv.Quote(v[:most]) + "..."
	}
	return strconv.Quote(v)
}

func (d *Def) refuse(value string) string {
	switch d.Type {
	case Boolean:
		if _, ok := parseBool(value); !ok {
			return "must be true or false"
		}
	case Int, Short, Long, Double:
		return d.refuseNumber(value)
	case String:
		if len(d.OneOf) > 0 && !slices.Contains(d.OneOf, strings.TrimSpace(value)) {
			return "must be " + d.Valid()
		}
	case List:
		seen := make(map[string]bool)
		for _, v := range SplitList(value) {
			if v == "" {
				return "must not have empty elements"
			}
			if len(d.OneOf) > 0 && !slices.Contains(d.OneOf, v) {
				return "each element must be " + d.Valid()
			}
			if seen[v] && !d.Repeats {
				return fmt.Sprintf("holds %s twice", clip(v))
			}
			seen[v] = true
		}
	}
	return ""
}

func (d *Def) refuseNumber(value string) string {
	v := strings.TrimSpace(value)
	var f float64
	switch d.Type {
	case Double:
		var err error
		if f, err = strconv.ParseFloat(v, 64); err != nil || math.IsNaN(f) || strings.Contains(v, "_") {
			return "not a number"
		}
	default:
		bits := map[Type]int{Short: 16, Int: 32, Long: 64}[d.Type]
		n, err := strconv.ParseInt(v, 10, bits)
		if errors.Is(err, strconv.ErrRange) {
			return fmt.Sprintf("does not fit into %d bits", bits)
		}
		if err != nil {
			return "not a whole number"
		}
		f = float64(n)
	}
	if f < d.Min || f > d.Max {
		return "must be " + d.Valid()
	}
	return ""
}

// SplitList splits a List's value; an empty or blank one is the empty list.
func SplitList(value string) []string {
	if strings.TrimSpace(value) == "" {
		return nil
	}
	parts := strings.Split(value, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

func parseBool(value string) (v, ok bool) {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

// Table is a set of configs, by name.
type Table struct {
	kind  string // "topic", "broker"
	defs  []*Def // sorted by name
	index map[string]*Def
}

func newTable(kind string, defs []*Def) *Table {
	t := &Table{kind: kind, defs: defs, index: make(map[string]*Def, len(defs))}
	slices.SortFunc(t.defs, func(a, b *Def) int { return strings.Compare(a.Name, b.Name) })
	for _, d := range defs {
		if t.index[d.Name] != nil {
			panic("config: " + d.Name + " is defined twice")
		}
		if lo, hi := limits(d.Type); d.Min == 0 && d.Max == 0 {
			d.Min, d.Max = lo, hi
		}
		t.index[d.Name] = d
	}
	return t
}

// Defs returns the configs in order of name. The slice and what it points to are shared: read only.
func (t *Table) Defs() []*Def { return t.defs }

// Lookup finds a config; ok is false for an unknown name.
func (t *Table) Lookup(name string) (d *Def, ok bool) {
	d, ok = t.index[name]
	return d, ok
}

// Find is Lookup with an error that matches ErrUnknownName.
func (t *Table) Find(name string) (*Def, error) {
	if d, ok := t.index[name]; ok {
		return d, nil
	}
	return nil, &Error{Name: name, kind: ErrUnknownName, Reason: fmt.Sprintf("Unknown %s config name: %s", t.kind, clip(name))}
}

// Validate checks one name and value.
func (t *Table) Validate(name, value string) error {
	d, err := t.Find(name)
	if err != nil {
		return err
	}
	return d.Validate(value)
}

// ValidateChange is Validate for a change at run time: a broker config that is fixed while the broker runs is refused with
// ErrReadOnly.
func (t *Table) ValidateChange(name, value string) error {
	d, err := t.Find(name)
	if err != nil {
		return err
	}
	if err := d.fixed(name, value); err != nil {
		return err
	}
	return d.Validate(value)
}

// fixed refuses a change of what can't be changed while the broker runs.
func (d *Def) fixed(name, value string) error {
	switch {
	case d.Inert && d.ReadOnly:
		return &Error{Name: name, Value: value, kind: ErrReadOnly, Reason: fmt.Sprintf("Cannot update %s, which would change nothing. %s", name, d.Doc)}
	case d.ReadOnly:
		return &Error{Name: name, Value: value, kind: ErrReadOnly,
			Reason: fmt.Sprintf("Cannot update %s while the broker runs; change its flag, variable or file and restart it", name)}
	}
	return nil
}

// IsList reports whether name is a list, which values can be appended to; false for an unknown name.
func (t *Table) IsList(name string) bool {
	d, ok := t.index[name]
	return ok && d.Type == List
}

// Default returns the value of a config that nobody has set on the topic or at run time: what l says, else the built-in one.
// It is "" for an unknown name and for one without a value.
func (t *Table) Default(name string, l Layers) string {
	d, ok := t.index[name]
	if !ok {
		return ""
	}
	return l.entry(d, nil).Value
}
