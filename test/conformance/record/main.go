// Command record plays the conformance script against a cluster and writes down its answers: go run ./test/conformance/record -at host:port -to dir.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/chronik-go/chronik/test/conformance"
)

func main() {
	at := flag.String("at", "127.0.0.1:9091", "one of the cluster's three brokers")
	to := flag.String("to", "test/conformance/testdata", "where the answers go")
	flag.Parse()
	err := os.MkdirAll(*to, 0o755)
	if err == nil {
		err = conformance.Record(*at, *to, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}
