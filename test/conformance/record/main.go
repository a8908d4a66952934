// Command record plays the conformance script against a cluster and writes down its answers: go run ./test/conformance/record -at host:port -to dir.
//
// With -outage it plays the script of an outage instead, in which it stops one of the brokers whose pids are named.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/chronik-go/chronik/test/conformance"
)

func main() {
	at := flag.String("at", "127.0.0.1:9091", "one of the cluster's three brokers")
	to := flag.String("to", "test/conformance/testdata", "where the answers go")
	only := flag.String("only", "", "the keys of some APIs, separated by commas")
	outage := flag.String("outage", "", "how a broker is stopped: TERM or KILL")
	pids := flag.String("pids", "", "of brokers 1 to 3, separated by commas")
	check := flag.Bool("check", false, "with -outage: compare with what is recorded instead of writing")
	flag.Parse()
	err := os.MkdirAll(*to+"/outage", 0o755)
	if err == nil {
		if *outage != "" {
			err = recordOutage(*at, *to, *outage, *pids, *check)
		} else {
			err = recordAll(*at, *to, *only)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// numbers are those in a list separated by commas.
func numbers(list string) ([]int, error) {
	var out []int
	for _, s := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

func recordAll(at, to, only string) error {
	some, err := numbers(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	var keys []int16
	for _, n := range some {
		keys = append(keys, int16(n))
	}
	return conformance.Record(at, to, keys, say)
}

func recordOutage(at, to, how, list string, check bool) error {
	signal, ok := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[how]
	if !ok {
		return errors.New("-outage is TERM or KILL")
	}
	pids, err := numbers(list)
	if err != nil || len(pids) != 3 {
		return fmt.Errorf("-pids=%q: the process ids of brokers 1 to 3 are needed", list)
	}
	return conformance.RecordOutage(at, to, check, func(node int32) error { return syscall.Kill(pids[node-1], signal) }, say)
}
