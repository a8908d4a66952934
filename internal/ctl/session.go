// Package ctl holds the commands that work with a running cluster as any Kafka client does: topics, records, consumer groups,
// where partitions lie. They speak the protocol alone, so they work with a Chronik of any version, and with Kafka itself.
//
// Every command prints a table for people, or JSON for programs (-o json), on its standard output; progress and warnings go to
// standard error. Errors name what to do next.
package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// BrokersVariable names the environment variable that stands in for --brokers.
const BrokersVariable = "CHRONIK_BROKERS"

const defaultBrokers = "localhost:9092"

// Commands returns the commands that talk to a cluster.
func Commands() []*cobra.Command {
	all := []*cobra.Command{topicCommand(), produceCommand(), consumeCommand(), groupCommand(), reassignCommand(), clusterCommand()}
	for _, c := range all {
		completing(c)
	}
	return all
}

// options is what every command takes.
type options struct {
	brokers string
	output  string
	timeout time.Duration
}

// connected adds the flags of a client to cmd and all below it.
func connected(cmd *cobra.Command, o *options) *cobra.Command {
	brokers := os.Getenv(BrokersVariable)
	if brokers == "" {
		brokers = defaultBrokers
	}
	f := cmd.PersistentFlags()
	f.StringVarP(&o.brokers, "brokers", "b", brokers, "bootstrap servers, host:port separated by commas; "+BrokersVariable+" sets the default")
	f.StringVarP(&o.output, "output", "o", "table", "table, or json")
	f.DurationVar(&o.timeout, "timeout", 15*time.Second, "how long to wait for the cluster")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// session is one command's connection to the cluster.
type session struct {
	*options
	client *kgo.Client
	admin  *kadm.Client
	out    io.Writer
	errs   io.Writer
}

// open checks the options and connects; the context ends with the command's, at Ctrl-C, and, unless endless, with the timeout.
func (o *options) open(cmd *cobra.Command, endless bool, opts ...kgo.Opt) (*session, context.Context, func(), error) {
	if o.output != "table" && o.output != "json" {
		return nil, nil, nil, fmt.Errorf("--output is table or json, not %q", o.output)
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	cancel := stop
	if !endless {
		var done context.CancelFunc
		ctx, done = context.WithTimeoutCause(ctx, o.timeout, o.unreachable())
		cancel = func() { done(); stop() }
	}
	opts = append([]kgo.Opt{kgo.SeedBrokers(strings.Split(o.brokers, ",")...), kgo.ClientID("chronik"), kgo.DialTimeout(5 * time.Second),
		kgo.RetryTimeout(o.timeout), kgo.MetadataMinAge(100 * time.Millisecond)}, opts...)
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		cancel()
		return nil, nil, nil, fmt.Errorf("--brokers %q: %w", o.brokers, err)
	}
	reach, done := context.WithTimeout(ctx, o.timeout)
	err = cl.Ping(reach)
	done()
	if err != nil {
		cl.Close()
		cancel()
		return nil, nil, nil, fmt.Errorf("%w (%v)", o.unreachable(), err)
	}
	s := &session{options: o, client: cl, admin: kadm.NewClient(cl), out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr()}
	s.admin.SetTimeoutMillis(int32(o.timeout / time.Millisecond))
	return s, ctx, func() { cl.Close(); cancel() }, nil
}

func (o *options) unreachable() error {
	return fmt.Errorf("no answer from %s within %v: is a server running there? --brokers (or %s) names it, --timeout waits longer", o.brokers, o.timeout, BrokersVariable)
}

// run wraps a command's work in a session.
func (o *options) run(work func(ctx context.Context, s *session, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, ctx, done, err := o.open(cmd, false)
		if err != nil {
			return err
		}
		defer done()
		err = work(ctx, s, args)
		if cause := context.Cause(ctx); err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && cause != nil {
			return cause
		}
		return err
	}
}

// table prints rows under a head.
func (s *session) table(head string, rows [][]string) {
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush()
}

// print shows v as JSON where that is asked for, else calls table.
func (s *session) print(v any, table func()) error {
	if s.output != "json" {
		table()
		return nil
	}
	e := json.NewEncoder(s.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// refusal makes one error of an API's error and the message that came with it.
func refusal(err error, message string) error {
	if err == nil || message == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, message)
}

// answer is refusal of an error code and the message beside it.
func answer(code int16, message *string) error {
	if message == nil {
		return kerr.ErrorForCode(code)
	}
	return refusal(kerr.ErrorForCode(code), *message)
}

// size writes bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// list joins numbers for a table.
func list(ids []int32) string {
	if len(ids) == 0 {
		return "-"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ","), "[]")
}

// orDash keeps a table's columns when there is nothing to show.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// number is n, or - where it is not known.
func number(n int64) string {
	if n < 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// orEmpty keeps null out of JSON where a list is meant.
func orEmpty(ids []int32) []int32 {
	if ids == nil {
		return []int32{}
	}
	return ids
}
