// Command chronik works with Chronik from the command line.
package main

import (
	"os"

	"github.com/chronik-go/chronik/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
