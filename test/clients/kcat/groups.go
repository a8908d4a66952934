package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// member is a kcat in a group, which says on standard error what is assigned to it.
type member struct {
	cmd      *exec.Cmd
	out, err watched
}

func (e env) join(ctx context.Context, group string, topics ...string) (*member, error) {
	m := &member{}
	// One at a time: range, the default, would give the only partition of every topic to the same member.
	args := []string{"-G", group, "-u", "-E", "-f", `%t %s\n`, "-X", "auto.offset.reset=earliest", "-X", "partition.assignment.strategy=roundrobin"}
	m.cmd = e.command(ctx, append(args, topics...)...)
	m.cmd.Stdout, m.cmd.Stderr = &m.out, io.MultiWriter(&m.err, os.Stderr)
	return m, m.cmd.Start()
}

var rebalanced = regexp.MustCompile(`(?m)^% Group .* rebalanced .*: (assigned|revoked): ?(.*)$`)

// owned counts what the last assignment gave it.
func (m *member) owned() int {
	all := rebalanced.FindAllStringSubmatch(m.err.String(), -1)
	if len(all) == 0 || all[len(all)-1][1] != "assigned" {
		return 0
	}
	return strings.Count(all[len(all)-1][2], "[")
}

func (m *member) leave() error {
	if err := m.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	err := m.cmd.Wait()
	if code := m.cmd.ProcessState.ExitCode(); code == 0 || code == 1 { // 1: asked to stop
		return nil
	}
	return err
}

func (e env) group(ctx context.Context) (_ string, err error) {
	topics := e.topics()
	a, err := e.join(ctx, e.topic("group"), topics...)
	if err != nil {
		return "", err
	}
	members := []*member{a}
	defer func() {
		for _, m := range members {
			if e := m.leave(); err == nil {
				err = e
			}
		}
	}()
	// step waits for the assignment, and for every line that was written until then, from whichever member.
	step := func(written int, owned ...int) error {
		return await(ctx, func() error {
			seen := map[string]bool{}
			var have []int
			all := a.out.String()
			for i, m := range members {
				have = append(have, m.owned())
				if i > 0 {
					all += m.out.String()
				}
			}
			for line := range strings.Lines(all) {
				seen[line] = true
			}
			slices.Sort(have)
			if !slices.Equal(have, owned) || len(seen) != written*len(topics) {
				return fmt.Errorf("%v are owned, not %v; %d of %d lines have arrived", have, owned, len(seen), written*len(topics))
			}
			return nil
		})
	}
	write := func(from int) error {
		for _, t := range topics {
			if err := e.write(ctx, t, "none", strings.NewReader(lines(from, 100))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := step(100, 4); err != nil {
		return "", err
	}
	b, err := e.join(ctx, e.topic("group"), topics...)
	if err != nil {
		return "", err
	}
	members = append(members, b)
	if err := step(100, 2, 2); err != nil {
		return "", err
	}
	if err := write(100); err != nil {
		return "", err
	}
	if err := step(200, 2, 2); err != nil {
		return "", err
	}
	members = members[:1]
	if err := b.leave(); err != nil {
		return "", err
	}
	// What b has read it has committed: a reads the rest.
	fromB := b.out.String()
	a.out.Write([]byte(fromB))
	if err := step(200, 4); err != nil {
		return "", err
	}
	if err := write(200); err != nil {
		return "", err
	}
	return "", step(300, 4)
}

func (e env) commit(ctx context.Context) (string, error) {
	topic, group := e.topic("commit"), e.topic("committed")
	if err := e.write(ctx, topic, "none", strings.NewReader(lines(0, 1000))); err != nil {
		return "", err
	}
	// kcat commits what it has printed when it ends, here after so many records.
	part := func(args ...string) (string, error) {
		return e.read(ctx, append(args, "-X", "auto.offset.reset=earliest", "-f", `%s\n`, topic)...)
	}
	first, err := part("-G", group, "-c", "400")
	if err != nil {
		return "", err
	}
	if err := equal(first, lines(0, 400)); err != nil {
		return "", fmt.Errorf("the first member: %w", err)
	}
	second, err := part("-G", group, "-c", "600")
	if err != nil {
		return "", err
	}
	if err := equal(second, lines(400, 600)); err != nil {
		return "", fmt.Errorf("the second member goes on elsewhere: %w", err)
	}
	stored, err := e.read(ctx, "-C", "-t", topic, "-p", "0", "-o", "stored", "-X", "group.id="+group, "-e")
	if err == nil && stored != "" {
		err = fmt.Errorf("after all was read and committed, %.100q is read from there", stored)
	}
	return "", err
}

// query asks for offsets: -2 the earliest, -1 the latest, else by time.
func (e env) query(ctx context.Context, topic string, at ...int64) (map[int64]int64, error) {
	got := map[int64]int64{}
	return got, await(ctx, func() error {
		for _, t := range at {
			out, err := e.read(ctx, "-Q", "-t", fmt.Sprintf("%s:0:%d", topic, t))
			if err != nil {
				return err
			}
			_, number, ok := strings.Cut(out, "offset ")
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if !ok || err != nil {
				return fmt.Errorf("kcat -Q: %q", out)
			}
			got[t] = n
		}
		return nil
	})
}

func (e env) listOffsets(ctx context.Context) (string, error) {
	topic := e.topic("offsets")
	if err := e.write(ctx, topic, "none", strings.NewReader(lines(0, 30))); err != nil {
		return "", err
	}
	got, err := e.query(ctx, topic, -2, -1)
	if err == nil && !maps.Equal(got, map[int64]int64{-2: 0, -1: 30}) {
		err = fmt.Errorf("offsets by time -2 and -1: %v", got)
	}
	return "without deleted records", err
}

func (e env) seekTime(ctx context.Context) (string, error) {
	topic := e.topic("time")
	before := time.Now().UnixMilli()
	if err := e.write(ctx, topic, "none", strings.NewReader(lines(0, 50))); err != nil {
		return "", err
	}
	middle := time.Now().UnixMilli() + 1
	for time.Now().UnixMilli() <= middle {
		time.Sleep(time.Millisecond)
	}
	if err := e.write(ctx, topic, "none", strings.NewReader(lines(50, 50))); err != nil {
		return "", err
	}
	later := time.Now().Add(time.Hour).UnixMilli()
	got, err := e.query(ctx, topic, before, middle, later)
	if err != nil {
		return "", err
	}
	if got[before] != 0 || got[middle] != 50 || got[later] != 100 && got[later] != -1 {
		return "", fmt.Errorf("offsets by time: %v; %d should be 0, %d 50, %d none", got, before, middle, later)
	}
	read, err := e.read(ctx, "-C", "-t", topic, "-p", "0", "-o", fmt.Sprintf("s@%d", middle), "-e", "-f", `%s\n`)
	if err != nil {
		return "", err
	}
	return "", equal(read, lines(50, 50))
}

func (e env) admin(ctx context.Context) (string, error) {
	return "nothing but descriptions of the cluster", await(ctx, func() error {
		m, err := e.list(ctx, e.topic("main"))
		if err == nil && (len(m.Brokers) < 2 || m.Topics[0].Partitions[0].Leader < 1) {
			err = fmt.Errorf("no brokers or no leader: %+v", m)
		}
		return err
	})
}
