package ctl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/internal/config"
)

// maxLine bounds a line of input.
const maxLine = 16 << 20

type producing struct {
	*options
	topic       string
	key         string
	separator   string
	headers     []string
	partition   int32
	compression string
	files       []string
	whole       bool
}

func produceCommand() *cobra.Command {
	p := &producing{options: &options{}}
	cmd := connected(&cobra.Command{Use: "produce TOPIC", Short: "Write records: a line of standard input each, or files", Args: cobra.ExactArgs(1),
		Long: "Write records. Each line of standard input, or of the files given, is a record; with --whole each file is one. Ends with the input, once every record is acknowledged.",
		RunE: func(cmd *cobra.Command, args []string) error {
			p.topic = args[0]
			return p.run(cmd)
		}}, p.options)
	f := cmd.Flags()
	f.StringVarP(&p.key, "key", "k", "", "a key for every record")
	f.StringVarP(&p.separator, "key-separator", "K", "", "what comes before it in a line is the record's key")
	f.StringArrayVarP(&p.headers, "header", "H", nil, "a header for every record, name=value; may be repeated")
	f.Int32VarP(&p.partition, "partition", "p", -1, "the partition to write to; -1: by key, else spread")
	f.StringVarP(&p.compression, "compression", "z", "none", "none, gzip, snappy, lz4 or zstd")
	f.StringArrayVarP(&p.files, "file", "f", nil, "read this file instead of standard input; may be repeated")
	f.BoolVar(&p.whole, "whole", false, "each file is one record")
	_ = cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions([]string{"none", "gzip", "snappy", "lz4", "zstd"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func (p *producing) clientOptions() ([]kgo.Opt, error) {
	codec, ok := codecs[p.compression]
	if !ok {
		return nil, fmt.Errorf("--compression is none, gzip, snappy, lz4 or zstd, not %q", p.compression)
	}
	if p.whole && len(p.files) == 0 {
		return nil, errors.New("--whole needs files: --file names them")
	}
	opts := []kgo.Opt{kgo.ProducerBatchCompression(codec), kgo.RecordDeliveryTimeout(max(p.timeout, time.Second)), kgo.AllowAutoTopicCreation(),
		kgo.MaxBufferedBytes(64 << 20)}
	if p.partition >= 0 {
		opts = append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	return opts, nil
}

func (p *producing) run(cmd *cobra.Command) error {
	opts, err := p.clientOptions()
	if err != nil {
		return err
	}
	headers, err := p.recordHeaders()
	if err != nil {
		return err
	}
	limit, err := p.batchBytes(cmd)
	if err != nil {
		return err
	}
	s, ctx, done, err := p.open(cmd, true, append(opts, kgo.ProducerBatchMaxBytes(limit))...)
	if err != nil {
		return err
	}
	defer done()
	w := &writer{p: p, s: s, headers: headers}
	began := time.Now()
	if len(p.files) == 0 {
		err = w.lines(ctx, cmd.InOrStdin())
	}
	for _, name := range p.files {
		if err != nil {
			break
		}
		err = w.file(ctx, name)
	}
	if flushErr := s.client.Flush(ctx); err == nil {
		err = flushErr
	}
	fmt.Fprintf(s.errs, "%d records, %d bytes acknowledged in %v\n", w.acked.Load(), w.bytes.Load(), time.Since(began).Round(time.Millisecond))
	return errors.Join(err, w.failure())
}

// batchBytes asks for the largest batch that the topic takes: larger ones would be refused, though the records in them are small.
func (p *producing) batchBytes(cmd *cobra.Command) (int32, error) {
	s, ctx, done, err := p.open(cmd, false)
	if err != nil {
		return 0, err
	}
	defer done()
	limit := int64(config.DefaultMaxMessageBytes) // of a topic that is yet to be made
	all, err := s.admin.DescribeTopicConfigs(ctx, p.topic)
	if err != nil {
		return 0, err
	}
	for _, t := range all {
		for _, c := range t.Configs {
			if n, err := strconv.ParseInt(c.MaybeValue(), 10, 32); c.Key == "max.message.bytes" && err == nil {
				limit = n
			}
		}
	}
	return int32(max(1024, min(limit, maxLine))), nil // the client takes no less
}

func (p *producing) recordHeaders() ([]kgo.RecordHeader, error) {
	var out []kgo.RecordHeader
	for _, h := range p.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok {
			return nil, fmt.Errorf("--header %q is not name=value", h)
		}
		out = append(out, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	return out, nil
}

// writer sends records and keeps the first failure.
type writer struct {
	p       *producing
	s       *session
	headers []kgo.RecordHeader
	acked   atomic.Int64
	bytes   atomic.Int64

	mu     sync.Mutex
	failed error
}

func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

func (w *writer) file(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if !w.p.whole {
		return w.lines(ctx, f)
	}
	value, err := io.ReadAll(io.LimitReader(f, maxLine+1))
	if err != nil {
		return err
	}
	if len(value) > maxLine {
		return fmt.Errorf("%s is larger than a record may be (%d bytes)", name, maxLine)
	}
	return w.send(ctx, w.key(), value)
}

func (w *writer) key() []byte {
	if w.p.key == "" {
		return nil
	}
	return []byte(w.p.key)
}

func (w *writer) lines(ctx context.Context, r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLine)
	for n := 1; in.Scan(); n++ {
		key, value := w.key(), in.Bytes()
		if w.p.separator != "" {
			before, after, ok := bytes.Cut(value, []byte(w.p.separator))
			if !ok {
				return fmt.Errorf("line %d has no %q between key and value", n, w.p.separator)
			}
			key, value = bytes.Clone(before), after
		}
		if err := w.send(ctx, key, bytes.Clone(value)); err != nil {
			return err
		}
	}
	if errors.Is(in.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line is longer than a record may be (%d bytes)", maxLine)
	}
	return in.Err()
}

// send hands a record to the client; it waits while the client has as much under way as it may hold.
func (w *writer) send(ctx context.Context, key, value []byte) error {
	if err := w.failure(); err != nil {
		return err
	}
	r := &kgo.Record{Topic: w.p.topic, Key: key, Value: value, Headers: w.headers, Partition: w.p.partition}
	w.s.client.Produce(ctx, r, func(r *kgo.Record, err error) {
		if err == nil {
			w.acked.Add(1)
			w.bytes.Add(int64(len(r.Key) + len(r.Value)))
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.failed == nil {
			w.failed = fmt.Errorf("a record was not acknowledged: %w", err)
		}
	})
	return ctx.Err()
}
