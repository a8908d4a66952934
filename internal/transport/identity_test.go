package transport

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/chronik-go/chronik/internal/transport/peerpb"
)

// still stops the clock by which a node's log says the same again, ten seconds later: a slow machine needs longer for a test.
func still(c *Config, _ *recorder) { c.Clock = &fakeClock{now: time.Now()} }

// refusedBoth expects that a's attempts to reach b are refused, for a reason that both logs give in one line. Their clocks stand still.
func refusedBoth(t *testing.T, a, b *testNode, reason string) {
	t.Helper()
	if err := a.cl.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	a.cl.Send(2, appendMsg(1, 2, 3))
	within(t, "several attempts are refused", func() bool {
		return len(a.log.lines(reason)) > 0 && len(b.log.lines(reason)) > 0 && a.cl.peerStates()[0].Control.Dropped+a.cl.peerStates()[0].Bulk.Dropped > 0
	})
	for range 5 { // more refusals follow, silently
		a.cl.Send(2, appendMsg(1, 2, 3))
		before := a.cl.peerStates()[0].Bulk.Dropped
		within(t, "another attempt", func() bool { return a.cl.peerStates()[0].Bulk.Dropped > before })
	}
	for name, n := range map[string]*testNode{"caller": a, "server": b} {
		if lines := n.log.lines("level=WARN", reason); len(lines) != 1 {
			t.Errorf("the %s's log has %d lines: %s", name, len(lines), strings.Join(lines, "\n"))
		}
	}
	if a.cl.Connected(2) || len(b.rec.received()) != 0 || a.rec.history() != "" {
		t.Errorf("something got through: %v, history %q", b.rec.received(), a.rec.history())
	}
	if _, err := a.cl.Call(t.Context(), 2, 1, nil); !errors.Is(err, ErrPeerDown) || !strings.Contains(err.Error(), reason) {
		t.Errorf("a call says %v", err)
	}
}

func TestNodeOfAnotherClusterIsRefused(t *testing.T) {
	a := newNode(t, 1, still)
	b := newNode(t, 2, still, func(c *Config, _ *recorder) { c.ClusterID = func() string { return "cluster-b" } }).started()
	refusedBoth(t, a, b, "node 1 belongs to cluster")
}

func TestWrongNodeAtAnAddressIsRefused(t *testing.T) {
	refusedBoth(t, newNode(t, 1, still), newNode(t, 3, still).started(), "node 2 was meant, this is node 3")
}

func TestDuplicateNodeIDIsRefused(t *testing.T) {
	refusedBoth(t, newNode(t, 1, still), newNode(t, 1, still).started(), "both sides are configured as node 1")
}

func TestVersionsThatDoNotOverlapAreRefused(t *testing.T) {
	a := newNode(t, 1, still, func(c *Config, _ *recorder) { c.Version, c.MinVersion = 5, 3 })
	b := newNode(t, 2, still, func(c *Config, _ *recorder) { c.Version, c.MinVersion = 2, 1 }).started()
	refusedBoth(t, a, b, "node 1 speaks peer protocol 3 to 5, node 2 speaks 1 to 2")
}

func TestVersionsThatOverlapConnect(t *testing.T) {
	a := newNode(t, 1, func(c *Config, _ *recorder) { c.Version, c.MinVersion = 5, 2 })
	b := newNode(t, 2, func(c *Config, _ *recorder) { c.Version, c.MinVersion = 2, 1 }).started()
	a.connect(b)
}

func TestVerifyRefusesAForeignDirectory(t *testing.T) {
	a := newNode(t, 1, still)
	b := newNode(t, 2, still, func(c *Config, _ *recorder) {
		c.Verify = func(p PeerInfo) error {
			if p.Dir == a.cfg.Dir && p.NodeID == 1 {
				return errors.New("the cluster knows another directory of node 1")
			}
			return nil
		}
	}).started()
	refusedBoth(t, a, b, "the cluster knows another directory of node 1")
}

