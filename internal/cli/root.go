// Package cli is Chronik's command line: the server itself, and commands to work with one.
package cli

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/chronik-go/chronik/internal/ctl"
)

// Main runs the chronik command and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	return execute(args, os.Stdin, stdout, stderr)
}

func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "chronik",
		Short:         "Chronik: a streaming server that Kafka clients use unchanged",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       Version(),
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	code := 0
	root.AddCommand(clusterCommand(), serverCommand(&code), simCommand(), logCommand())
	root.AddCommand(ctl.Commands()...)
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
