package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/vfs"
)

// How a cluster forms. Every node named in --peers asks every other who it is, again and again, and collects a view: the
// data directory of each node of the set. It announces its view with its own answers. A node decides for a set once its own
// view is complete and each peer has announced exactly that set, or is already a member of the cluster that the set makes;
// it writes the decision to its disk, and only then tells of it.
//
// Why not at the first complete view: a node that is wiped in the middle comes back with another directory. One peer may
// have seen the old one, another the new one, and each would found a cluster of its own. With the announcements, for two
// nodes to decide for two sets, each would have to have announced the other's set before deciding for its own; since a
// view only ever moves on from a directory to its successor, one of the two announced backwards, which can't be.
// (A cluster can be followed by another only if every disk that knew of it is gone: any that is left answers "member".)
// And why all, not a majority: two wiped voters out of three are a majority, and their cluster would be empty.

var (
	// ErrIdentityLost says that the cluster knows this node's id with another data directory: this one was emptied.
	ErrIdentityLost = errors.New("node id belongs to another data directory")
	// ErrPeers says that the nodes' --peers don't fit together.
	ErrPeers = errors.New("the nodes do not agree about --peers")
)

// Peer is a node named in --peers.
type Peer struct {
	Node int32
	Addr string // host:port of its raft listener
}

// Info is what a node says of itself at first contact.
type Info struct {
	Node int32
	Dir  uuid.UUID
	// ClusterID is empty until the node belongs to a cluster.
	ClusterID string
	// Set is, of a member, the cluster's founding set; of others, the view so far: the nodes of its --peers (itself
	// included), with a zero Dir where it does not know the directory yet.
	Set []Founder
}

// Options are what a Formation needs.
type Options struct {
	FS  vfs.FS
	Dir string
	// Identity is the data directory's (Open). The Formation changes and saves it.
	Identity *Identity
	// Peers as configured; this node may be among them.
	Peers []Peer
	// Hello asks a node who it is. It returns by the end of ctx.
	Hello  func(ctx context.Context, addr string) (Info, error)
	Clock  clock.Clock
	Logger *slog.Logger
	// Interval between the first rounds of asking; it grows to ten times that while peers are missing. Default 20 ms.
	Interval time.Duration
	// HelloTimeout bounds one question. Default 2 s.
	HelloTimeout time.Duration
}

// Formation brings a node into a cluster. Answer may be called at any time, from anywhere, also after the formation has
// ended: peers that are slower go on asking.
type Formation struct {
	o     Options
	peers []Peer // without this node, by id

	mu        sync.Mutex
	id        Identity
	views     map[int32]Info               // what each peer said last
	gone      map[int32]map[uuid.UUID]bool // directories that a peer has been seen with before its last
	complaint map[int32]string
	trouble   map[int32]string // why a peer's last answer did not come
}

// New prepares a formation. It fails if the peers name a node twice.
func New(o Options) (*Formation, error) {
	if o.Interval <= 0 {
		o.Interval = 20 * time.Millisecond
	}
	if o.HelloTimeout <= 0 {
		o.HelloTimeout = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Formation{o: o, id: *o.Identity, views: map[int32]Info{}, gone: map[int32]map[uuid.UUID]bool{}, complaint: map[int32]string{}, trouble: map[int32]string{}}
	seen := map[int32]bool{}
	for _, p := range o.Peers {
		if seen[p.Node] {
			return nil, fmt.Errorf("%w: node %d is named twice", ErrPeers, p.Node)
		}
		seen[p.Node] = true
		if p.Node != o.Identity.Node {
			f.peers = append(f.peers, p)
		}
	}
	slices.SortFunc(f.peers, func(a, b Peer) int { return int(a.Node) - int(b.Node) })
	return f, nil
}

// Answer is what this node says of itself now.
func (f *Formation) Answer() Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answer()
}

func (f *Formation) answer() Info {
	in := Info{Node: f.id.Node, Dir: f.id.Dir, ClusterID: f.id.ClusterID, Set: slices.Clone(f.id.Founders)}
	if !f.id.Member() {
		in.Set = f.view()
	}
	return in
}