// A server that accepts what it should not is still refused by the caller.
func TestCallerChecksTheAnswer(t *testing.T) {
	b := newNode(t, 2).started()
	a := newNode(t, 1, still, func(c *Config, _ *recorder) {
		c.Verify = func(p PeerInfo) error {
			if p.Dir == b.cfg.Dir {
				return errors.New("the directory of node 2 was replaced")
			}
			return nil
		}
	})
	if err := a.cl.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	within(t, "refused", func() bool { return len(a.log.lines("level=WARN", "the directory of node 2 was replaced")) == 1 })
	if a.cl.Connected(2) {
		t.Error("connected")
	}
}

// RAFT.md 6: before the cluster exists nodes can only ask each other who they are.
func TestOnlyHelloBeforeTheClusterIsFormed(t *testing.T) {
	var cluster atomic.Value
	cluster.Store("")
	founders := []Founder{{1, uuid.New(), "h1:5001"}, {2, uuid.New(), "h2:5001"}}
	var asked atomic.Pointer[PeerInfo]
	unformed := func(c *Config, _ *recorder) { c.ClusterID = func() string { return cluster.Load().(string) } }
	a := newNode(t, 1, unformed, func(c *Config, _ *recorder) {
		c.Hello = func(PeerInfo) PeerInfo { return PeerInfo{Payload: []byte("from a"), Founding: founders[:1]} }
	}).started()
	b := newNode(t, 2, unformed, func(c *Config, _ *recorder) {
		c.Hello = func(from PeerInfo) PeerInfo {
			asked.Store(&from)
			return PeerInfo{NodeID: 99, Payload: []byte("empty"), Founding: founders}
		}
	}).started()

	got, err := a.cl.Hello(t.Context(), b.addr())
	if err != nil {
		t.Fatal(err)
	}
	want := PeerInfo{NodeID: 2, Dir: b.cfg.Dir, Version: 1, MinVersion: 1, Payload: []byte("empty"), Founding: founders}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("hello says %+v, want %+v", got, want)
	}
	wantFrom := PeerInfo{NodeID: 1, Dir: a.cfg.Dir, Version: 1, MinVersion: 1, Payload: []byte("from a"), Founding: founders[:1]}
	if from := asked.Load(); from == nil || !reflect.DeepEqual(*from, wantFrom) {
		t.Errorf("b was told %+v, want %+v", from, wantFrom)
	}

	if err := a.cl.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.cl.Call(t.Context(), 2, 1, nil); !errors.Is(err, ErrPeerDown) {
		t.Errorf("a call before formation: %v", err)
	}
	// A formed node meets one that is not: still no stream, and nothing alarming in the logs.
	c := newNode(t, 3)
	if err := c.cl.AddPeer(2, b.addr()); err != nil {
		t.Fatal(err)
	}
	within(t, "an attempt", func() bool { return strings.Contains(c.cl.peerStates()[0].LastError, "no cluster yet") })
	if a.cl.Connected(2) || c.cl.Connected(2) {
		t.Fatal("a stream before the cluster was formed")
	}
	cluster.Store(testCluster)
	a.awaitUp(2)
	c.awaitUp(2)
	for _, n := range []*testNode{a, b, c} {
		if lines := n.log.lines("level=WARN"); len(lines) != 0 {
			t.Errorf("node %d warns: %v", n.cfg.NodeID, lines)
		}
	}
}

func TestHelloToNobodyIsBounded(t *testing.T) {
	a := newNode(t, 1)
	if _, err := a.cl.Hello(t.Context(), absentAddr(t)); err == nil {
		t.Error("an answer from nobody")
	}
	b := newNode(t, 2) // listens, does not serve
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.cl.Hello(ctx, b.addr()); err == nil {
		t.Error("an answer from a server that was not started")
	}
}

