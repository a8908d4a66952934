package bootstrap

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/vfs"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// world is a set of nodes that talk by Hello only, driven one action at a time.
type world struct {
	t       testing.TB
	rng     *mrand.Rand
	peers   []Peer
	nodes   []*worldNode
	founded map[string]bool // every cluster there ever was
}

type worldNode struct {
	id       int32
	disk     *vfs.Mem
	f        *Formation // nil: down
	inflight map[int32][]Info
	end      error
}

func newWorld(t testing.TB, n int, seed uint64) *world {
	w := &world{t: t, rng: mrand.New(mrand.NewPCG(seed, 7)), founded: map[string]bool{}}
	for i := 1; i <= n; i++ {
		w.peers = append(w.peers, Peer{Node: int32(i), Addr: fmt.Sprint("addr", i)})
	}
	for i := 1; i <= n; i++ {
		w.nodes = append(w.nodes, &worldNode{id: int32(i), disk: vfs.NewMem(seed + uint64(i))})
	}
	return w
}

func (w *world) start(n *worldNode) {
	id, err := Open(OpenOptions{FS: n.disk, Dir: "data", Node: n.id, Rand: rand.Reader})
	if err != nil {
		w.t.Fatalf("node %d: %v", n.id, err)
	}
	n.f, err = New(Options{FS: n.disk, Dir: "data", Identity: id, Peers: w.peers})
	if err != nil {
		w.t.Fatal(err)
	}
	n.inflight = map[int32][]Info{}
	w.record(n)
}

// record checks the invariant whenever a node is a member: no two disks belong to different clusters. (A cluster of which no
// disk is left does not count: there is nothing to contradict.)
func (w *world) record(n *worldNode) {
	id := n.f.Identity()
	if !id.Member() {
		return
	}
	w.founded[id.ClusterID] = true
	for _, o := range w.nodes {
		b, err := vfs.ReadFile(o.disk, "data/"+FileName, 1<<20)
		if err != nil {
			continue
		}
		other, err := decodeIdentity(b)
		if err != nil {
			w.t.Fatal(err)
		}
		if other.Member() && other.ClusterID != id.ClusterID {
			w.t.Fatalf("two clusters were founded: %v on node %d, %v on node %d", id.Founders, n.id, other.Founders, o.id)
		}
	}
}

func (w *world) step(wipes *int) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if n.f == nil {
		if n.end == nil {
			w.start(n)
		}
		return
	}
	switch k := w.rng.IntN(100); {
	case k < 45: // ask: what the peer says now may arrive much later, in order
		p := w.nodes[w.rng.IntN(len(w.nodes))]
		if p != n && p.f != nil && len(n.inflight[p.id]) < 3 {
			n.inflight[p.id] = append(n.inflight[p.id], p.f.Answer())
		}
	case k < 80: // an answer arrives
		id := w.rng.Int32N(int32(len(w.nodes))) + 1
		if q := n.inflight[id]; len(q) > 0 {
			n.inflight[id] = q[1:]
			if err := n.f.Observe(w.peers[id-1], q[0]); err != nil {
				if !errors.Is(err, ErrIdentityLost) {
					w.t.Fatalf("node %d: %v", n.id, err)
				}
				n.f, n.end = nil, err
			}
		}
	case k < 97:
		if _, err := n.f.Decide(); err != nil {
			w.t.Fatal(err)
		}
		w.record(n)
	case k < 99: // power cut
		n.disk = n.disk.CrashClone(w.rng.Uint64())
		n.f = nil
	default:
		if *wipes > 0 {
			*wipes--
			n.disk, n.f = vfs.NewMem(w.rng.Uint64()), nil
		}
	}
}