// view is the set as far as it is known, by node id.
func (f *Formation) view() []Founder {
	set := []Founder{{Node: f.id.Node, Dir: f.id.Dir}}
	for _, p := range f.peers {
		set = append(set, Founder{Node: p.Node, Dir: f.views[p.Node].Dir})
	}
	return sorted(set)
}

// Identity returns what the node is now.
func (f *Formation) Identity() Identity {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.id
	id.Founders = slices.Clone(id.Founders)
	return id
}

// Observe takes in what a peer answered. Once it returns an error matching ErrIdentityLost or ErrPeers there is no sense in
// going on: a person must change something. It is called for one answer at a time of a peer, in the order asked.
func (f *Formation) Observe(p Peer, in Info) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.id.Member() {
		return nil
	}
	if in.Node != p.Node {
		return fmt.Errorf("%w: the node at %s says it is node %d, --peers calls it node %d", ErrPeers, p.Addr, in.Node, p.Node)
	}
	if in.Dir == f.id.Dir {
		return fmt.Errorf("%w: node %d at %s has a copy of this node's data directory", ErrPeers, p.Node, p.Addr)
	}
	if in.ClusterID != "" && in.ClusterID != ClusterID(in.Set) {
		return fmt.Errorf("%w: node %d at %s calls its cluster %q, which is not made by the nodes it names", ErrPeers, p.Node, p.Addr, in.ClusterID)
	}
	if in.Dir == uuid.Nil || f.gone[p.Node][in.Dir] {
		// Going back would undo what makes the decision unique: two processes answer under one name.
		f.complain(p.Node, fmt.Sprintf("node %d at %s answers now with one data directory, now with another: only one process may be node %d", p.Node, p.Addr, p.Node))
		return nil
	}
	in.Set = sorted(in.Set)
	if in.ClusterID != "" {
		if err := f.checkMember(in); err != nil {
			return err
		}
	}
	if old, ok := f.views[p.Node]; ok && old.Dir != in.Dir {
		if f.gone[p.Node] == nil {
			f.gone[p.Node] = map[uuid.UUID]bool{}
		}
		f.gone[p.Node][old.Dir] = true
	}
	f.views[p.Node] = in
	if in.ClusterID != "" {
		delete(f.complaint, p.Node)
		return nil
	}
	if ours, theirs := nodes(f.view()), nodes(in.Set); !slices.Equal(ours, theirs) {
		// Not an end: the peer may be about to be restarted with other flags. But it can't go on before.
		f.complain(p.Node, fmt.Sprintf("node %d forms a cluster of nodes %v, this node one of %v: give all of them the same --peers", p.Node, theirs, ours))
		return nil
	}
	delete(f.complaint, p.Node)
	return nil
}

// checkMember judges what a peer says that belongs to a cluster already.
func (f *Formation) checkMember(in Info) error {
	for _, x := range f.peers {
		if o, ok := f.views[x.Node]; ok && x.Node != in.Node && o.ClusterID != "" && o.ClusterID != in.ClusterID {
			return fmt.Errorf("%w: node %d belongs to cluster %s, node %d to cluster %s: --peers must name nodes of one cluster",
				ErrPeers, o.Node, o.ClusterID, in.Node, in.ClusterID)
		}
	}
	for _, m := range in.Set {
		if m.Node == f.id.Node && m.Dir != f.id.Dir {
			return fmt.Errorf("%w: cluster %s knows node %d with data directory %s, this one is %s: if the disk was emptied or replaced, "+
				"start the node with a new, unused --node-id; if not, start it with its own --data-dir", ErrIdentityLost, in.ClusterID, f.id.Node, m.Dir, f.id.Dir)
		}
	}
	return nil
}

func (f *Formation) complain(node int32, text string) {
	if f.complaint[node] != text {
		f.complaint[node] = text
		f.o.Logger.Warn("can't form a cluster yet: " + text)
	}
}

func nodes(set []Founder) []int32 {
	out := make([]int32, len(set))
	for i, m := range set {
		out[i] = m.Node
	}
	return out
}

