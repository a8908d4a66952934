package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// One of the ancestor's seven.
func TestRaftClientConnection(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	if a.cl.Connected(2) || len(a.cl.Peers()) != 0 {
		t.Fatal("connected to a peer that was never added")
	}
	a.connect(b)
	if got := a.cl.Peers(); !slices.Equal(got, []int32{2}) {
		t.Fatalf("peers %v", got)
	}
	within(t, "the handler hears of it", func() bool { return a.rec.history() == "up 2" })
	if s := a.cl.peerStates(); len(s) != 1 || !s[0].Connected || s[0].Addr != b.addr() || s[0].LastError != "" {
		t.Fatalf("states %+v", s)
	}
	a.cl.RemovePeer(2)
	within(t, "removed", func() bool { return a.rec.history() == "up 2, down 2" })
	if a.cl.Connected(2) || len(a.cl.Peers()) != 0 {
		t.Fatal("still a peer after RemovePeer")
	}
	for _, bad := range []struct {
		id   int32
		addr string
	}{{0, "x:1"}, {-3, "x:1"}, {3, ""}, {1, "x:1"}} {
		if err := a.cl.AddPeer(bad.id, bad.addr); err == nil {
			t.Errorf("AddPeer(%d, %q) was accepted", bad.id, bad.addr)
		}
	}
}

// One of the ancestor's seven.
func TestRaftClientClone(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	var dials atomic.Int32
	cfg := a.cfg
	cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	first := NewClient(cfg, a.rec)
	second := first.Clone()
	third := second.Clone()
	if err := second.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	within(t, "the clones share a peer", func() bool { return first.Connected(2) && third.Connected(2) })
	within(t, "the peer's other streams have dialled too", func() bool { return dials.Load() >= 3 })
	first.Close()
	first.Close() // idempotent: must not give up another clone's share
	first.Send(2, heartbeat(1, 2, 3))
	if err := first.AddPeer(3, "127.0.0.1:1"); err == nil {
		t.Error("a closed handle added a peer")
	}
	if _, err := first.Call(t.Context(), 2, 1, nil); err == nil {
		t.Error("a closed handle made a call")
	}
	second.Close()
	if c := second.Clone(); c.AddPeer(3, "127.0.0.1:1") == nil {
		t.Error("a clone of a closed handle works")
	}
	third.Send(2, heartbeat(9, 2, 3))
	within(t, "the last clone still sends", func() bool { return len(b.rec.received()) == 1 })
	if got := b.rec.received()[0].Group; got != 9 {
		t.Errorf("received group %d: a closed handle sent", got)
	}
	third.Close()
	if third.Connected(2) {
		t.Error("connected after the last clone was closed")
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections for one peer and three streams", n)
	}
}

// One of the ancestor's seven, with two real gRPC servers.
func TestTwoNodeMessagePassing(t *testing.T) {
	a, b := newNode(t, 1).started(), newNode(t, 2).started()
	a.connect(b)
	b.connect(a)
	want := sampleEnvelopes()
	for _, e := range want {
		a.cl.Send(2, e)
		b.cl.Send(1, e)
	}
	for _, n := range []*testNode{a, b} {
		within(t, "everything arrives", func() bool { return len(n.rec.received()) == len(want) })
		other := 3 - n.cfg.NodeID
		if from := n.rec.froms; slices.ContainsFunc(from, func(id int32) bool { return id != other }) {
			t.Errorf("node %d: messages from %v", n.cfg.NodeID, from)
		}
		got := n.rec.received()
		var bulk, control []Envelope // the two streams keep their own order each
		for _, e := range got {
			if e.bulky() {
				bulk = append(bulk, e)
			} else {
				control = append(control, e)
			}
		}
		var wantBulk, wantControl []Envelope
		for _, e := range want {
			if e.bulky() {
				wantBulk = append(wantBulk, e)
			} else {
				wantControl = append(wantControl, e)
			}
		}
		if !reflect.DeepEqual(bulk, wantBulk) || !reflect.DeepEqual(control, wantControl) {
			t.Errorf("node %d received something else", n.cfg.NodeID)
		}
		if d := n.rec.dropped(); len(d) != 0 {
			t.Errorf("node %d: drops %v", n.cfg.NodeID, d)
		}
	}
}

