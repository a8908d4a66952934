// Command chronik-server is a Chronik node: a streaming server that Kafka clients use unchanged.
package main

import (
	"os"

	"github.com/chronik-go/chronik/internal/cli"
)

func main() {
	os.Exit(cli.Server(os.Args[1:], os.Stdout, os.Stderr))
}
