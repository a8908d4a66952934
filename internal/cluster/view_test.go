package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type nobody struct{}

func (nobody) Send(int32, transport.Envelope) {}

// idle drives nothing: its replica's shard never runs.
type idle struct{ multiraft.StateMachine }

type images struct {
	p atomic.Pointer[metadata.Image]
}

func (i *images) Image() *metadata.Image { return i.p.Load() }

// change publishes a copy of the image after fn has changed it.
func (i *images) change(fn func(*metadata.Image)) {
	next := *i.p.Load()
	next.Nodes, next.Groups = maps.Clone(next.Nodes), maps.Clone(next.Groups)
	fn(&next)
	i.p.Store(&next)
}

// newImages has an image at index 10 with these nodes and groups 2 to 9.
func newImages(nodes ...int32) *images {
	img := metadata.Empty()
	img.Index, img.NextGroup = 10, 10
	for _, id := range nodes {
		img.Nodes[id] = &metadata.Node{ID: id}
	}
	for g := uint64(2); g < 10; g++ {
		img.Groups[g] = metadata.PartitionRef{}
	}
	i := &images{}
	i.p.Store(img)
	return i
}

type sent struct {
	to   int32
	body []byte
}

// outbox is a Sender that keeps what is sent.
type outbox struct{ all []sent }

func (o *outbox) Send(node int32, env transport.Envelope) {
	if env.Kind != transport.KindLeaders {
		panic(fmt.Sprint("sent an envelope of kind ", env.Kind))
	}
	o.all = append(o.all, sent{node, slices.Clone(env.Body)})
}

// take returns what was sent since the last call, as leaderships by peer.
func (o *outbox) take(t *testing.T) map[int32]map[uint64]uint64 {
	t.Helper()
	out := map[int32]map[uint64]uint64{}
	for _, s := range o.all {
		_, own, err := decodeGossip(s.body)
		if err != nil {
			t.Fatal(err)
		}
		if out[s.to] != nil {
			t.Fatalf("node %d was told twice in one step", s.to)
		}
		out[s.to] = map[uint64]uint64{}
		for _, l := range own {
			out[s.to][l[0]] = l[1]
		}
	}
	o.all = nil
	return out
}

