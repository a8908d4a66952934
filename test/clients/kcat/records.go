package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func (e env) large(ctx context.Context) (string, error) {
	topic, dir := e.topic("large"), os.Getenv("WORK")
	letters := []byte("abcdefghijklmnopqrstuvwxyz")
	value := func(n int) string {
		r := rand.New(rand.NewSource(int64(n)))
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[r.Intn(len(letters))]
		}
		return string(b)
	}
	send := func(n int) error {
		path := filepath.Join(dir, fmt.Sprintf("large-%d", n))
		if err := os.WriteFile(path, []byte(value(n)), 0o644); err != nil {
			return err
		}
		return e.write(ctx, topic, "none", nil, "-X", "message.max.bytes=4000000", path) // a file is a record
	}
	if err := send(1_000_000); err != nil {
		return "", err
	}
	var complaint watched
	cmd := e.command(ctx, "-P", "-t", topic, "-p", "0", "-X", "message.max.bytes=4000000")
	cmd.Stdin, cmd.Stderr = strings.NewReader(value(2_000_000)+"\n"), &complaint
	err := cmd.Run()
	if s := complaint.String(); !strings.Contains(s, "Message size too large") {
		return "", fmt.Errorf("2,000,000 bytes, more than max.message.bytes: %v, %.300q", err, s)
	}
	if err := send(1_000_000); err != nil {
		return "", fmt.Errorf("after a refusal: %w", err)
	}
	got, err := e.read(ctx, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-f", `%s\n`)
	if err != nil {
		return "", err
	}
	return "", equal(got, value(1_000_000)+"\n"+value(1_000_000)+"\n")
}

func numbered(i int) string {
	return fmt.Sprintf("record %d of the many that are looked at one by one, each of them", i)
}

// records sends many lines and reads them all; a leader dies when half are on their way, and another when half are read.
func (e env) records(ctx context.Context) (string, error) {
	topic := e.topic("records")
	began := time.Now()
	// The topic must be there to have a leader: the first line makes it.
	if err := e.write(ctx, topic, "lz4", strings.NewReader(numbered(0)+"\n")); err != nil {
		return "", err
	}
	if err := e.sendNumbered(ctx, topic); err != nil {
		return "", fmt.Errorf("sending: %w", err)
	}
	sent := time.Now()
	if err := e.readNumbered(ctx, topic); err != nil {
		return "", fmt.Errorf("reading: %w", err)
	}
	return fmt.Sprintf("%d sent in %.1f s, read in %.1f s", e.lines, sent.Sub(began).Seconds(), time.Since(sent).Seconds()), nil
}

func (e env) sendNumbered(ctx context.Context, topic string) error {
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		err := e.write(ctx, topic, "lz4", in)
		in.Close() // a writer that is still there gets an error
		sent <- err
	}()
	feed := func() error {
		w := bufio.NewWriter(out)
		var killed chan error
		for i := 1; i < e.lines; i++ {
			if i == e.lines/2 {
				if err := w.Flush(); err != nil {
					return err
				}
				killed = make(chan error, 1)
				go func() { killed <- e.kill(ctx, topic) }()
			}
			// The last quarter is for the next leader.
			if i == e.lines*3/4 {
				if err := <-killed; err != nil {
					return err
				}
			}
			if _, err := w.WriteString(numbered(i) + "\n"); err != nil {
				return err
			}
		}
		return w.Flush()
	}
	err = errors.Join(feed(), out.Close())
	return errors.Join(err, <-sent)
}

func (e env) readNumbered(ctx context.Context, topic string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Small queues: it shall not have fetched everything when the leader dies.
	cmd := e.command(ctx, "-C", "-q", "-E", "-e", "-u", "-t", topic, "-p", "0", "-o", "beginning", "-f", `%o %s\n`, "-X", "check.crcs=true",
		"-X", "queued.min.messages=500", "-X", "queued.max.messages.kbytes=64", "-X", "fetch.message.max.bytes=32768")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n := 0
	lines := bufio.NewScanner(out)
	for ; lines.Scan(); n++ {
		if n == e.lines/2 {
			if err := e.kill(ctx, topic); err != nil {
				return errors.Join(err, kill(cmd.Wait, cancel))
			}
		}
		if want := fmt.Sprintf("%d %s", n, numbered(n)); lines.Text() != want {
			return errors.Join(fmt.Errorf("line %d is %.200q", n, lines.Text()), kill(cmd.Wait, cancel))
		}
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return err
	}
	if n != e.lines {
		return fmt.Errorf("%d lines of %d", n, e.lines)
	}
	return nil
}

// kill ends a command whose output is not read any more.
func kill(wait func() error, cancel context.CancelFunc) error {
	cancel()
	return wait()
}
