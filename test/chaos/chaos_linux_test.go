package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/chronik-go/chronik/test/oracle"
)

const (
	partitions = 6 // of each topic
	// episode is a cluster's time under chaos before everything is read back and another begins.
	episode = 90 * time.Second
	// floor is how many records a second must have been acknowledged on the average, or the run has shown nothing.
	floor = 50
	// maxRSS is what a node's process may hold.
	maxRSS = 512 << 20
)

// topics are what is written to: the first by idempotent producers, the second by one without idempotence.
var topics = []string{"orders", "plain"}

// tally adds up runs.
type tally struct {
	drawn, fired map[string]int
	acked        int
	unknown      int
	gap          time.Duration
	peakRSS      int64
	under        time.Duration
}

// TestChaos breaks things for CHRONIK_CHAOS_MINUTES, from CHRONIK_CHAOS_SEED; without, it kills a node and cuts another off.
func TestChaos(t *testing.T) {
	seed := uint64(setting(t, envSeed, 1))
	minutes := setting(t, envMinutes, 0)
	total := &tally{drawn: map[string]int{}, fired: map[string]int{}}
	if minutes == 0 {
		runEpisode(t, 0, 0, 2*time.Second, total) // of three nodes
		total.mustHaveFired(t, minutes)
		return
	}
	t.Logf("seed %d; again: make chaos MINUTES=%g SEED=%d", seed, minutes, seed)
	if isolated {
		if err := traces(); err != nil {
			t.Logf("no failed fsyncs: strace is missing, or may not trace here: %v", err)
		}
	}
	end := time.Now().Add(time.Duration(minutes * float64(time.Minute)))
	for i := uint64(0); time.Until(end) > 10*time.Second && !t.Failed(); i++ {
		runEpisode(t, seed, i, min(episode, time.Until(end)), total)
	}
	total.report(t)
	total.mustHaveFired(t, minutes)
}

// mustHaveFired fails a run that shows nothing of what it is meant to show.
func (a *tally) mustHaveFired(t *testing.T, minutes float64) {
	t.Helper()
	if t.Failed() {
		return // its faults ended early
	}
	for _, why := range a.unfired(minutes) {
		t.Error(why)
	}
}

// unfired tells of faults that did not take place. The shortest run has only two, which always do. In a long one each kind has its
// chances: a link that is cut while the node at its end is dead was none, but three times in a row is too many, as is half of all.
func (a *tally) unfired(minutes float64) (why []string) {
	chances := 1
	if minutes > 0 {
		chances = 3
	}
	drawn, fired := 0, 0
	for _, name := range slices.Sorted(maps.Keys(a.drawn)) {
		drawn, fired = drawn+a.drawn[name], fired+a.fired[name]
		if a.drawn[name] >= chances && a.fired[name] == 0 {
			why = append(why, fmt.Sprintf("%q was drawn %d times, and never took place", name, a.drawn[name]))
		}
	}
	if fired == 0 || 2*fired < drawn {
		why = append(why, fmt.Sprintf("%d of %d faults took place", fired, drawn))
	}
	return why
}

func TestARunWithoutItsFaultsFails(t *testing.T) {
	for _, c := range []struct {
		minutes      float64
		drawn, fired map[string]int
		fails        bool
	}{
		{0, nil, nil, true},
		{0, map[string]int{"a": 1, "b": 1}, map[string]int{"a": 1}, true},
		{0, map[string]int{"a": 1, "b": 1}, map[string]int{"a": 1, "b": 1}, false},
		{1, map[string]int{"a": 1, "b": 1}, map[string]int{"a": 1}, false},
		{1, map[string]int{"a": 1, "b": 1}, map[string]int{}, true},
		{3, map[string]int{"a": 3, "b": 3}, map[string]int{"a": 3}, true},
		{3, map[string]int{"a": 3, "b": 2}, map[string]int{"a": 3}, false},
		{3, map[string]int{"a": 3, "b": 3}, map[string]int{"a": 1, "b": 1}, true},
		{3, map[string]int{"a": 3, "b": 3}, map[string]int{"a": 3, "b": 1}, false},
	} {
		total := &tally{drawn: c.drawn, fired: c.fired}
		if why := total.unfired(c.minutes); (len(why) > 0) != c.fails {
			t.Errorf("%g minutes, drawn %v, fired %v: %q", c.minutes, c.drawn, c.fired, why)
		}
	}
}

func (a *tally) report(t *testing.T) {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(a.drawn)) {
		lines = append(lines, fmt.Sprintf("  %-36s %3d of %3d took place", name, a.fired[name], a.drawn[name]))
	}
	t.Logf("%v under chaos: %d records acknowledged, %d of unknown fate; a partition acknowledged nothing for %v at most; a node held %d MiB at most\nfaults:\n%s",
		a.under.Round(time.Second), a.acked, a.unknown, a.gap.Round(time.Millisecond), a.peakRSS>>20, strings.Join(lines, "\n"))
}

