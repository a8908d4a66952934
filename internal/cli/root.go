// Package cli is Chronik's command line: the server itself, and commands to work with one.
package cli

import (
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Main runs the chronik command and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "chronik",
		Short:         "Chronik: a streaming server that Kafka clients use unchanged",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       Version(),
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	code := 0
	root.AddCommand(clusterCommand(), serverCommand(&code), simCommand())
	if err := root.Execute(); err != nil {
		fmt.Fprintf(stderr, "chronik: %v\n", err)
		return 1
	}
	return code
}

// Version is what this build calls itself.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