func TestLargeEntriesPass(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	a.connect(b)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	a.cl.Send(2, appendMsg(4, 2, 7, data))
	within(t, "16 MiB arrive", func() bool { return len(b.rec.received()) == 1 })
	if got := b.rec.received()[0].Raft.Entries[0].Data; !bytes.Equal(got, data) {
		t.Fatal("they arrived changed")
	}
}

func TestMessageThatCannotBeSentIsReported(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	a.connect(b)
	a.cl.Send(2, appendMsg(4, 2, 7, make([]byte, MaxBodyBytes+1)))
	local := heartbeat(5, 2, 1)
	local.Raft.Type = raftpb.MsgStorageAppend
	a.cl.Send(2, local)
	within(t, "both are reported", func() bool { return len(a.rec.dropped()) == 2 })
	a.cl.Send(2, heartbeat(6, 2, 1))
	within(t, "the stream survives", func() bool { return len(b.rec.received()) == 1 })
}

// The lineage: concurrent sends reordered messages.
func TestConcurrentSendsKeepOrder(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	a.connect(b)
	const senders, each = 8, 3000
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			cl := a.cl.Clone()
			defer cl.Close()
			for i := range uint64(each) {
				if s%2 == 0 {
					// All of it fits into what may wait for a link that is not up yet: the bulk link may come up last.
					cl.Send(2, appendMsg(uint64(s+1), 2, i, binary.AppendUvarint(make([]byte, i%250), i)))
				} else {
					cl.Send(2, heartbeat(uint64(s+1), 2, i))
				}
			}
		})
	}
	wg.Wait()
	within(t, "everything arrives", func() bool {
		b.rec.mu.Lock()
		defer b.rec.mu.Unlock()
		return len(b.rec.envs) == senders*each
	})
	next := map[uint64]uint64{}
	for _, e := range b.rec.received() {
		n := e.Raft.Index
		if e.Raft.Type == raftpb.MsgHeartbeat {
			n = e.Raft.Term
		}
		if n != next[e.Group] {
			t.Fatalf("group %d: message %d when %d was next", e.Group, n, next[e.Group])
		}
		next[e.Group]++
	}
}

// The lineage: send failures were only logged.
func TestSendFailuresAreReported(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	a.connect(b)
	a.cl.Send(2, appendMsg(1, 22, 5, []byte("x")))
	within(t, "it arrives", func() bool { return len(b.rec.received()) == 1 })
	b.srv.Close()
	// The connection broke with group 1's message possibly under way.
	within(t, "what was in flight is reported", func() bool { return slices.Contains(a.rec.dropped(), drop{2, 1, 22, false}) })
	within(t, "down", func() bool { return !a.cl.Connected(2) })
	for range 3 {
		a.cl.Send(2, appendMsg(2, 23, 5))
		a.cl.Send(2, snapMsg(3, 24))
		a.cl.Send(2, heartbeat(4, 25, 1))
	}
	for _, d := range []drop{{2, 2, 23, false}, {2, 3, 24, true}, {2, 4, 25, false}} {
		within(t, fmt.Sprintf("%v is reported", d), func() bool { return slices.Contains(a.rec.dropped(), d) })
	}
}

// The lineage: peer addresses were registered late, and what was sent before was lost for good.
func TestPeerAddressRegisteredLate(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	for range 3 {
		a.cl.Send(2, appendMsg(1, 22, 5))
		a.cl.Send(2, Envelope{Kind: KindLeaders, Body: []byte("no group")})
	}
	a.cl.Send(2, snapMsg(1, 22))
	want := []drop{{2, 1, 22, false}, {2, 1, 22, true}}
	within(t, "the loss is reported, so that raft sends again", func() bool { return len(a.rec.dropped()) >= len(want) })
	if got := a.rec.dropped(); !reflect.DeepEqual(got, want) {
		t.Fatalf("reported %v, want %v", got, want)
	}
	if err := a.cl.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	a.cl.Send(2, appendMsg(1, 22, 5)) // at once: waits for the first connection
	within(t, "it arrives once the address is known", func() bool { return len(b.rec.received()) == 1 })
}

