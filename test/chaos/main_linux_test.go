package chaos

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/chronik-go/chronik/test/harness"
)

const (
	envMinutes = "CHRONIK_CHAOS_MINUTES"
	envSeed    = "CHRONIK_CHAOS_SEED"
)

var (
	serverBinary string
	isolated     bool // in namespaces of its own: may mount disks and lay cables
)

func TestMain(m *testing.M) {
	if bin := os.Getenv(envIsolated); bin != "" {
		if err := enterIsolation(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(notIsolated)
		}
		serverBinary, isolated = bin, true
		os.Exit(m.Run())
	}
	os.Exit(harness.RunTests(m, func(bin string) {
		serverBinary = bin
		if os.Getenv(envMinutes) == "" {
			return
		}
		code, err := isolate(bin)
		if err == nil {
			os.Exit(code)
		}
		fmt.Printf("no namespaces here, so no cables to pull and no disks to fill, everything else is broken all the same: %v\n", err)
	}))
}

// setting reads a number from the environment.
func setting(t *testing.T, name string, otherwise float64) float64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 {
		t.Fatalf("%s=%q is no number", name, s)
	}
	return f
}