// replicas makes a replica for each group, for observations to come from. They never run.
func replicas(t *testing.T, groups ...uint64) map[uint64]*multiraft.Replica {
	t.Helper()
	log, err := wal.Open(wal.Options{FS: vfs.NewMem(1), Dir: "/wal", Clock: clock.System{}, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	svc, err := multiraft.NewService(multiraft.Config{NodeID: 1, Log: log, Sender: nobody{}, Clock: clock.System{}, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(svc.Close(), log.Close()); err != nil {
			t.Error(err)
		}
	})
	out := map[uint64]*multiraft.Replica{}
	for _, g := range groups {
		cp := wal.Checkpoint{Index: 1, Term: 1}
		cp.ConfState.Voters = []uint64{1, 2, 3}
		if _, err := log.Create(g, cp, nil); err != nil {
			t.Fatal(err)
		}
		if out[g], err = svc.Register(multiraft.RegisterOptions{Topic: fmt.Sprint("t", g), Group: g, Replica: 1, SM: idle{}}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func status(term uint64, leader int32, ready bool) multiraft.Status {
	return multiraft.Status{Term: term, LeaderNode: leader, IsLeader: ready || leader == 1, Ready: ready} // the views are node 1's
}

// Whatever comes in whatever order, the epoch told to clients never falls (design rule 23), and a term has one leader.
func TestEpochsNeverFall(t *testing.T) {
	rs := replicas(t, 2, 3)
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 7))
		v := NewView(1, newImages(1, 2, 3), &outbox{}, clock.System{})
		last := map[uint64][2]int32{}
		for range 60 {
			g := uint64(2 + rng.IntN(2))
			term := uint64(1 + rng.IntN(12))
			leader := int32(1 + (term+g)%3) // raft elects one in a term
			switch rng.IntN(4) {
			case 0:
				v.Observe(rs[g], status(term, leader, leader == 1))
			case 1:
				v.Observe(rs[g], status(term, -1, false)) // an election
			case 2:
				if err := v.HandleGossip(leader, encodeGossip(uint64(rng.IntN(50)), map[uint64]uint64{g: term})); err != nil {
					t.Fatal(err)
				}
			case 3:
				v.PeerDown(leader)
				v.Refresh()
			}
			for _, g := range []uint64{2, 3} {
				node, epoch := v.Leader(g)
				was, known := last[g]
				switch {
				case !known && epoch >= 0, known && epoch > was[1]:
					last[g] = [2]int32{node, epoch}
				case known && epoch < was[1]:
					t.Fatalf("seed %d: group %d: epoch %d after %d", seed, g, epoch, was[1])
				case known && node != was[0]:
					t.Fatalf("seed %d: group %d: epoch %d is of node %d and of node %d", seed, g, epoch, was[0], node)
				}
			}
		}
		if len(last) == 0 {
			t.Fatalf("seed %d: no leader was ever seen", seed)
		}
	}
}

// Metadata indexes of other nodes never fall either: gossip may overtake gossip.
func TestImageIndexNeverFalls(t *testing.T) {
	v := NewView(1, newImages(1, 2), &outbox{}, clock.System{})
	for _, step := range []struct{ told, want uint64 }{{5, 5}, {9, 9}, {7, 9}, {0, 9}, {10, 10}} {
		if err := v.HandleGossip(2, encodeGossip(step.told, nil)); err != nil {
			t.Fatal(err)
		}
		if got := v.ImageIndex(2); got != step.want {
			t.Errorf("told %d: index %d, want %d", step.told, got, step.want)
		}
	}
	if got := v.ImageIndex(1); got != 10 {
		t.Errorf("own index %d", got)
	}
	if got := v.ImageIndex(3); got != 0 {
		t.Errorf("index of a node never heard of: %d", got)
	}
}

// Only what is new is sent, to live peers only; a peer that comes back is told everything, and so is everybody at a refresh.
func TestGossipIsIncrementalAndPeersThatReturnAreToldAll(t *testing.T) {
	rs := replicas(t, 2, 3, 4)
	img, out := newImages(1, 2, 3), &outbox{}
	v := NewView(1, img, out, clock.System{})
	v.PeerUp(2)
	v.Observe(rs[2], status(5, 1, true))
	v.Step()
	if got := out.take(t); len(got) != 1 || !maps.Equal(got[2], map[uint64]uint64{2: 5}) {
		t.Fatalf("first: %v", got)
	}
	v.Step()
	if got := out.take(t); len(got) != 0 {
		t.Fatalf("nothing is new, but sent: %v", got)
	}
	v.Observe(rs[3], status(6, 1, true))
	v.Step()
	if got := out.take(t); len(got) != 1 || !maps.Equal(got[2], map[uint64]uint64{3: 6}) {
		t.Fatalf("news: %v", got)
	}
	v.PeerUp(3)
	v.Observe(rs[4], status(2, 1, true))
	v.Step()
	if got := out.take(t); len(got) != 2 || !maps.Equal(got[3], map[uint64]uint64{2: 5, 3: 6, 4: 2}) || !maps.Equal(got[2], map[uint64]uint64{4: 2}) {
		t.Fatalf("a peer came up: %v", got)
	}
	v.Observe(rs[2], status(7, 3, false)) // lost: no longer told
	v.PeerDown(2)
	v.PeerUp(2)
	v.Step()
	if got := out.take(t); len(got) != 1 || !maps.Equal(got[2], map[uint64]uint64{3: 6, 4: 2}) {
		t.Fatalf("a peer came back: %v", got)
	}
	v.Refresh()
	v.Step()
	if got := out.take(t); len(got) != 2 || len(got[2]) != 2 || len(got[3]) != 2 {
		t.Fatalf("refresh: %v", got)
	}
	v.PeerDown(3)
	img.change(func(i *metadata.Image) { i.Index++ })
	v.ImageChanged()
	select {
	case <-v.Wake():
	default:
		t.Error("a new image wakes nobody")
	}
	v.Step()
	if got := out.take(t); len(got) != 1 || len(got[2]) != 0 {
		t.Fatalf("a new metadata index: %v", got)
	}
}

// What one view sends, another takes: the leader and the index arrive.
// A node that is still starting drops what it is told, and says nothing. So its first word has everything told again: before, it did not know who
// led the groups that it has no replica of until the next refresh, five seconds of coordinators that it could not find (simulator seed 144).
func TestAPeersFirstWordHasItToldAllAgain(t *testing.T) {
	out := &outbox{}
	v := NewView(1, newImages(1, 2), out, clock.System{})
	r := replicas(t, 2)
	v.Observe(r[2], status(7, 1, true))
	v.PeerUp(2)
	v.Step()
	if got := out.take(t); got[2][2] != 7 {
		t.Fatalf("a peer that is there was told %v", got)
	}
	word := encodeGossip(1, nil)
	for i, want := range []uint64{7, 0, 0} {
		if err := v.HandleGossip(2, word); err != nil {
			t.Fatal(err)
		}
		v.Step()
		if got := out.take(t); got[2][2] != want {
			t.Errorf("after word %d it was told %v, want term %d", i+1, got, want)
		}
	}
	v.PeerDown(2)
	v.PeerUp(2)
	v.Step()
	out.take(t)
	if err := v.HandleGossip(2, word); err != nil {
		t.Fatal(err)
	}
	v.Step()
	if got := out.take(t); got[2][2] != 7 {
		t.Errorf("it came back, and after its first word was told %v", got)
	}
}

func TestGossipBetweenViews(t *testing.T) {
	rs := replicas(t, 2)
	out := &outbox{}
	a, b := NewView(1, newImages(1, 2), out, clock.System{}), NewView(2, newImages(1, 2), &outbox{}, clock.System{})
	a.PeerUp(2)
	a.Observe(rs[2], status(4, 1, true))
	a.Step()
	for _, s := range out.all {
		if err := b.HandleGossip(1, s.body); err != nil {
			t.Fatal(err)
		}
	}
	if node, epoch := b.Leader(2); node != 1 || epoch != 4 {
		t.Errorf("leader %d, epoch %d", node, epoch)
	}
	if i := b.ImageIndex(1); i != 10 {
		t.Errorf("index %d", i)
	}
}

// Refresh forgets the leaders of groups that were deleted, and of no others: a group above NextGroup is one that this node's
// image does not know yet.
func TestRefreshForgetsDeletedGroups(t *testing.T) {
	img := newImages(1, 2)
	v := NewView(1, img, &outbox{}, clock.System{})
	err := v.HandleGossip(2, encodeGossip(10, map[uint64]uint64{metadata.MetadataGroup: 3, 4: 3, 5: 3, 10: 3, 11: 3}))
	if err != nil {
		t.Fatal(err)
	}
	img.change(func(i *metadata.Image) { delete(i.Groups, 4) })
	v.Refresh()
	for g, want := range map[uint64]int32{metadata.MetadataGroup: 2, 4: -1, 5: 2, 10: 2, 11: 2} {
		if node, _ := v.Leader(g); node != want {
			t.Errorf("group %d: leader %d, want %d", g, node, want)
		}
	}
}

func TestLiveNodes(t *testing.T) {
	v := NewView(2, newImages(1, 2, 3, 9), &outbox{}, clock.System{})
	want := func(nodes ...int32) {
		t.Helper()
		if got := v.LiveNodes(); !slices.Equal(got, nodes) {
			t.Errorf("live: %v, want %v", got, nodes)
		}
	}
	want(2)
	v.PeerUp(9)
	v.PeerUp(1)
	v.PeerUp(7) // connected, not registered
	want(1, 2, 9)
	v.PeerDown(1)
	v.PeerDown(2) // this node itself is always here
	want(2, 9)
}

// Await returns as soon as its condition holds, misses no change, and ends with its context.
func TestAwait(t *testing.T) {
	v := NewView(1, newImages(1, 2), &outbox{}, clock.System{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := v.Await(ctx, func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for want := range int32(50) {
		wg.Go(func() {
			if err := v.Await(ctx, func() bool { _, e := v.Leader(3); return e >= want+1 }); err != nil {
				t.Errorf("epoch %d: %v", want, err)
			}
		})
	}
	for term := range uint64(50) {
		if err := v.HandleGossip(2, encodeGossip(1, map[uint64]uint64{3: term + 1})); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	short, done := context.WithCancel(ctx)
	done()
	if err := v.Await(short, func() bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("await that can't come true: %v", err)
	}
}

func TestBadGossipChangesNothing(t *testing.T) {
	v := NewView(1, newImages(1, 2), &outbox{}, clock.System{})
	good := encodeGossip(300, map[uint64]uint64{2: 5, 3: 700})
	for cut := range len(good) {
		if err := v.HandleGossip(2, good[:cut]); !errors.Is(err, errGossip) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	for _, b := range [][]byte{append(slices.Clone(good), 0), {2, 0, 0}, {1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}} {
		if err := v.HandleGossip(2, b); !errors.Is(err, errGossip) {
			t.Errorf("%x: %v", b, err)
		}
	}
	if node, _ := v.Leader(2); node != -1 || v.ImageIndex(2) != 0 {
		t.Error("gossip that was refused left something behind")
	}
}

func FuzzDecodeGossip(f *testing.F) {
	f.Add(encodeGossip(0, nil))
	f.Add(encodeGossip(1<<40, map[uint64]uint64{1: 1, 1 << 50: 1 << 62}))
	f.Add([]byte{1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		index, own, err := decodeGossip(b)
		if err != nil {
			if !errors.Is(err, errGossip) || own != nil {
				t.Fatalf("%v with %v", err, own)
			}
			return
		}
		if cap(own) > len(b) {
			t.Fatalf("%d bytes made room for %d leaderships", len(b), cap(own))
		}
		m := map[uint64]uint64{}
		for _, l := range own {
			m[l[0]] = l[1]
		}
		again, own2, err := decodeGossip(encodeGossip(index, m))
		if err != nil || again != index || len(own2) != len(m) {
			t.Fatalf("does not survive: %v", err)
		}
		for _, l := range own2 {
			if m[l[0]] != l[1] {
				t.Fatalf("group %d: term %d became %d", l[0], m[l[0]], l[1])
			}
		}
	})
}

// Who is told of a leader finds it serving: a leader elected whose no-op is not applied yet refuses, and clients then pause.
func TestLeaderIsKnownOnlyOnceItServes(t *testing.T) {
	rs := replicas(t, 2)
	v := NewView(1, newImages(1, 2), nobody{}, clock.System{})
	v.Observe(rs[2], status(5, 1, false))
	if node, epoch := v.Leader(2); node != -1 || epoch != -1 {
		t.Fatalf("elected: node %d epoch %d, want none", node, epoch)
	}
	v.Observe(rs[2], status(5, 1, true))
	if node, epoch := v.Leader(2); node != 1 || epoch != 5 {
		t.Fatalf("serving: node %d epoch %d", node, epoch)
	}
	v.Observe(rs[2], status(6, 2, false)) // node 2 won; it will say itself when it serves
	if node, epoch := v.Leader(2); node != 1 || epoch != 5 {
		t.Fatalf("after another's election: node %d epoch %d", node, epoch)
	}
}
