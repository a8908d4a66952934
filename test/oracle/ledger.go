// Package oracle knows what a cluster has acknowledged, and holds the cluster to it. It shares no code with the server's way of
// a record: what it writes and reads goes through franz-go.
//
// A Ledger is the book: writers enter every record before it is sent and its offset when it is acknowledged; readers turn what
// the cluster serves back into the records' names; Check compares.
package oracle

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// TP is a topic partition.
type TP struct {
	Topic     string
	Partition int32
}

func (tp TP) String() string { return fmt.Sprintf("%s-%d", tp.Topic, tp.Partition) }

// ID names a record of a partition: the Seq-th, from 0, that Writer sent there. Every record has its own, for good: what a
// client's application sends again gets another.
type ID struct {
	Writer, Seq int32
}

// stranger stands for a record that nobody sent.
var stranger = ID{Writer: -1}

func (id ID) String() string { return fmt.Sprintf("writer %d's record %d", id.Writer, id.Seq) }

// The fates of a record, in place of its offset.
const (
	pending = -1 // sent, and nothing heard yet
	unknown = -2 // an error: it may be there or not
)

// Ledger is the book. Make it with NewLedger; it is safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	writers int32
	ordered map[int32]bool // by writer: even records of unknown fate keep their order
	parts   map[TP]*account
	changed chan struct{} // closed at the next acknowledgement
}

// account is the book of a partition.
type account struct {
	fates   map[int32][]int64 // by writer and sequence number: an offset or a fate
	acked   int
	unknown int
	open    map[int32]int // by writer: pending records
	err     error         // the last one
	last    time.Time     // of the last acknowledgement
	gap     time.Duration // the longest between two
}

// NewLedger returns an empty book.
func NewLedger() *Ledger {
	return &Ledger{parts: map[TP]*account{}, ordered: map[int32]bool{}, changed: make(chan struct{})}
}

// enter makes a writer known, and the partitions that it is going to write to.
func (l *Ledger) enter(ordered bool, load Load) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for part := range load.Partitions {
		if tp := (TP{load.Topic, part}); l.parts[tp] == nil {
			l.parts[tp] = &account{fates: map[int32][]int64{}, open: map[int32]int{}, last: time.Now()}
		}
	}
	w := l.writers
	l.writers++
	l.ordered[w] = ordered
	return w
}

// sent enters a record that is about to be sent.
func (l *Ledger) sent(tp TP, writer int32) ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.parts[tp]
	id := ID{Writer: writer, Seq: int32(len(a.fates[writer]))}
	a.fates[writer] = append(a.fates[writer], pending)
	a.open[writer]++
	return id
}

// ended enters what became of a record: its offset, or an error that leaves its fate open.
func (l *Ledger) ended(tp TP, id ID, offset int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.parts[tp]
	a.open[id.Writer]--
	if err != nil {
		a.fates[id.Writer][id.Seq] = unknown
		a.unknown++
		a.err = err
		return
	}
	a.fates[id.Writer][id.Seq] = offset
	a.acked++
	now := time.Now()
	a.gap, a.last = max(a.gap, now.Sub(a.last)), now
	close(l.changed)
	l.changed = make(chan struct{})
}

// open returns how many of a writer's records are under way.
func (l *Ledger) open(tp TP, writer int32) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parts[tp].open[writer]
}

// Totals is the book's sum.
type Totals struct {
	Acked, Unknown int
	// LongestGap is the longest time in which a partition acknowledged nothing.
	LongestGap time.Duration
}

// Totals adds up.
func (l *Ledger) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	var t Totals
	for _, a := range l.parts {
		t.Acked += a.acked
		t.Unknown += a.unknown
		t.LongestGap = max(t.LongestGap, a.gap)
	}
	return t
}

// Await waits for n more acknowledged records.
func (l *Ledger) Await(ctx context.Context, n int) error {
	goal := l.Totals().Acked + n
	return l.await(ctx, func() error {
		if acked := l.Totals().Acked; acked < goal {
			return fmt.Errorf("%d of %d more records acknowledged", n-(goal-acked), n)
		}
		return nil
	})
}

// AwaitEach waits until every partition that is written to has acknowledged another record.
func (l *Ledger) AwaitEach(ctx context.Context) error {
	before := l.ackedOf()
	return l.await(ctx, func() error {
		var still []string
		var last error
		for tp, n := range l.ackedOf() {
			if n == before[tp] {
				still = append(still, tp.String())
				last = l.lastError(tp)
			}
		}
		if len(still) > 0 {
			slices.Sort(still)
			return fmt.Errorf("nothing acknowledged on %s (an error there: %v)", strings.Join(still, ", "), last)
		}
		return nil
	})
}

func (l *Ledger) lastError(tp TP) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parts[tp].err
}

func (l *Ledger) ackedOf() map[TP]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[TP]int{}
	for tp, a := range l.parts {
		out[tp] = a.acked
	}
	return out
}

func (l *Ledger) await(ctx context.Context, cond func() error) error {
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// maxPadding bounds a value.
const maxPadding = 1200

// value is the bytes of a record: its name, and padding that only this record has.
func value(tp TP, id ID) []byte {
	b := fmt.Appendf(nil, "%s:%d:%d:%d:", tp.Topic, tp.Partition, id.Writer, id.Seq)
	h := fnv.New64a()
	h.Write(b)
	rng := rand.New(rand.NewPCG(h.Sum64(), 0))
	for range rng.IntN(maxPadding) {
		b = append(b, "abcdefghijklmnop"[rng.IntN(16)]) // something for a codec to do
	}
	return b
}

// identify turns a value back into its record's name. It fails if nobody has sent these bytes to this partition.
func (l *Ledger) identify(tp TP, v []byte) (ID, error) {
	f := strings.SplitN(string(v[:min(len(v), 300)]), ":", 5)
	if len(f) < 5 || f[0] != tp.Topic || f[1] != strconv.Itoa(int(tp.Partition)) {
		return ID{}, fmt.Errorf("a record that was never sent there: %.60q", v)
	}
	w, err1 := strconv.ParseInt(f[2], 10, 32)
	s, err2 := strconv.ParseInt(f[3], 10, 32)
	id := ID{Writer: int32(w), Seq: int32(s)}
	if err1 != nil || err2 != nil || !bytes.Equal(v, value(tp, id)) {
		return ID{}, fmt.Errorf("a record with other bytes than were sent: %.60q", v)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.parts[tp]; a == nil || s < 0 || int(s) >= len(a.fates[id.Writer]) {
		return ID{}, fmt.Errorf("a record that was never sent: %v", id)
	}
	return id, nil
}
