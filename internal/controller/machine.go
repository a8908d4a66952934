package controller

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/transport"
)

// Defaults of MachineConfig.
const (
	DefaultCheckpointEntries = 1000
	DefaultCheckpointBytes   = 1 << 20
)

// Checkpointer takes a durable state for the log: multiraft.Replica.
type Checkpointer interface {
	// Checkpoint hands over state, which describes everything up to the entry (index, term). It does not block, and state is
	// not changed afterwards.
	Checkpoint(index, term uint64, state []byte)
}

// MachineConfig is what a StateMachine needs. Zero values of the limits take the defaults.
type MachineConfig struct {
	Logger *slog.Logger
	// Clock is what Await waits by; nil is the system's.
	Clock clock.Clock
	// CheckpointEntries and CheckpointBytes: a checkpoint is handed over after so many entries, or bytes of entries (twice
	// the image's size if that is more).
	CheckpointEntries int
	CheckpointBytes   int
}

// StateMachine is the metadata group's multiraft.StateMachine: it applies commands to the image and publishes each image
// that comes of it. It decides nothing: that is the Controller's part, before it proposes.
//
// Image, Watch and CheckpointNow are safe for concurrent use with everything else.
type StateMachine struct {
	cfg   MachineConfig
	state atomic.Pointer[applied]

	// encode guards the encoding of checkpoints and snapshots.
	encode struct {
		sync.Mutex
		img   *metadata.Image // what bytes describes
		bytes []byte
	}
	// since the last checkpoint; the applier's own, except that CheckpointNow resets them.
	sinceEntries, sinceBytes atomic.Int64
	checkpoints              atomic.Pointer[Checkpointer]

	proposals struct {
		sync.Mutex
		seed    uint64
		next    uint64
		pending map[uint64]*proposal
	}
	watches watchers
}

// applied is the published state: an image, and the last entry that was applied to come to it.
type applied struct {
	index, term uint64
	img         *metadata.Image
}

