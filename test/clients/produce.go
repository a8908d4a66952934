package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var codecNames = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// producers send the whole text to partition 0 and return once every line is acknowledged. Both are idempotent: a retry while a
// leader dies must not leave a line twice.
var producers = map[string]func(ctx context.Context, broker, topic, codec string, text *corpus, k *killer) error{
	"kcat":     sendKcat,
	"franz-go": sendFranz,
}

func haveKcat() bool {
	_, err := exec.LookPath("kcat")
	return err == nil
}

// tail keeps the end of what a client complains.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.buf = append(t.buf, p...); len(t.buf) > 4000 {
		t.buf = t.buf[len(t.buf)-4000:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

func sendKcat(ctx context.Context, broker, topic, codec string, text *corpus, k *killer) error {
	f, err := os.Open(text.path)
	if err != nil {
		return err
	}
	defer f.Close()
	// -E: a broker that goes away is news to kcat, not the end.
	cmd := exec.CommandContext(ctx, "kcat", "-P", "-E", "-b", broker, "-t", topic, "-p", "0", "-z", codec,
		"-X", "enable.idempotence=true", "-X", "message.timeout.ms=120000")
	var complaints tail
	cmd.Stderr = &complaints
	cmd.WaitDelay = 5 * time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	fed := feed(ctx, f, in, k)
	in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("kcat: %w\n%s", errors.Join(err, fed), &complaints)
	}
	return fed
}

// feed writes the text to a client's input in small steps and tells the killer.
func feed(ctx context.Context, from io.Reader, to io.Writer, k *killer) error {
	buf := make([]byte, 16<<10)
	lines := 0
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return fmt.Errorf("the client takes no more: %w", err)
			}
			lines += bytes.Count(buf[:n], []byte("\n"))
			if err := k.sent(ctx, lines); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func sendFranz(ctx context.Context, broker, topic, codec string, text *corpus, k *killer) error {
	codecs := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(codecs[codec]), kgo.MaxBufferedRecords(50000), kgo.RecordDeliveryTimeout(2*time.Minute))
	if err != nil {
		return err
	}
	defer cl.Close()
	f, err := os.Open(text.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var mu sync.Mutex
	var failed error
	ended := func(_ *kgo.Record, err error) {
		if err == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = err
		}
	}
	in := bufio.NewScanner(f)
	in.Buffer(make([]byte, 64<<10), 2*maxLine)
	in.Split(wholeLines)
	for lines := 1; in.Scan(); lines++ {
		cl.Produce(ctx, &kgo.Record{Value: bytes.Clone(in.Bytes())}, ended)
		if err := k.sent(ctx, lines); err != nil {
			return err
		}
	}
	if err := errors.Join(in.Err(), cl.Flush(ctx)); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	return failed
}

// wholeLines splits at line feeds and, other than bufio.ScanLines, keeps a carriage return before one.
func wholeLines(data []byte, _ bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	return 0, nil, nil
}
