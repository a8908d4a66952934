// Package cli is Chronik's command line: the server itself, and commands to work with one.
package cli

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

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
	root.AddCommand(serverCommand(&code), simCommand(), logCommand())
	root.AddCommand(ctl.Commands()...)
	if cluster, _, err := root.Find([]string{"cluster"}); err == nil {
		cluster.AddCommand(clusterUpCommand())
	}
	strict(root)
	if err := root.Execute(); err != nil {
		fmt.Fprintf(stderr, "chronik: %v\n", err)
		return 1
	}
	return code
}

// strict makes commands that only hold others refuse what none of them is called: cobra would print the help and be content.
func strict(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		strict(c)
	}
	if !cmd.HasSubCommands() || cmd.Runnable() || !cmd.HasParent() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		cmd.SuggestionsMinimumDistance = 2
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(near, ", "))
		}
		return fmt.Errorf("%s has no command %q%s; %s --help lists those it has", cmd.CommandPath(), args[0], hint, cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// Version is what this build calls itself.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