// The lineage: dialling an absent peer aborted start-up.
func TestAbsentPeerAtStartIsNormal(t *testing.T) {
	a := newNode(t, 1).started()
	b := newNode(t, 2, func(c *Config, _ *recorder) { c.Listen = absentAddr(t) })
	addr := b.addr()
	b.srv.Close()
	if err := a.cl.AddPeer(2, addr); err != nil {
		t.Fatalf("an absent peer is an error: %v", err)
	}
	var dials int
	within(t, "several attempts", func() bool {
		dials++
		s := a.cl.peerStates()[0]
		return dials > 300 && s.LastError != "" && !s.Connected
	})
	if n := len(a.log.lines("not reachable")); n != 1 {
		t.Errorf("an absent peer was logged %d times", n)
	}
	b.cfg.Listen = addr
	b.newServer()
	b.started()
	a.awaitUp(2)
	a.cl.Send(2, heartbeat(1, 2, 3))
	within(t, "a message arrives", func() bool { return len(b.rec.received()) == 1 })
}

// The lineage: the gRPC service was never started. Until Start nothing is answered; from Start on everything is.
func TestServiceAnswersOnceStarted(t *testing.T) {
	a := newNode(t, 1, func(c *Config, _ *recorder) { c.DialTimeout = 300 * time.Millisecond })
	b := newNode(t, 2)
	if err := a.cl.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	within(t, "an attempt fails", func() bool { return a.cl.peerStates()[0].LastError != "" })
	if a.cl.Connected(2) {
		t.Fatal("connected to a server that was not started")
	}
	b.srv.Start()
	b.srv.Start() // no harm
	a.awaitUp(2)
	if got, err := a.cl.Call(t.Context(), 2, 1, []byte("hi")); err != nil || string(got) != "echo hi" {
		t.Fatalf("call: %q, %v", got, err)
	}
}

// The lineage: no keepalive; idle connections were dropped at 23 s. Here the server probes every second (gRPC lets clients
// probe every ten at most) and nothing is sent for several of those.
func TestIdleConnectionsSurvive(t *testing.T) {
	keep := func(c *Config, _ *recorder) { c.KeepaliveTime, c.KeepaliveTimeout = 2*time.Second, bound }
	var dials atomic.Int32
	a := newNode(t, 1, keep, func(c *Config, _ *recorder) {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	})
	b := newNode(t, 2, keep).started()
	a.connect(b)
	idle := slowIdle(3500 * time.Millisecond)
	for end := time.Now().Add(idle); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !a.cl.Connected(2) {
			t.Fatal("an idle connection was dropped")
		}
	}
	a.cl.Send(2, heartbeat(1, 2, 3))
	a.cl.Send(2, appendMsg(1, 2, 3))
	within(t, "both streams still work", func() bool { return len(b.rec.received()) == 2 })
	if n := dials.Load(); n != 3 || a.rec.history() != "up 2" { // connect has waited for all three
		t.Errorf("%d connections, history %q", n, a.rec.history())
	}
}

func TestReconnectAfterServerRestart(t *testing.T) {
	a := newNode(t, 1).started()
	b := newNode(t, 2, func(c *Config, _ *recorder) { c.Listen = absentAddr(t) }).started()
	a.connect(b)
	for round := range 3 {
		a.cl.Send(2, heartbeat(uint64(round+1), 2, 3))
		within(t, "a message arrives", func() bool { return len(b.rec.received()) == round+1 })
		if err := b.srv.Close(); err != nil {
			t.Fatal(err)
		}
		within(t, "down", func() bool { return !a.cl.Connected(2) })
		b.newServer()
		b.srv.Start()
		a.awaitUp(2)
	}
	want := strings.Repeat("up 2, down 2, ", 3) + "up 2"
	within(t, "ups and downs alternate", func() bool { return a.rec.history() == want })
	if n := len(a.log.lines("lost the connection")); n != 3 {
		t.Errorf("three losses were logged in %d lines", n)
	}
}

// A node that has waited long for a peer must not wait for its backoff to end when that peer calls.
func TestPeerThatCallsIsDialledAtOnce(t *testing.T) {
	addr := absentAddr(t)
	a := newNode(t, 1, func(c *Config, _ *recorder) { c.BackoffMin, c.BackoffMax = time.Hour, time.Hour }).started()
	if err := a.cl.AddPeer(2, addr); err != nil {
		t.Fatal(err)
	}
	within(t, "the first attempt fails", func() bool { return a.cl.peerStates()[0].LastError != "" })
	b := newNode(t, 2, func(c *Config, _ *recorder) { c.Listen = addr }).started()
	b.connect(a)
	within(t, "dialled back, long before the backoff's half an hour at least", func() bool { return a.cl.Connected(2) })
}