// Whatever the order in which the nodes come up, hear of each other and crash, one cluster is founded, by all of them.
func TestBootstrapFormsOneCluster(t *testing.T) {
	for seed := range uint64(150) {
		n := int(seed%5) + 1
		w := newWorld(t, n, seed)
		none := 0
		for i := 0; ; i++ {
			w.step(&none)
			members := 0
			for _, x := range w.nodes {
				if x.f != nil && x.f.Identity().ClusterID != "" {
					members++
				}
			}
			if members == n {
				break
			}
			if i > 200_000 {
				t.Fatalf("seed %d: %d of %d nodes are members after %d steps", seed, members, n, i)
			}
		}
		var first *Genesis
		for _, x := range w.nodes {
			id := x.f.Identity()
			if !id.Founding() || len(id.Founders) != n {
				t.Fatalf("seed %d: node %d: %+v", seed, x.id, id)
			}
			g, err := Derive(id.Founders, x.id)
			if err != nil {
				t.Fatal(err)
			}
			if g.Self != uint64(x.id) || len(g.ClusterID) != 22 {
				t.Errorf("%+v", g)
			}
			g.Self = 0
			if first == nil {
				first = g
			} else if !reflect.DeepEqual(first, g) {
				t.Fatalf("seed %d: the first states differ: %+v, %+v", seed, first, g)
			}
		}
	}
}

// Design rule 6, the hard part: disks are emptied while the cluster forms. Perhaps no cluster comes of it, never two.
func TestBootstrapNeverFormsTwoClusters(t *testing.T) {
	formed, refused := 0, 0
	for seed := range uint64(250) {
		w := newWorld(t, 2+int(seed%3), seed)
		wipes := 4
		for range 900 {
			w.step(&wipes)
		}
		formed += len(w.founded)
		for _, n := range w.nodes {
			if n.end != nil {
				refused++
			}
		}
	}
	if formed < 125 || refused < 50 {
		t.Errorf("the test hardly tests: %d clusters formed, %d nodes refused", formed, refused)
	}
	t.Logf("%d of 250 formed a cluster, %d wiped nodes were refused", formed, refused)
}

// Two voters lose their disks; together they are a majority. They must not found anew, with or without the third.
func TestTwoWipedVotersDoNotFoundASecondCluster(t *testing.T) {
	w := newWorld(t, 3, 1)
	form(t, w)
	old := w.nodes[0].f.Identity().ClusterID
	w.nodes[1].disk, w.nodes[2].disk = vfs.NewMem(10), vfs.NewMem(11)
	w.start(w.nodes[1])
	w.start(w.nodes[2])
	exchange := func(among ...*worldNode) (errs []error) {
		for range 5 {
			for _, n := range among {
				for _, p := range among {
					if p != n {
						errs = append(errs, n.f.Observe(w.peers[p.id-1], p.f.Answer()))
					}
				}
				if _, err := n.f.Decide(); err != nil {
					t.Fatal(err)
				}
			}
		}
		return errs
	}
	if err := errors.Join(exchange(w.nodes[1], w.nodes[2])...); err != nil {
		t.Fatal(err)
	}
	for _, n := range w.nodes[1:] {
		if id := n.f.Identity(); id.Member() {
			t.Fatalf("node %d founded %s with the survivor down", n.id, id.ClusterID)
		}
	}
	err := errors.Join(exchange(w.nodes...)...)
	if !errors.Is(err, ErrIdentityLost) || !strings.Contains(err.Error(), "--node-id") {
		t.Errorf("with the survivor up: %v", err)
	}
	for _, n := range w.nodes[1:] {
		if n.f.Identity().Member() {
			t.Errorf("node %d is a member", n.id)
		}
	}
	if w.nodes[0].f.Identity().ClusterID != old {
		t.Error("the survivor changed its mind")
	}
}

