// Command clients sends text through a cluster with clients that people use, kills leaders on the way, and looks for every
// line: from other nodes with the same clients, and on every node's disk. run.sh builds and starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	chronik, dir, goroot string
	lines, kills         int
	codecs, clients      string
	timeout              time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.chronik, "chronik", "", "the chronik command under test")
	flag.StringVar(&o.dir, "dir", "", "directory for the text, the nodes' data and their logs")
	flag.StringVar(&o.goroot, "goroot", "", "the Go toolchain whose source is sent")
	flag.IntVar(&o.lines, "lines", 2_000_000, "lines to send in each run")
	flag.IntVar(&o.kills, "kills", 4, "leaders killed in each run")
	flag.StringVar(&o.codecs, "codecs", "none,gzip,snappy,lz4,zstd", "codecs, a run for each")
	flag.StringVar(&o.clients, "clients", "kcat,franz-go", "clients, a run for each")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "bound of each run")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "clients: %v\n", err)
		os.Exit(1)
	}
}

// result is a row of the table.
type result struct {
	client, codec         string
	kills                 int
	produce, kcat, franz  time.Duration // kcat, franz: reading with it
	stored                string
	storedMB              float64
	longest               time.Duration // from a kill until the node served again
	err                   error
	peak                  int64
	firstKill, lastKillAt int64
}

func run(ctx context.Context, o options) error {
	if o.chronik == "" || o.dir == "" || o.goroot == "" {
		return errors.New("-chronik, -dir and -goroot are needed (run.sh sets them)")
	}
	if o.lines < 1 || o.kills < 0 {
		return errors.New("-lines is from 1, -kills from 0")
	}
	text, err := writeCorpus(filepath.Join(o.dir, "lines"), o.goroot, o.lines)
	if err != nil {
		return fmt.Errorf("collecting the lines: %w", err)
	}
	fmt.Printf("%d lines of %d Go files, %.1f MB, sha256 %x\n", text.lines, text.files, mb(text.bytes), text.sum)
	c, err := startCluster(ctx, o.chronik, filepath.Join(o.dir, "cluster"))
	if err != nil {
		return err
	}
	defer c.stop()
	var rows []result
	failed := 0
	for _, client := range strings.Split(o.clients, ",") {
		for _, codec := range strings.Split(o.codecs, ",") {
			r := oneRun(ctx, c, text, o, client, codec)
			rows = append(rows, r)
			if r.err != nil {
				failed++
				fmt.Printf("%s %s: FAILED: %v\n", client, codec, r.err)
			} else {
				fmt.Printf("%s %s: sent in %v with %d leaders killed (log ends then: %d to %d), read with kcat in %v\n", client, codec,
					r.produce.Round(time.Millisecond), r.kills, r.firstKill, r.lastKillAt, r.kcat.Round(time.Millisecond))
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	table(rows, text)
	if err := c.stop(); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d runs failed", failed, len(rows))
	}
	return nil
}

// oneRun sends the whole text through a topic of its own and looks for it everywhere.
func oneRun(ctx context.Context, c *cluster, text *corpus, o options, client, codec string) (r result) {
	r = result{client: client, codec: codec}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	send, ok := producers[client]
	if !ok || !slices.Contains(codecNames, codec) {
		r.err = fmt.Errorf("no such client (%q) or codec (%q)", client, codec)
		return r
	}
	topic := fmt.Sprintf("lines-%s-%s", client, codec)
	if r.err = c.createTopic(ctx, topic); r.err != nil {
		return r
	}
	k := newKiller(c, topic, text.lines, o.kills)
	began := time.Now()
	err := send(ctx, c.nodes[0].kafka, topic, codec, text, k)
	r.produce = time.Since(began)
	// The killer is waited for in any case: it may have a node down.
	err = errors.Join(err, k.wait(ctx))
	r.kills, r.longest = k.kills, k.longest
	if len(k.ends) > 0 {
		r.firstKill, r.lastKillAt = k.ends[0], k.ends[len(k.ends)-1]
	}
	if err != nil {
		r.err = fmt.Errorf("sending: %w", err)
		return r
	}
	if r.kills != o.kills {
		r.err = fmt.Errorf("%d leaders were killed, %d should have been", r.kills, o.kills)
		return r
	}
	if o.kills > 0 && r.firstKill >= int64(text.lines) {
		r.err = fmt.Errorf("all lines were in the log before the first leader was killed: the kill came too late to test anything")
		return r
	}
	r.err = r.verify(ctx, c, text, topic)
	r.peak = c.peakRSS()
	if r.err == nil {
		r.err = c.deleteTopic(ctx, topic)
	}
	return r
}

// verify reads the topic from the nodes that were not produced to, with both clients, and from every node's disk.
func (r *result) verify(ctx context.Context, c *cluster, text *corpus, topic string) error {
	if haveKcat() {
		began := time.Now()
		if err := readKcat(ctx, c.nodes[1].kafka, topic, text); err != nil {
			return fmt.Errorf("reading from node 2 with kcat: %w", err)
		}
		r.kcat = time.Since(began)
	}
	began := time.Now()
	if err := readFranz(ctx, c.nodes[2].kafka, topic, text); err != nil {
		return fmt.Errorf("reading from node 3 with franz-go: %w", err)
	}
	r.franz = time.Since(began)
	for _, n := range c.nodes {
		s, err := awaitStored(ctx, n.data, topic, text)
		if err != nil {
			return fmt.Errorf("node %d's disk: %w", n.id, err)
		}
		r.stored, r.storedMB = s.String(), mb(s.bytes)
		if err := s.check(r.codec); err != nil {
			return fmt.Errorf("node %d's disk: %w", n.id, err)
		}
	}
	return nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func table(rows []result, text *corpus) {
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "client\tcodec\tlines\tkills\tseconds\tMB/s\tlongest restart\tread kcat MB/s\tread franz-go MB/s\tpeak RSS MB\tstored MB\tstored codec\tresult\t")
	for _, r := range rows {
		rate := func(d time.Duration) string {
			if d == 0 {
				return "-"
			}
			return fmt.Sprintf("%.1f", mb(text.bytes)/d.Seconds())
		}
		verdict := "ok"
		if r.err != nil {
			verdict = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%.1f\t%s\t%.1f s\t%s\t%s\t%.0f\t%.1f\t%s\t%s\t\n", r.client, r.codec, text.lines, r.kills, r.produce.Seconds(),
			rate(r.produce), r.longest.Seconds(), rate(r.kcat), rate(r.franz), mb(r.peak), r.storedMB, r.stored, verdict)
	}
	w.Flush()
}