func TestPeerWithNewAddressReplacesTheOld(t *testing.T) {
	a := newNode(t, 1)
	b, c := newNode(t, 2).started(), newNode(t, 2).started()
	a.connect(b)
	if err := a.cl.AddPeer(2, b.addr()); err != nil { // the same again: nothing happens
		t.Fatal(err)
	}
	if err := a.cl.AddPeer(2, c.addr()); err != nil {
		t.Fatal(err)
	}
	a.cl.Send(2, heartbeat(1, 2, 3))
	within(t, "the new address gets it", func() bool { return len(c.rec.received()) == 1 })
	within(t, "events in order", func() bool { return a.rec.history() == "up 2, down 2, up 2" })
	if n := len(b.rec.received()); n != 0 {
		t.Errorf("the old address got %d messages", n)
	}
}

// A peer that takes nothing must not hold up its senders; what does not fit is reported.
func TestStalledPeerDoesNotBlockSend(t *testing.T) {
	release := make(chan struct{})
	a := newNode(t, 1, func(c *Config, _ *recorder) { c.BulkBytes = 8 << 20 })
	b := newNode(t, 2, func(_ *Config, r *recorder) { r.onEnvelopes = func(int32, []Envelope) { <-release } }).started()
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-release:
		default:
			close(release)
		}
	}))
	a.connect(b)
	data := make([]byte, 256<<10)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range 300 { // 75 MiB: windows and outbox together hold less
			a.cl.Send(2, appendMsg(uint64(i%3+1), 2, uint64(i), data))
		}
	}()
	select {
	case <-sent:
	case <-time.After(bound):
		close(release)
		t.Fatal("Send waits for a peer that takes nothing")
	}
	within(t, "the overflow is reported", func() bool { return len(a.rec.dropped()) >= 3 })
	s := a.cl.peerStates()[0]
	if s.Bulk.QueuedBytes > 8<<20 || s.Bulk.Dropped == 0 {
		t.Errorf("queue %d bytes, dropped %d", s.Bulk.QueuedBytes, s.Bulk.Dropped)
	}
	close(release)
	within(t, "the rest arrives", func() bool {
		s := a.cl.peerStates()[0]
		return uint64(len(b.rec.received())) == 300-s.Bulk.Dropped
	})
	last := int64(-1)
	for _, e := range b.rec.received() {
		if int64(e.Raft.Index) <= last {
			t.Fatalf("message %d after %d", e.Raft.Index, last)
		}
		last = int64(e.Raft.Index)
	}
}

// A peer that accepts connections and says nothing must not hold up anything either.
func TestSilentListenerTimesOut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := newNode(t, 1, func(c *Config, _ *recorder) { c.DialTimeout = 100 * time.Millisecond })
	if err := a.cl.AddPeer(2, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	a.cl.Send(2, appendMsg(1, 2, 3))
	within(t, "reported", func() bool { return slices.Equal(a.rec.dropped(), []drop{{2, 1, 2, false}}) })
}

func TestRemovedPeersMessagesAreReported(t *testing.T) {
	a := newNode(t, 1)
	if err := a.cl.AddPeer(2, absentAddr(t)); err != nil {
		t.Fatal(err)
	}
	a.cl.Send(2, snapMsg(7, 8))
	a.cl.RemovePeer(2)
	within(t, "reported", func() bool { return slices.Contains(a.rec.dropped(), drop{2, 7, 8, true}) })
}

func TestCloseIsQuietAndFinal(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	a.connect(b)
	within(t, "up", func() bool { return a.rec.history() == "up 2" })
	for i := range uint64(100) {
		a.cl.Send(2, appendMsg(i+1, 2, 1, make([]byte, 1000)))
	}
	a.cl.Close()
	drops, history := len(a.rec.dropped()), a.rec.history()
	a.cl.Send(2, heartbeat(1, 2, 3))
	called := false
	a.cl.Forward(2, 1, nil, func(_ []byte, err error) { called = err != nil })
	if !called {
		t.Error("a forward on a closed client did not end with an error")
	}
	if len(a.rec.dropped()) != drops || history != "up 2" {
		t.Errorf("a closed client reports: %d drops, then %d; history %q", drops, len(a.rec.dropped()), history)
	}
}
