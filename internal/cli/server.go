package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/node"
)

// drainTime bounds a shutdown on SIGTERM: leadership handed over, requests finished, everything synced.
const drainTime = 10 * time.Second

func serverCommand(code *int) *cobra.Command {
	return &cobra.Command{
		Use:                "server",
		Short:              "Run a node in the foreground (the same as chronik-server)",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			*code = Server(args, cmd.OutOrStdout(), cmd.ErrOrStderr())
			return nil
		},
	}
}

// Server runs a node until a signal or a fatal error and returns the exit code: 0 after an orderly stop, 1 after a failure, 2
// for a command line or configuration that makes no sense.
func Server(args []string, stdout, stderr io.Writer) int {
	cfg := config.Default()
	fs := pflag.NewFlagSet("chronik-server", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.SortFlags = false
	config.Flags(fs, cfg)
	version := fs.Bool("version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(stderr, "chronik-server: %v (--help lists the flags)\n", err)
		return 2
	}
	if *version {
		fmt.Fprintln(stdout, Version())
		return 0
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "chronik-server: unexpected argument %q: everything is set by flags (--help lists them)\n", fs.Arg(0))
		return 2
	}
	warnings, err := config.Load(cfg, fs, os.Environ(), os.ReadFile)
	var fitted []string
	if err == nil {
		fitted = cfg.Fit(machine())
		err = cfg.Validate()
	}
	if err != nil {
		fmt.Fprintf(stderr, "chronik-server: %v\n", err)
		return 2
	}
	boundMemory(cfg, 0)
	log := newLogger(stderr, cfg)
	for _, w := range warnings {
		log.Warn(w)
	}
	for _, f := range fitted {
		log.Info(f)
	}
	return serve(cfg, log, stdout, stderr)
}

func newLogger(w io.Writer, cfg *config.Node) *slog.Logger {
	var level slog.Level
	// Validate has checked the name.
	_ = level.UnmarshalText([]byte(strings.ToUpper(cfg.LogLevel)))
	opts := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func serve(cfg *config.Node, log *slog.Logger, stdout, stderr io.Writer) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	n, err := node.Open(node.Options{Config: cfg, Logger: log, CleanerMemory: func(keys int64) { boundMemory(cfg, keys) }})
	if err != nil {
		fmt.Fprintf(stderr, "chronik-server: %v\n", err)
		return 1
	}
	code, served := 0, false
	select {
	case <-n.Ready():
		served = true
		fmt.Fprintf(stdout, "chronik ready: kafka %s, data %s, node %d\n", n.KafkaAddr(), cfg.DataDir, cfg.ID())
		select {
		case <-ctx.Done():
		case <-n.Failed():
		}
	case <-ctx.Done():
	case <-n.Failed():
	}
	if err := n.Err(); err != nil {
		log.Error("stopping after a fatal error", "error", err)
		code = 1
	}
	cancel() // a second signal ends the process at once
	drain, done := context.WithTimeout(context.Background(), drainTime)
	defer done()
	stopped := n.Close(drain)
	switch reason := n.Err(); {
	case reason != nil && served:
		// Once more, as the last line: the files of each partition that could not be closed either have pushed it far up. A node
		// that never came up has said it in one line.
		fmt.Fprintf(stderr, "chronik-server: stopped, because it can't go on: %v\n", reason)
		code = 1
	case stopped != nil:
		fmt.Fprintf(stderr, "chronik-server: stopping: %v\n", stopped)
		code = 1
	}
	return code
}