func form(t *testing.T, w *world) {
	t.Helper()
	for _, n := range w.nodes {
		w.start(n)
	}
	for range 5 {
		for _, n := range w.nodes {
			for _, p := range w.nodes {
				if p != n {
					if err := n.f.Observe(w.peers[p.id-1], p.f.Answer()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := n.f.Decide(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range w.nodes {
		if id := n.f.Identity(); !id.Member() {
			t.Fatalf("node %d is no member", n.id)
		}
	}
}

func TestNewNodeJoinsExistingCluster(t *testing.T) {
	w := newWorld(t, 3, 2)
	form(t, w)
	disk := vfs.NewMem(3)
	id, err := Open(OpenOptions{FS: disk, Dir: "d", Node: 9, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Options{FS: disk, Dir: "d", Identity: id, Peers: w.peers})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Observe(w.peers[1], w.nodes[1].f.Answer()); err != nil {
		t.Fatal(err)
	}
	if ok, err := f.Decide(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if id := f.Identity(); id.Founding() || id.ClusterID != w.nodes[0].f.Identity().ClusterID {
		t.Errorf("%+v", id)
	}
	if _, err := Derive(f.Identity().Founders, 9); err == nil {
		t.Error("a node that joins derived a first state")
	}
}

func TestPeersThatDoNotFit(t *testing.T) {
	a := newWorld(t, 2, 5)
	form(t, a)
	b := newWorld(t, 2, 6)
	form(t, b)
	open := func(node int32, peers []Peer) (*Formation, error) {
		disk := vfs.NewMem(8)
		id, err := Open(OpenOptions{FS: disk, Dir: "d", Node: node, Rand: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		return New(Options{FS: disk, Dir: "d", Identity: id, Peers: peers})
	}
	f, err := open(9, a.peers)
	if err != nil {
		t.Fatal(err)
	}
	wantErr := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	wantErr("cluster a", f.Observe(a.peers[0], a.nodes[0].f.Answer()), nil)
	wantErr("cluster b", f.Observe(a.peers[1], b.nodes[1].f.Answer()), ErrPeers)
	f, _ = open(9, a.peers)
	wantErr("another node's address", f.Observe(a.peers[0], a.nodes[1].f.Answer()), ErrPeers)
	own := f.Answer()
	own.Node = 1
	wantErr("a copied directory", f.Observe(a.peers[0], own), ErrPeers)
	lie := a.nodes[0].f.Answer()
	lie.Set = lie.Set[:1]
	wantErr("a cluster that is not its set's", f.Observe(a.peers[0], lie), ErrPeers)
	_, err = open(1, []Peer{{2, "x"}, {2, "y"}})
	wantErr("twice", err, ErrPeers)

	// Different --peers: nobody decides, and the log says why.
	var logged bytes.Buffer
	f, _ = open(1, []Peer{{2, "x"}, {3, "y"}})
	f.o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	other := Info{Node: 2, Dir: uuid.New(), Set: []Founder{{Node: 1}, {Node: 2}}}
	for range 3 {
		wantErr("other peers", f.Observe(Peer{2, "x"}, other), nil)
	}
	if ok, _ := f.Decide(); ok || strings.Count(logged.String(), "same --peers") != 1 {
		t.Errorf("decided %v, logged %s", ok, &logged)
	}
	// Two processes under one name: the one that was superseded is not heard again.
	f, _ = open(1, []Peer{{2, "x"}})
	f.o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	d1, d2 := uuid.New(), uuid.New()
	for _, d := range []uuid.UUID{d1, d2, d1} {
		wantErr("dir", f.Observe(Peer{2, "x"}, Info{Node: 2, Dir: d, Set: []Founder{{Node: 1, Dir: f.id.Dir}, {2, d}}}), nil)
	}
	if got := f.Answer().Set[1].Dir; got != d2 || !strings.Contains(logged.String(), "only one process") {
		t.Errorf("view went back to %s; %s", got, &logged)
	}
}

func TestRunFormsAndStaysQuietAfterwards(t *testing.T) {
	const n = 3
	w := newWorld(t, n, 9)
	var mu sync.Mutex
	forms := map[string]*Formation{}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	hello := func(_ context.Context, addr string) (Info, error) {
		mu.Lock()
		f := forms[addr]
		mu.Unlock()
		if f == nil {
			return Info{}, errors.New("connection refused") // not up yet: normal
		}
		return f.Answer(), nil
	}
	ids := make(chan *Identity, n)
	for i, p := range w.peers {
		id, err := Open(OpenOptions{FS: w.nodes[i].disk, Dir: "data", Node: p.Node, Rand: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		f, err := New(Options{FS: w.nodes[i].disk, Dir: "data", Identity: id, Peers: w.peers, Hello: hello, Clock: clock.System{}, Interval: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(i)*5*time.Millisecond, func() {
			mu.Lock()
			forms[p.Addr] = f
			mu.Unlock()
			id, err := f.Run(ctx)
			if err != nil {
				t.Error(err)
			}
			ids <- id
		})
	}
	var cluster string
	for range n {
		id := <-ids
		if id == nil {
			continue
		}
		if cluster == "" {
			cluster = id.ClusterID
		}
		if id.ClusterID != cluster || !id.Founding() {
			t.Errorf("%+v", id)
		}
	}
	// A restart needs nobody.
	id, err := Open(OpenOptions{FS: w.nodes[0].disk.CrashCloneWith(vfs.LoseUnsynced()), Dir: "data", Node: 1, Rand: rand.Reader})
	if err != nil || id.ClusterID != cluster {
		t.Fatal(id, err)
	}
	f, err := New(Options{FS: w.nodes[0].disk, Dir: "data", Identity: id, Peers: w.peers, Hello: func(context.Context, string) (Info, error) {
		t.Error("a member asked its peers")
		return Info{}, errors.New("no")
	}})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Run(ctx); err != nil || again.ClusterID != cluster {
		t.Error(again, err)
	}
}

func TestRunEndsWithItsContextAndOnIdentityLost(t *testing.T) {
	disk := vfs.NewMem(1)
	id, err := Open(OpenOptions{FS: disk, Dir: "d", Node: 1, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{FS: disk, Dir: "d", Identity: id, Peers: []Peer{{1, "a"}, {2, "b"}}, Clock: clock.System{}, Interval: time.Millisecond}
	o.Hello = func(context.Context, string) (Info, error) { return Info{}, errors.New("down") }
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := f.Run(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "[2]") {
		t.Errorf("%v: does not name who is missing", err)
	}
	set := []Founder{{1, uuid.New()}, {2, uuid.New()}}
	o.Hello = func(context.Context, string) (Info, error) {
		return Info{Node: 2, Dir: set[1].Dir, ClusterID: ClusterID(set), Set: set}, nil
	}
	if f, err = New(o); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Run(context.Background()); !errors.Is(err, ErrIdentityLost) {
		t.Error(err)
	}
}

func TestSingleNodeFormsAlone(t *testing.T) {
	for _, peers := range [][]Peer{nil, {{1, "self"}}} {
		disk := vfs.NewMem(1)
		id, err := Open(OpenOptions{FS: disk, Dir: "d", Node: 1, Rand: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		f, err := New(Options{FS: disk, Dir: "d", Identity: id, Peers: peers})
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.Run(context.Background())
		if err != nil || !got.Founding() || len(got.Founders) != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// A decision that did not reach the disk is not told to anybody.
func TestDecisionIsDurableBeforeItIsTold(t *testing.T) {
	w := newWorld(t, 1, 1)
	n := w.nodes[0]
	w.start(n)
	n.f.o.FS = failing{n.disk}
	if _, err := n.f.Decide(); err == nil {
		t.Fatal("decided without a disk")
	}
	if a := n.f.Answer(); a.ClusterID != "" {
		t.Errorf("told: %+v", a)
	}
}

type failing struct{ vfs.FS }

func (failing) Create(string) (vfs.File, error) { return nil, errors.New("input/output error") }

func TestGenesisVoters(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 2, 3: 3, 4: 3, 5: 5, 6: 5, 9: 5} {
		var set []Founder
		for i := n; i >= 1; i-- { // in any order
			set = append(set, Founder{Node: int32(i * 10), Dir: uuid.UUID{byte(i)}})
		}
		g, err := Derive(set, 10)
		if err != nil {
			t.Fatal(err)
		}
		cs := g.Checkpoint.ConfState
		if len(cs.Voters) != want || len(cs.Learners) != n-want || len(g.Members) != n {
			t.Errorf("%d nodes: %+v", n, cs)
		}
		for _, node := range g.Image.Nodes {
			if node.Voter != (int(node.ID) <= want*10) {
				t.Errorf("%d nodes: node %d votes: %v", n, node.ID, node.Voter)
			}
		}
		if g.Checkpoint.Index != 1 || g.Checkpoint.Term != 1 || g.Image.NextReplica != uint64(n)+1 || g.Image.NextGroup != 2 {
			t.Errorf("%+v", g)
		}
	}
	if _, err := Derive([]Founder{{1, uuid.New()}, {1, uuid.New()}}, 1); err == nil {
		t.Error("a node twice")
	}
}

func TestOpenForeignDirectories(t *testing.T) {
	write := func(m *vfs.Mem, name, content string) {
		if err := m.MkdirAll("d"); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFileAtomic(m, "d/"+name, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	fresh := func(node int32, change func(*Identity)) string {
		id := &Identity{Format: FormatVersion, Dir: uuid.New(), Node: node}
		if change != nil {
			change(id)
		}
		b, err := encodeIdentity(id)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	member := fresh(1, func(id *Identity) {
		id.Founders = []Founder{{1, id.Dir}}
		id.ClusterID = ClusterID(id.Founders)
	})
	cases := []struct {
		name  string
		files map[string]string
		want  error
		says  string
	}{
		{"empty", nil, nil, ""},
		{"lock and cut-off write", map[string]string{"LOCK": "", "node.json.tmp": "x", "lost+found": ""}, nil, ""},
		{"somebody's files", map[string]string{"thesis.doc": "x"}, ErrForeignDir, "thesis.doc"},
		{"data without identity", map[string]string{"wal": "x"}, ErrForeignDir, "node.json"},
		{"this node", map[string]string{FileName: fresh(1, nil)}, nil, ""},
		{"this node, member", map[string]string{FileName: member, "wal": "x"}, nil, ""},
		{"no member, but data", map[string]string{FileName: fresh(1, nil), "wal": "x"}, ErrDamaged, "wal"},
		{"another node", map[string]string{FileName: fresh(2, nil)}, ErrForeignDir, "--node-id 2"},
		{"newer", map[string]string{FileName: fresh(1, func(id *Identity) { id.Format = 2 })}, ErrNewerFormat, "format 2"},
		{"flipped", map[string]string{FileName: strings.Replace(fresh(1, nil), `"node":1`, `"node":3`, 1)}, ErrDamaged, "checksum"},
		{"empty file", map[string]string{FileName: ""}, ErrDamaged, "restore"},
		{"garbage", map[string]string{FileName: "\x00\x01"}, ErrDamaged, "restore"},
		{"cluster not its founders'", map[string]string{FileName: fresh(1, func(id *Identity) { id.ClusterID = "x" })}, ErrDamaged, "founders"},
	}
	for _, tc := range cases {
		m := vfs.NewMem(1)
		for name, content := range tc.files {
			write(m, name, content)
		}
		id, err := Open(OpenOptions{FS: m, Dir: "d", Node: 1, Ignore: []string{"LOCK"}, Rand: rand.Reader})
		if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q does not say %q", tc.name, err, tc.says)
		}
		if err == nil && (id.Node != 1 || id.Dir == uuid.Nil) {
			t.Errorf("%s: %+v", tc.name, id)
		}
		if err != nil {
			for name, content := range tc.files {
				if b, rerr := vfs.ReadFile(m, "d/"+name, 1<<20); rerr != nil || string(b) != content {
					t.Errorf("%s: %s was touched", tc.name, name)
				}
			}
		}
	}
}

// The identity survives a power cut at any moment: once Open returned, it is the same for good.
func TestIdentityIsDurable(t *testing.T) {
	for seed := range uint64(50) {
		m := vfs.NewMem(seed)
		a, err := Open(OpenOptions{FS: m, Dir: "x/d", Node: 4, Rand: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		m = m.CrashClone(seed)
		b, err := Open(OpenOptions{FS: m, Dir: "x/d", Node: 4, Rand: rand.Reader})
		if err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d: %+v, %+v, %v", seed, a, b, err)
		}
	}
}

func FuzzDecodeIdentity(f *testing.F) {
	id := &Identity{Format: 1, Dir: uuid.UUID{1}, Node: 1, Founders: []Founder{{1, uuid.UUID{1}}}}
	id.ClusterID = ClusterID(id.Founders)
	b, err := encodeIdentity(id)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := decodeIdentity(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatal(err)
			}
			return
		}
		again, err := encodeIdentity(id)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeIdentity(again)
		if err != nil || !reflect.DeepEqual(id, back) {
			x, _ := json.Marshal(id)
			t.Fatalf("%v: %s", err, x)
		}
	})
}