// runEpisode runs one cluster of three to five nodes. Odd ones are on cables where there may be any.
func runEpisode(t *testing.T, seed, number uint64, length time.Duration, total *tally) {
	t.Helper()
	machines := 3 + int((seed+number)%3)
	onCables := isolated && number%2 == 1
	dir, err := os.MkdirTemp("", "chronik-chaos")
	if err != nil {
		t.Fatal(err)
	}
	r := &run{t: t, seed: seed, dir: dir, ledger: oracle.NewLedger(), fired: map[string]int{}, drawn: map[string]int{}}
	began := time.Now()
	r.log = func(format string, args ...any) {
		t.Logf("%d.%d %6.1fs "+format, append([]any{seed, number, time.Since(began).Seconds()}, args...)...)
	}
	defer func() {
		r.stop()
		if t.Failed() {
			t.Logf("logs and data are kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	}()
	if err := r.episode(seed<<8+number, machines, onCables, length); err != nil {
		for _, m := range r.machines {
			if m.node != nil {
				t.Logf("node %d:\n%s", m.node.ID, m.node.Tail())
			}
		}
		t.Errorf("episode %d of seed %d: %v", number, seed, err)
	}
	sum := r.ledger.Totals()
	total.acked += sum.Acked
	total.unknown += sum.Unknown
	total.gap = max(total.gap, sum.LongestGap)
	total.peakRSS = max(total.peakRSS, r.peakRSS)
	total.under += length
	for name, n := range r.drawn {
		total.drawn[name] += n
		total.fired[name] += r.fired[name]
	}
}

// kinds is what can go wrong here; of a run of seconds, the commonest.
func (r *run) kinds(length time.Duration) (machines, links []kind) {
	if length < 10*time.Second {
		return onProcesses[:1], r.network.kinds()[:1]
	}
	machines = slices.Clone(onProcesses)
	if isolated {
		machines = append(machines, fullDisk)
	}
	if traces() == nil {
		machines = append(machines, failedSync)
	}
	return machines, r.network.kinds()
}

// episode starts, loads, breaks, heals and checks.
func (r *run) episode(seed uint64, machines int, onCables bool, length time.Duration) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := r.start(ctx, machines, onCables, isolated); err != nil {
		return err
	}
	where := "behind proxies"
	if onCables {
		where = "on cables"
	}
	r.log("%d nodes %s", machines, where)
	load, err := r.load(ctx)
	defer load.stop()
	if err != nil {
		return err
	}
	var watchers sync.WaitGroup
	defer watchers.Wait()
	side, endSide := context.WithCancel(ctx)
	defer endSide()
	var stays, gone []string
	sideEnded := make(chan struct{})
	watchers.Go(func() { r.watchMemory(side) })
	watchers.Go(func() { defer close(sideEnded); stays, gone = r.side(side) })

	began := time.Now()
	onMachine, onLinks := r.kinds(length)
	p := newPlan(seed, machines, onMachine, onLinks)
	for time.Since(began) < length && !r.t.Failed() {
		load.group.Rejoin(r.rounds % members)
		if err := r.round(ctx, load, p.next()); err != nil {
			return err
		}
	}
	least := float64(floor)
	if length < 10*time.Second { // beside other tests: whatever the machine has left
		least = 1
	}
	if rate := float64(r.ledger.Totals().Acked) / time.Since(began).Seconds(); rate < least {
		return fmt.Errorf("%.0f records a second acknowledged, fewer than %g: such a run shows nothing", rate, least)
	}
	endSide()
	<-sideEnded
	return r.verify(ctx, load, stays, gone)
}

// round breaks, heals, and waits until all is well again.
func (r *run) round(ctx context.Context, l *load, n round) error {
	r.rounds++
	var both sync.WaitGroup
	var errs [2]error
	var names []string
	for i, k := range []*kind{n.machine, n.network} {
		if k == nil {
			continue
		}
		names = append(names, k.name)
		both.Go(func() {
			s := n.onMachine
			if i == 1 {
				s = n.onLinks
				rest(ctx, n.offset)
			}
			took, err := k.do(ctx, r, s)
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", k.name, err)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.drawn[k.name]++
			if took {
				r.fired[k.name]++
			}
		})
	}
	r.log("%s", strings.Join(names, " + "))
	both.Wait()
	err := errors.Join(errs[0], errs[1], r.network.heal())
	if err == nil {
		err = r.awaitReady(ctx, r.machines...)
	}
	if err == nil {
		well, cancel := context.WithTimeout(ctx, recovers)
		defer cancel()
		err = r.ledger.AwaitEach(well)
	}
	if err == nil {
		well, cancel := context.WithTimeout(ctx, 2*recovers)
		defer cancel()
		err = l.group.AwaitEach(well, read())
	}
	if err != nil {
		return fmt.Errorf("after %s: %w", strings.Join(names, " + "), err)
	}
	return nil
}

// load is what is written and read while things go wrong.
type load struct {
	writers []interface{ Stop(context.Context) error }
	readers []*oracle.Reader
	names   []string
	group   *oracle.Group
}

// members of the consumer group; one of them leaves and comes back with every round.
const members = 3

func (r *run) load(ctx context.Context) (*load, error) {
	ctx, cancel := context.WithTimeout(ctx, recovers)
	defer cancel()
	l := &load{}
	if _, err := r.admin.CreateTopics(ctx, partitions, 3, nil, topics...); err != nil {
		return l, err
	}
	for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		w, err := r.ledger.StartWriter(oracle.Load{Brokers: r.brokers(), Topic: topics[0], Partitions: partitions, Rate: 30, Codec: codec})
		if err != nil {
			return l, err
		}
		l.writers = append(l.writers, w)
	}
	w, err := r.ledger.StartPlain(oracle.Load{Brokers: r.brokers(), Topic: topics[1], Partitions: partitions, Rate: 40})
	if err != nil {
		return l, err
	}
	l.writers = append(l.writers, w)
	for name, opts := range map[string][]kgo.Opt{"a consumer": nil, "a consumer without fetch sessions": {kgo.DisableFetchSessions()}} {
		reader, err := r.ledger.StartReader(name, r.brokers(), read(), opts...)
		if err != nil {
			return l, err
		}
		l.readers, l.names = append(l.readers, reader), append(l.names, name)
	}
	l.group, err = r.ledger.StartGroup(oracle.GroupLoad{Name: "app", Brokers: r.brokers(), Topics: topics, Members: members, Identify: true})
	if err != nil {
		return l, err
	}
	if err := r.ledger.AwaitEach(ctx); err != nil {
		return l, err
	}
	return l, l.group.AwaitEach(ctx, read())
}

// read is what readers read: every partition.
func read() map[string]int32 {
	out := map[string]int32{}
	for _, topic := range topics {
		out[topic] = partitions
	}
	return out
}

// stop ends a load that is not verified.
func (l *load) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, w := range l.writers {
		_ = w.Stop(ctx)
	}
	for _, r := range l.readers {
		r.Stop()
	}
	if l.group != nil {
		_, _, _ = l.group.Stop(ctx)
	}
	l.writers, l.readers, l.group = nil, nil, nil
}