// Decide joins or founds a cluster if what was observed so far is enough, makes that durable, and reports whether the node
// is a member now. An error is the disk's: the decision does not stand, and the node must stop.
func (f *Formation) Decide() (member bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.id.Member() {
		return true, nil
	}
	set := f.decision()
	if set == nil {
		return false, nil
	}
	next := f.id
	next.ClusterID, next.Founders = ClusterID(set), set
	// Written before anybody hears of it, under the lock that Answer takes.
	if err := next.Save(f.o.FS, f.o.Dir); err != nil {
		return false, err
	}
	f.id = next
	f.o.Logger.Info("belongs to a cluster", "cluster", next.ClusterID, "node", next.Node, "founders", nodes(set), "founding", next.Founding())
	return true, nil
}

// decision returns the founding set to go by, nil if it is too early to say.
func (f *Formation) decision() []Founder {
	for _, p := range f.peers {
		// A cluster exists: found with it (it has this very directory in its set) or join it (it does not know this node).
		if in := f.views[p.Node]; in.ClusterID != "" {
			return in.Set
		}
	}
	set := f.view()
	for _, m := range set {
		if m.Dir == uuid.Nil {
			return nil
		}
	}
	for _, p := range f.peers {
		if !slices.Equal(f.views[p.Node].Set, set) {
			return nil
		}
	}
	return set
}

// Run asks the peers until the node is a member, ctx ends, or a person must act. It logs every 10 seconds whom it waits
// for. All it starts has ended when it returns.
func (f *Formation) Run(ctx context.Context) (*Identity, error) {
	var waited, told time.Duration
	interval := f.o.Interval
	for {
		member, err := f.Decide()
		if err != nil {
			return nil, err
		}
		if member {
			id := f.Identity()
			return &id, nil
		}
		if err := f.round(ctx); err != nil {
			return nil, err
		}
		if member, err = f.Decide(); err != nil || member {
			continue
		}
		if waited == 0 || waited-told >= 10*time.Second {
			told = waited
			f.o.Logger.Info("waiting for peers to form the cluster: on a first start all of them must be there", "missing", f.missing(), "because", f.troubles())
		}
		waited += interval
		err = f.pause(ctx, interval)
		interval = min(interval*5/4, 10*f.o.Interval)
		if err != nil {
			return nil, fmt.Errorf("forming the cluster, still missing %v: %w", f.missing(), err)
		}
	}
}

// missing lists the peers that have not answered.
func (f *Formation) missing() []int32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []int32
	for _, p := range f.peers {
		if _, ok := f.views[p.Node]; !ok {
			out = append(out, p.Node)
		}
	}
	return out
}

// troubles says why the missing peers are missing, by node id.
func (f *Formation) troubles() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, p := range f.peers {
		if t := f.trouble[p.Node]; t != "" {
			out = append(out, fmt.Sprintf("node %d at %s: %s", p.Node, p.Addr, t))
		}
	}
	return strings.Join(out, "; ")
}

// round asks every peer once, all at the same time, and takes the answers in, in order of node id.
func (f *Formation) round(ctx context.Context) error {
	answers := make(map[int32]Info, len(f.peers))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range f.peers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, f.o.HelloTimeout)
			defer cancel()
			in, err := f.o.Hello(ctx, p.Addr)
			f.mu.Lock()
			delete(f.trouble, p.Node)
			if err != nil {
				f.trouble[p.Node] = err.Error()
			}
			f.mu.Unlock()
			if err != nil {
				return
			}
			mu.Lock()
			answers[p.Node] = in
			mu.Unlock()
		})
	}
	wg.Wait()
	var errs []error
	for _, p := range f.peers {
		if in, ok := answers[p.Node]; ok {
			errs = append(errs, f.Observe(p, in))
		}
	}
	return errors.Join(errs...)
}

func (f *Formation) pause(ctx context.Context, d time.Duration) error {
	fired := make(chan struct{})
	timer := f.o.Clock.AfterFunc(d, func() { close(fired) })
	defer timer.Stop()
	select {
	case <-fired:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
