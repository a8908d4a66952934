package config

import (
	"errors"
	"testing"

	"github.com/spf13/pflag"
)

// FuzzLoad feeds a node's whole configuration: the file's bytes and a variable. Whatever they are, there is an error, or a
// list of problems, or a configuration that can be used.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("node-id = 1\npeers = \"1@h1:5001\"\n[kafka-config]\nlog.retention.ms = 5\n"), "CHRONIK_WAL_FILE_BYTES", "64MiB")
	f.Add([]byte("idle-timeout = \"10m\"\nmax-connections = 99999999999\n"), "CHRONIK_KAFKA_CONFIG", "a=b;c")
	f.Add([]byte("[[kafka-config]]\n"), "CHRONIK_KAFKA_ADDR", "[::1]:9092?mode=one-address")
	f.Fuzz(func(t *testing.T, file []byte, name, value string) {
		n := Default()
		fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
		Flags(fs, n)
		env := []string{"CHRONIK_CONFIG=/x.toml", name + "=" + value}
		if _, err := Load(n, fs, env, func(string) ([]byte, error) { return file, nil }); err != nil {
			return
		}
		if err := n.Validate(); err != nil {
			var bad *ValidationError
			if !errors.As(err, &bad) || len(bad.Problems) == 0 {
				t.Fatal(err)
			}
			return
		}
		if n.ID() < 1 || len(n.Members()) == 0 || n.KafkaListen() == "" {
			t.Fatalf("valid, and of no use: %+v", n)
		}
		for k, v := range n.Static() {
			if d, ok := Brokers.Lookup(k); !ok || d.Validate(v) != nil && !d.ReadOnly {
				t.Fatalf("%s=%q would be told to clients", k, v)
			}
		}
	})
}

// FuzzBytes feeds sizes.
func FuzzBytes(f *testing.F) {
	for _, s := range []string{"0", "64MiB", "2 GiB", "-1", "9223372036854775807KiB", "MiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err != nil {
			return
		}
		if again, err := ParseBytes(FormatBytes(n)); n < 0 || err != nil || again != n {
			t.Fatalf("%q is %d, written as %s: %d, %v", s, n, FormatBytes(n), again, err)
		}
	})
}
