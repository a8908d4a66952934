// Command record plays the conformance script against a cluster and writes down its answers: go run ./test/conformance/record -at host:port -to dir.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/chronik-go/chronik/test/conformance"
)

func main() {
	at := flag.String("at", "127.0.0.1:9091", "one of the cluster's three brokers")
	to := flag.String("to", "test/conformance/testdata", "where the answers go")
	only := flag.String("only", "", "the keys of some APIs, separated by commas")
	flag.Parse()
	var keys []int16
	for _, k := range strings.FieldsFunc(*only, func(r rune) bool { return r == ',' }) {
		n, err := strconv.ParseInt(k, 10, 16)
		if err != nil {
			fmt.Fprintln(os.Stderr, "record: -only:", err)
			os.Exit(2)
		}
		keys = append(keys, int16(n))
	}
	err := os.MkdirAll(*to, 0o755)
	if err == nil {
		err = conformance.Record(*at, *to, keys, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}