// verify holds the cluster, healed, to everything.
func (r *run) verify(ctx context.Context, l *load, stays, gone []string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*recovers)
	defer cancel()
	for _, w := range l.writers {
		if err := w.Stop(ctx); err != nil {
			return err
		}
	}
	l.writers = nil
	logs, err := r.ledger.Verify(ctx, r.brokers(), read())
	if err != nil {
		return err
	}
	ends := map[oracle.TP]int64{}
	for tp, log := range logs {
		ends[tp] = int64(len(log))
	}
	for i, reader := range l.readers {
		if err := reader.Await(ctx, ends); err != nil {
			return err
		}
		seen, bad := reader.Stop()
		if err := append(bad, oracle.Same(l.names[i], seen, logs)...).Err(); err != nil {
			return err
		}
	}
	l.readers = nil
	if err := l.group.AwaitAll(ctx, ends); err != nil {
		return err
	}
	group := l.group
	l.group = nil
	seen, bad, err := group.Stop(ctx)
	if err != nil {
		return err
	}
	if err := append(bad, oracle.Same("the group", seen, logs)...).Err(); err != nil {
		return err
	}
	dirs, err := r.topicDirs(ctx)
	if err != nil {
		return err
	}
	same, cancel := context.WithTimeout(ctx, recovers)
	defer cancel()
	if err := oracle.SameSegments(same, dirs); err != nil {
		return err
	}
	if err := r.checkSide(same, stays, gone); err != nil {
		return err
	}
	for _, m := range r.machines {
		if err := r.awaitMetric(same, m, "chronik_replicas_fenced 0"); err != nil {
			return err
		}
	}
	if r.peakRSS > maxRSS {
		return fmt.Errorf("a node held %d MiB, more than %d", r.peakRSS>>20, maxRSS>>20)
	}
	g := group.Totals()
	r.log("the group: %d records consumed, %d of them again; %d commits, %d looks at what is committed, %d members; %d replicas moved off wiped disks",
		g.Consumed, g.Repeated, g.Commits, g.Looks, g.Joined, r.moved)
	sum := r.ledger.Totals()
	r.log("%d records acknowledged, %d of unknown fate, all as promised; %d topics made, %d of them deleted; at most %v without an acknowledgement, %d MiB",
		sum.Acked, sum.Unknown, len(stays)+len(gone), len(gone), sum.LongestGap.Round(time.Millisecond), r.peakRSS>>20)
	return nil
}
