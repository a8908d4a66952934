package throttle

import (
	"testing"
	"time"
)

// drain sends pieces whenever the budget lets it, for a while of an invented clock, and returns the bytes that went.
func drain(l *Limit, from time.Time, d time.Duration, piece int) (sent int) {
	for now := from; now.Before(from.Add(d)); {
		if w := l.Wait(now); w > 0 {
			now = now.Add(w)
			continue
		}
		l.Spend(piece)
		sent += piece
	}
	return sent
}

func TestLimitBoundsBytesByItsClock(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		rate  int64
		piece int
	}{{1000, 10}, {1000, 5000}, {1 << 20, 1 << 20}, {1 << 20, 4096}, {7, 1000}} {
		l := NewLimit(func() int64 { return c.rate })
		const seconds = 60
		sent := drain(l, start, seconds*time.Second, c.piece)
		// One second's worth is there at the beginning, and the last piece may go into debt.
		if most := int(c.rate)*(seconds+1) + c.piece; sent > most {
			t.Errorf("%d bytes a second, pieces of %d: %d bytes in %d s, at most %d", c.rate, c.piece, sent, seconds, most)
		}
		if least := int(c.rate)*seconds - c.piece; sent < least {
			t.Errorf("%d bytes a second, pieces of %d: only %d bytes in %d s", c.rate, c.piece, sent, seconds)
		}
		if bytes, waited := l.Spent(); bytes != int64(sent) || waited <= 0 || waited > (seconds+1)*time.Second {
			t.Errorf("counted %d bytes of %d, and %v of waiting", bytes, sent, waited)
		}
	}
}

func TestLimitChangesAtOnce(t *testing.T) {
	rate, now := int64(Unlimited), time.Unix(1000, 0)
	l := NewLimit(func() int64 { return rate })
	l.Spend(1 << 30)
	if w := l.Wait(now); w != 0 {
		t.Fatalf("without a rate: wait %v", w)
	}
	rate = 10
	if w := l.Wait(now); w != 0 {
		t.Fatalf("what went before there was a rate is held against it: wait %v", w)
	}
	l.Spend(10_000)
	if w := l.Wait(now); w != MaxWait {
		t.Fatalf("in debt for 1,000 s: wait %v", w)
	}
	rate = 1_000_000
	if w := l.Wait(now.Add(MaxWait)); w <= 0 || w > 20*time.Millisecond {
		t.Fatalf("raised: wait %v, want what the debt takes at the new rate", w)
	}
	rate = 0
	if w := l.Wait(now.Add(time.Hour)); w != 0 && w != MaxWait {
		t.Fatalf("wait %v", w)
	}
	l.Spend(1)
	for _, d := range []time.Duration{2 * time.Hour, 200 * time.Hour} {
		if w := l.Wait(now.Add(d)); w != MaxWait {
			t.Fatalf("rate 0 lets something pass: wait %v", w)
		}
	}
	rate = Unlimited
	if w := l.Wait(now); w != 0 {
		t.Fatalf("the rate taken away: wait %v", w)
	}
}

func TestThrottledReplicas(t *testing.T) {
	for _, c := range []struct {
		value           string
		partition, node int32
		want            bool
	}{
		{"", 0, 1, false}, {"*", 7, 9, true}, {" * ", 7, 9, true}, {"0:1, 1:2", 0, 1, true}, {"0:1,1:2", 1, 2, true}, {"0:1,1:2", 0, 2, false},
		{"none", 0, 1, false},
	} {
		if got := ParseReplicas(c.value).Has(c.partition, c.node); got != c.want {
			t.Errorf("%q has %d:%d: %v", c.value, c.partition, c.node, got)
		}
	}
	var none *Replication
	if none.Sends("t", 0) || none.Receives("t", 0, 1) {
		t.Error("no throttle throttles")
	}
	r := &Replication{Node: 1, Replicas: func(topic string) (Replicas, Replicas) {
		return ParseReplicas("0:1"), ParseReplicas("0:2")
	}}
	if !r.Sends("t", 0) || r.Sends("t", 1) || !r.Receives("t", 0, 2) || r.Receives("t", 0, 1) {
		t.Error("the wrong replicas are throttled")
	}
}