// NewStateMachine starts from a checkpoint or the first image (bootstrap), whose bytes are state. A replica that joins
// starts from nothing: index, term 0 and state nil. The error is a *CorruptError.
func NewStateMachine(cfg MachineConfig, index, term uint64, state []byte) (*StateMachine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CheckpointEntries <= 0 {
		cfg.CheckpointEntries = DefaultCheckpointEntries
	}
	if cfg.CheckpointBytes <= 0 {
		cfg.CheckpointBytes = DefaultCheckpointBytes
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	s := &StateMachine{cfg: cfg}
	s.proposals.pending = map[uint64]*proposal{}
	var seed [8]byte
	if _, err := io.ReadFull(rand.Reader, seed[:]); err != nil {
		return nil, fmt.Errorf("random numbers: %w", err)
	}
	s.proposals.seed = binary.BigEndian.Uint64(seed[:])
	img := metadata.Empty()
	if index != 0 || len(state) != 0 {
		var err error
		if img, err = DecodeImage(state); err != nil {
			return nil, err
		}
		if img.Index > index {
			return nil, &CorruptError{What: "image", Index: index, Reason: fmt.Sprintf("the checkpoint's image is of index %d, later than the checkpoint", img.Index)}
		}
	}
	s.state.Store(&applied{index: index, term: term, img: img})
	return s, nil
}

// Bind names who takes checkpoints. Until then none are made.
func (s *StateMachine) Bind(c Checkpointer) { s.checkpoints.Store(&c) }

// Image returns the current image, never nil. It implements metadata.Source.
func (s *StateMachine) Image() *metadata.Image { return s.state.Load().img }

// Applied returns index and term of the last entry applied.
func (s *StateMachine) Applied() (index, term uint64) {
	st := s.state.Load()
	return st.index, st.term
}

// proposal is a batch on its way through the log. It implements multiraft.Proposal.
type proposal struct {
	machine *StateMachine
	id      uint64
	data    []byte
	done    func(error)
	outcome error // set by Apply, read by Done; both after another in one order per proposal, guarded by machine.proposals
}

// newProposal makes a proposal of batch and remembers it until its Done. done gets nil when the batch was carried out, an
// error matching errStale or an *Error when it was applied and refused, or what multiraft said.
func (s *StateMachine) newProposal(batch *controllerpb.Batch, done func(error)) (*proposal, error) {
	p := &proposal{machine: s, done: done}
	s.proposals.Lock()
	s.proposals.next++
	p.id = s.proposals.seed + s.proposals.next
	s.proposals.Unlock()
	batch.Proposal = p.id
	var err error
	if p.data, err = seal(magicBatch, batch); err != nil {
		return nil, err
	}
	s.proposals.Lock()
	s.proposals.pending[p.id] = p
	s.proposals.Unlock()
	return p, nil
}

// Size implements multiraft.Proposal.
func (p *proposal) Size() int { return len(p.data) }

// Done implements multiraft.Proposal.
func (p *proposal) Done(err error) {
	s := p.machine
	s.proposals.Lock()
	delete(s.proposals.pending, p.id)
	if err == nil {
		err = p.outcome
	}
	s.proposals.Unlock()
	p.done(err)
}

// errForeign refuses proposals that are not the controller's.
var errForeign = errors.New("the metadata group takes proposals of its controller only")

// Prepare implements multiraft.StateMachine. The data is decided already, and each entry is refused when it is applied to
// another state than it was decided from (Batch.base_index), so there is no overlay to keep and nothing for Abort to undo.
func (s *StateMachine) Prepare(_ uint64, props []multiraft.Proposal, _ int) (data []byte, bound []multiraft.Proposal, taken int) {
	for i, p := range props {
		if own, ok := p.(*proposal); ok && own.machine == s {
			return own.data, props[i : i+1], i + 1
		}
		p.Done(errForeign)
	}
	return nil, nil, len(props)
}

// Abort implements multiraft.StateMachine.
func (s *StateMachine) Abort() {}

// LeaderReady implements multiraft.StateMachine. The controller goes by the replica's Status.
func (s *StateMachine) LeaderReady(uint64) { s.watches.poke() }

// LeaderLost implements multiraft.StateMachine.
func (s *StateMachine) LeaderLost(uint64) { s.watches.poke() }

// Apply implements multiraft.StateMachine. It publishes one image for all of entries.
func (s *StateMachine) Apply(entries []raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	st := s.state.Load()
	b := metadata.NewBuilder(st.img)
	next := &applied{index: st.index, term: st.term}
	for i := range entries {
		e := &entries[i]
		if e.Index != next.index+1 {
			return &CorruptError{What: "command", Index: e.Index, Reason: fmt.Sprintf("follows index %d", next.index)}
		}
		if e.Type == raftpb.EntryNormal && len(e.Data) > 0 {
			if err := s.applyEntry(b, e); err != nil {
				return err
			}
			s.sinceBytes.Add(int64(len(e.Data)))
		}
		s.sinceEntries.Add(1)
		next.index, next.term = e.Index, e.Term
	}
	next.img = b.Build()
	s.publish(next)
	s.checkpointIfDue()
	return nil
}

func (s *StateMachine) applyEntry(b *metadata.Builder, e *raftpb.Entry) error {
	var batch controllerpb.Batch
	if err := unseal(magicBatch, "command", e.Data, &batch); err != nil {
		var ce *CorruptError
		if errors.As(err, &ce) {
			ce.Index = e.Index
		}
		return err
	}
	refusal, damage := applyBatch(b, e.Index, &batch)
	if damage != nil {
		return damage
	}
	if refusal != nil {
		s.cfg.Logger.Debug("metadata command refused", "index", e.Index, "term", e.Term, "reason", refusal)
	}
	s.proposals.Lock()
	if p := s.proposals.pending[batch.Proposal]; p != nil {
		p.outcome = refusal
	}
	s.proposals.Unlock()
	return nil
}

// publish makes next the state; the watchers of images hear of it if the image moved.
func (s *StateMachine) publish(next *applied) {
	old := s.state.Swap(next)
	if old.img != next.img {
		s.watches.publish(next.img)
	}
}

// Snapshot implements multiraft.StateMachine: the whole image, as bytes.
func (s *StateMachine) Snapshot() (index, term uint64, data []byte, err error) {
	st := s.state.Load()
	data, err = s.encoded(st.img)
	return st.index, st.term, data, err
}

// encoded returns the image's bytes, from memory if it is the image encoded last. The bytes are shared: read-only.
func (s *StateMachine) encoded(img *metadata.Image) ([]byte, error) {
	s.encode.Lock()
	defer s.encode.Unlock()
	if s.encode.img == img {
		return s.encode.bytes, nil
	}
	b, err := EncodeImage(img)
	if err != nil {
		return nil, err
	}
	s.encode.img, s.encode.bytes = img, b
	return b, nil
}

// Stage implements multiraft.StateMachine: everything is in the snapshot, there is nothing to fetch. It is checked here,
// where it can still be refused.
func (s *StateMachine) Stage(snap raftpb.Snapshot, _ multiraft.Peer, done func(error)) {
	_, err := DecodeImage(snap.Data)
	done(err)
}

// Install implements multiraft.StateMachine.
func (s *StateMachine) Install(snap raftpb.Snapshot) error {
	img, err := DecodeImage(snap.Data)
	if err != nil {
		return err
	}
	old := s.state.Load()
	if snap.Metadata.Index < old.index || img.Index < old.img.Index {
		return &CorruptError{What: "image", Index: snap.Metadata.Index, Reason: fmt.Sprintf("the snapshot is older than the state, which is at %d", old.index)}
	}
	s.sinceEntries.Store(0)
	s.sinceBytes.Store(0)
	s.publish(&applied{index: snap.Metadata.Index, term: snap.Metadata.Term, img: img})
	return nil
}

// Receive implements multiraft.StateMachine: the metadata group has no messages of its own.
func (s *StateMachine) Receive(transport.Envelope, multiraft.Peer) {}

// Close implements multiraft.StateMachine. The last image stays readable.
func (s *StateMachine) Close() error { return nil }

func (s *StateMachine) checkpointIfDue() {
	bytes := s.sinceBytes.Load()
	if s.sinceEntries.Load() < int64(s.cfg.CheckpointEntries) && bytes < int64(s.cfg.CheckpointBytes) {
		return
	}
	if s.sinceEntries.Load() < int64(s.cfg.CheckpointEntries) {
		s.encode.Lock()
		size := len(s.encode.bytes)
		s.encode.Unlock()
		if bytes < 2*int64(size) {
			return
		}
	}
	s.CheckpointNow()
}

// CheckpointNow hands the applied state to the log, for the node's maintenance and when the log waits for this group. It
// does nothing when nothing was applied since the last.
func (s *StateMachine) CheckpointNow() {
	c := s.checkpoints.Load()
	if c == nil || s.sinceEntries.Load() == 0 {
		return
	}
	// Entries applied from here on count for the next checkpoint, even if this one covers them.
	s.sinceEntries.Store(0)
	s.sinceBytes.Store(0)
	st := s.state.Load()
	data, err := s.encoded(st.img)
	if err != nil {
		s.cfg.Logger.Error("metadata checkpoint failed", "index", st.index, "error", err)
		return
	}
	(*c).Checkpoint(st.index, st.term, data)
}
