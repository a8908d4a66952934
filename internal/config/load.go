package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// Flags registers the flags of a node, and --config for a file, on fs. Parsing never fails for a bad value: Validate reports
// it together with everything else that is wrong.
func Flags(fs *pflag.FlagSet, n *Node) {
	for _, s := range settings() {
		f := fs.VarPF(&flagValue{n: n, s: s}, s.name, "", s.usage+" ("+s.env()+")")
		if s.kind == "" {
			f.NoOptDefVal = "true"
		}
	}
	fs.String(configFlag, "", "a TOML file with these settings, under the flags' names ("+envPrefix+"CONFIG)")
}

const configFlag = "config"

type flagValue struct {
	n *Node
	s setting
}

func (f *flagValue) String() string {
	if f.n == nil {
		return ""
	}
	return f.s.get(f.n)
}

func (f *flagValue) Set(v string) error {
	f.n.apply(f.s, v, "")
	return nil
}

func (f *flagValue) Type() string {
	if f.s.kind == "" {
		return "bool" // so that pflag prints no value for it
	}
	return f.s.kind
}

// apply sets one setting; a value that can't be read becomes a problem, told with its origin.
func (n *Node) apply(s setting, value, origin string) {
	if n.given == nil {
		n.given = map[string]bool{}
	}
	n.given[s.name] = true
	if err := s.set(n, value); err != nil {
		text := err.Error()
		if origin != "" {
			text += " (from " + origin + ")"
		}
		n.problems = append(n.problems, Problem{Flag: s.name, Text: text})
	}
}

// asFlags are the broker configs whose values are those of their flags.
var asFlags = []string{"num.partitions", "default.replication.factor", "broker.rack", "socket.request.max.bytes", "max.connections", "max.connections.per.ip"}

// SetKafka sets a broker config by Kafka's name for a program, which has no flags: one that has a flag and takes what that takes is set
// likewise. Bad names and values are left to Validate.
func (n *Node) SetKafka(name, value string) {
	if slices.Contains(asFlags, name) {
		for _, s := range settings() {
			if s.name == ownFlags[name] {
				n.apply(s, value, name)
			}
		}
		return
	}
	if n.Kafka == nil {
		n.Kafka = map[string]string{}
	}
	n.Kafka[name] = value
}

// Load completes a node whose flags were parsed on fs: from the environment (environ as os.Environ gives it), then from the
// file that --config or CHRONIK_CONFIG names, read by readFile (os.ReadFile). A flag wins over a variable, a variable over the
// file. Bad values are left to Validate; the error is for a file that can't be read or understood, and names what is wrong in
// it. warnings are for the log: variables that begin with CHRONIK_ and mean nothing (no error: Kubernetes makes such for a
// service named chronik).
func Load(n *Node, fs *pflag.FlagSet, environ []string, readFile func(string) ([]byte, error)) (warnings []string, err error) {
	env := make(map[string]string)
	for _, e := range environ {
		if k, v, ok := strings.Cut(e, "="); ok && strings.HasPrefix(k, envPrefix) {
			env[k] = v
		}
	}
	path := env[envPrefix+"CONFIG"]
	if f := fs.Lookup(configFlag); f != nil && f.Changed {
		path = f.Value.String()
	}
	delete(env, envPrefix+"CONFIG")
	delete(env, envPrefix+"BROKERS") // the command line's
	file := map[string]string{}
	if path != "" {
		raw, err := readFile(path)
		if err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
		if file, err = parseFile(raw); err != nil {
			return nil, fmt.Errorf("--config %s: %w", path, err)
		}
	}
	for _, s := range settings() {
		n.complete(s, fs, env, file, path)
		delete(env, s.env())
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		warnings = append(warnings, "the environment variable "+name+" is no setting of Chronik and was ignored")
	}
	return warnings, nil
}

func (n *Node) complete(s setting, fs *pflag.FlagSet, env, file map[string]string, path string) {
	flag := fs.Lookup(s.name)
	given := flag != nil && flag.Changed
	fromEnv, inEnv := env[s.env()]
	fromFile, inFile := file[s.name]
	if s.name == kafkaSetting {
		// Names merge over the three, and the better source wins name by name.
		flags := maps.Clone(n.Kafka)
		if inFile {
			n.apply(s, fromFile, path)
		}
		if inEnv {
			n.apply(s, fromEnv, s.env())
		}
		maps.Copy(n.Kafka, flags)
		return
	}
	switch {
	case given:
	case inEnv:
		n.apply(s, fromEnv, s.env())
	case inFile:
		n.apply(s, fromFile, path)
	}
}

// parseFile reads the TOML into one string for each setting. Keys are the flags' names; [kafka-config] is a table of broker
// configs, by Kafka's names with or without quotes.
func parseFile(raw []byte) (map[string]string, error) {
	var fields []reflect.StructField
	list := settings()
	for i, s := range list {
		fields = append(fields, reflect.StructField{Name: fmt.Sprintf("F%d", i), Type: reflect.TypeFor[any](), Tag: reflect.StructTag(`toml:"` + s.name + `"`)})
	}
	doc := reflect.New(reflect.StructOf(fields))
	if err := toml.NewDecoder(strings.NewReader(string(raw))).DisallowUnknownFields().Decode(doc.Interface()); err != nil {
		return nil, tomlError(err)
	}
	out := make(map[string]string)
	for i, s := range list {
		v := doc.Elem().Field(i).Interface()
		if v == nil {
			continue
		}
		if s.name == kafkaSetting {
			flat := map[string]string{}
			if err := flatten("", v, flat); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			var lines []string
			for _, k := range slices.Sorted(maps.Keys(flat)) {
				lines = append(lines, k+"="+flat[k])
			}
			out[s.name] = strings.Join(lines, "\n")
			continue
		}
		text, err := scalar(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		out[s.name] = text
	}
	return out, nil
}

// tomlError says where: go-toml's own text leaves line and key to be asked for.
func tomlError(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var parts []string
		for _, e := range strict.Errors {
			row, _ := e.Position()
			parts = append(parts, fmt.Sprintf("line %d: unknown key %q", row, strings.Join(e.Key(), ".")))
		}
		return fmt.Errorf("%s: %w", strings.Join(parts, "; "), ErrUnknownName)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

// flatten turns nested tables into dotted names: log.retention.ms without quotes is three tables to TOML.
func flatten(prefix string, v any, out map[string]string) error {
	m, ok := v.(map[string]any)
	if !ok {
		if prefix == "" {
			return errors.New("must be a table: [kafka-config]")
		}
		s, err := scalar(v)
		out[prefix] = s
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		name := k
		if prefix != "" {
			name = prefix + "." + k
		}
		if err := flatten(name, m[k], out); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func scalar(v any) (string, error) {
	switch v := v.(type) {
	case string:
		if strings.ContainsAny(v, "\n\r") {
			return "", errors.New("must be one line")
		}
		return v, nil
	case int64, float64, bool:
		return fmt.Sprint(v), nil
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			s, err := scalar(e)
			if err != nil {
				return "", err
			}
			parts[i] = s
		}
		return strings.Join(parts, ","), nil
	}
	return "", fmt.Errorf("takes no value of this kind (%T)", v)
}