// rawControl opens a control stream to n as node from, without a Client.
func rawControl(t *testing.T, n *testNode, from int32) (grpc.ClientStream, func()) {
	t.Helper()
	cfg := Config{NodeID: from, ClusterID: func() string { return testCluster }}.withDefaults()
	cc, closeConn, err := dial(t.Context(), &cfg, n.addr())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(introduce(t.Context(), cfg.self(), n.cfg.NodeID), bound)
	s, err := peerpb.NewPeerClient(cc).Control(ctx, grpc.CallContentSubtype(codecName))
	if err != nil {
		t.Fatal(err)
	}
	if md, err := s.Header(); err != nil || len(md.Get(mdNode)) != 1 {
		t.Fatalf("handshake: %v, %v", md, err)
	}
	return s, func() { cancel(); closeConn() }
}

func sendRaw(t *testing.T, s grpc.ClientStream, envs ...Envelope) {
	t.Helper()
	var w frameWriter
	bufs, err := encodeEnvelopes(&w, envs)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&outFrame{bufs}); err != nil {
		t.Fatal(err)
	}
}

// A stream that the peer has replaced may still have frames to read; they would come out of order.
func TestSupersededStreamDeliversNothing(t *testing.T) {
	b := newNode(t, 2).started()
	old, closeOld := rawControl(t, b, 1)
	defer closeOld()
	sendRaw(t, old, heartbeat(1, 2, 1))
	within(t, "the first stream delivers", func() bool { return len(b.rec.received()) == 1 })
	other, closeOther := rawControl(t, b, 7) // another peer does not matter
	defer closeOther()
	latest, closeLatest := rawControl(t, b, 1)
	defer closeLatest()
	sendRaw(t, latest, heartbeat(1, 2, 2))
	within(t, "the second one delivers", func() bool { return len(b.rec.received()) == 2 })
	if err := old.RecvMsg(&inFrame{}); status.Code(err) != codeSuperseded {
		t.Errorf("the old stream ended with %v", err)
	}
	sendRaw(t, other, heartbeat(1, 2, 3))
	sendRaw(t, latest, heartbeat(1, 2, 4))
	within(t, "the others go on", func() bool { return len(b.rec.received()) == 4 })
}

// The same for a frame that the old stream had already read when it was replaced.
func TestSupersededStreamsLastFrameIsDiscarded(t *testing.T) {
	b := newNode(t, 2)
	key := slotKey{1, "bulk"}
	sl, first, replaced := b.srv.take(key)
	delivered := 0
	if err := sl.deliver(first, func() { delivered++ }); err != nil || delivered != 1 {
		t.Fatalf("the owner: %v, %d delivered", err, delivered)
	}
	again, second, _ := b.srv.take(key)
	select {
	case <-replaced:
	default:
		t.Error("the old stream is not told")
	}
	if err := sl.deliver(first, func() { delivered++ }); status.Code(err) != codeSuperseded || delivered != 1 {
		t.Errorf("the old stream: %v, %d delivered", err, delivered)
	}
	if err := again.deliver(second, func() { delivered++ }); err != nil || delivered != 2 {
		t.Errorf("the new stream: %v, %d delivered", err, delivered)
	}
}

func TestDamagedFrameEndsItsStreamOnly(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2).started()
	a.connect(b)
	raw, closeRaw := rawControl(t, b, 7)
	defer closeRaw()
	var w frameWriter
	bufs, err := encodeEnvelopes(&w, []Envelope{heartbeat(1, 2, 3)})
	if err != nil {
		t.Fatal(err)
	}
	bufs[0].ReadOnlyData()[framePrefix+1] ^= 1
	if err := raw.SendMsg(&outFrame{bufs}); err != nil {
		t.Fatal(err)
	}
	if err := raw.RecvMsg(&inFrame{}); err == nil || !strings.Contains(err.Error(), "CRC") {
		t.Errorf("the stream ended with %v", err)
	}
	a.cl.Send(2, heartbeat(4, 2, 3))
	within(t, "others go on", func() bool { return len(b.rec.received()) == 1 })
	if n := len(b.log.lines("level=WARN", "damaged frame", "peer=7")); n != 1 {
		t.Errorf("logged %d times", n)
	}
}
