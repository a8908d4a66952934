package transport

import (
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/mem"
)

// An envelope in a frame's header:
//
//	code | group | from | to | (raft) mask, the fields it names, in the mask's order | (others) body length
//
// code is the Kind, or raftCode plus the raft message type. All numbers are varints, so that a heartbeat of a young
// cluster takes about ten bytes. Payload parts follow the order context, snapshot data, entries; or the body.
const (
	raftCode = 0x40

	hasTerm       = 1 << 0
	hasIndex      = 1 << 1
	hasCommit     = 1 << 2
	hasLogTerm    = 1 << 3
	hasReject     = 1 << 4 // no field: it is the bit
	hasRejectHint = 1 << 5
	hasContext    = 1 << 6
	hasEntries    = 1 << 7
	hasSnapshot   = 1 << 8
	hasVote       = 1 << 9
	maskBound     = 1 << 10

	entryTypeMask = 0x03
	entryHasTerm  = 0x04 // otherwise that of the entry before, first: the message's
	entryHasIndex = 0x08 // otherwise one more than the entry before, first: than the message's
	entryBound    = 0x10
	minEntryBytes = 2

	envelopeOverhead = 128 // what an envelope costs in memory beside its bytes
	entryOverhead    = 48
)

// crossesNetwork tells the raft messages that one node may send another. The rest are between a group and its own storage
// or clock: from a peer they would be forgeries, or a bug.
func crossesNetwork(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgProp, raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgSnap,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow,
		raftpb.MsgReadIndex, raftpb.MsgReadIndexResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp:
		return true
	default:
		return false
	}
}

// bulky says whether an envelope travels on the bulk stream. All of a group's MsgApps do, also empty ones, so that they
// keep their order; so does what may be large.
func (e *Envelope) bulky() bool {
	switch e.Kind {
	case KindRaft:
		return e.Raft.Type == raftpb.MsgApp || e.Raft.Type == raftpb.MsgSnap || e.Raft.Type == raftpb.MsgProp
	case KindDeltaChunk:
		return true
	default:
		return false
	}
}

// isSnapshot says whether an envelope offers a snapshot, whose loss must always be reported.
func (e *Envelope) isSnapshot() bool { return e.Kind == KindRaft && e.Raft.Type == raftpb.MsgSnap }

// size is what an envelope weighs against caps, in bytes.
func (e *Envelope) size() int {
	n := envelopeOverhead + len(e.Body)
	if e.Kind != KindRaft {
		return n
	}
	n += len(e.Raft.Context) + len(e.Raft.Entries)*entryOverhead
	for i := range e.Raft.Entries {
		n += len(e.Raft.Entries[i].Data)
	}
	if s := e.Raft.Snapshot; s != nil {
		n += len(s.Data) + 16*len(s.Metadata.ConfState.Voters)
	}
	return n
}

// sendable says whether appendEnvelope can encode e.
func (e *Envelope) sendable() bool {
	if e.size() > MaxBodyBytes || len(e.Raft.Entries) > maxHeaderBytes/32 {
		return false
	}
	if e.Kind == KindRaft {
		return crossesNetwork(e.Raft.Type) && len(e.Raft.Responses) == 0
	}
	return e.Kind > KindRaft && e.Kind < raftCode
}

// encodeEnvelopes makes one frame of envs, each of which must be sendable.
func encodeEnvelopes(w *frameWriter, envs []Envelope) (mem.BufferSlice, error) {
	w.begin(frameEnvelopes)
	for i := range envs {
		if err := appendEnvelope(w, &envs[i]); err != nil {
			return nil, err
		}
	}
	return w.finish(), nil
}

func appendEnvelope(w *frameWriter, e *Envelope) error {
	code := byte(e.Kind)
	if e.Kind == KindRaft {
		code = raftCode | byte(e.Raft.Type)
	}
	w.byte(code)
	w.uvarint(e.Group)
	w.uvarint(e.From)
	w.uvarint(e.To)
	if e.Kind != KindRaft {
		w.uvarint(uint64(len(e.Body)))
		w.data(e.Body)
		return nil
	}
	return appendRaft(w, &e.Raft)
}

func raftMask(m *raftpb.Message) (mask uint64) {
	set := func(bit uint64, is bool) {
		if is {
			mask |= bit
		}
	}
	set(hasTerm, m.Term != 0)
	set(hasIndex, m.Index != 0)
	set(hasCommit, m.Commit != 0)
	set(hasLogTerm, m.LogTerm != 0)
	set(hasReject, m.Reject)
	set(hasRejectHint, m.RejectHint != 0)
	set(hasContext, len(m.Context) > 0)
	set(hasEntries, len(m.Entries) > 0)
	set(hasSnapshot, m.Snapshot != nil)
	set(hasVote, m.Vote != 0)
	return mask
}

func appendRaft(w *frameWriter, m *raftpb.Message) error {
	w.uvarint(raftMask(m))
	for _, v := range [...]uint64{m.Term, m.Index, m.Commit, m.LogTerm, m.RejectHint} {
		if v != 0 {
			w.uvarint(v)
		}
	}
	if len(m.Context) > 0 {
		w.uvarint(uint64(len(m.Context)))
		w.data(m.Context)
	}
	if s := m.Snapshot; s != nil {
		meta, err := s.Metadata.Marshal()
		if err != nil {
			return err
		}
		w.uvarint(uint64(len(meta)))
		w.bytes(meta)
		w.uvarint(uint64(len(s.Data)))
		w.data(s.Data)
	}
	if m.Vote != 0 {
		w.uvarint(m.Vote)
	}
	if len(m.Entries) == 0 {
		return nil
	}
	w.uvarint(uint64(len(m.Entries)))
	term, index := m.Term, m.Index
	for i := range m.Entries {
		e := &m.Entries[i]
		index++
		flags := byte(e.Type) & entryTypeMask
		if e.Term != term {
			flags |= entryHasTerm
		}
		if e.Index != index {
			flags |= entryHasIndex
		}
		w.byte(flags)
		if e.Term != term {
			w.uvarint(e.Term)
			term = e.Term
		}
		if e.Index != index {
			w.uvarint(e.Index)
			index = e.Index
		}
		w.uvarint(uint64(len(e.Data)))
		w.data(e.Data)
	}
	return nil
}

// envelopeDecoder decodes frames of envelopes, reusing what it can between them.
type envelopeDecoder struct {
	r       frameReader
	envs    []Envelope
	lengths []int // payload parts of the envelope at hand
}

// decode takes a frame apart. The slice is valid until the next call; what it refers to is new memory, one piece for each
// envelope, so that a retained entry holds on to its own message's bytes only. data stays the caller's.
func (d *envelopeDecoder) decode(data mem.BufferSlice) ([]Envelope, error) {
	clear(d.envs) // don't hold on to the last frame's entries
	d.envs = d.envs[:0]
	if err := d.r.begin(data); err != nil {
		return nil, err
	}
	if d.r.kind != frameEnvelopes {
		return nil, frameErrorf("kind %d on a stream of envelopes", d.r.kind)
	}
	for len(d.r.hdr) > 0 {
		d.envs = append(d.envs, Envelope{})
		if err := d.envelope(&d.envs[len(d.envs)-1]); err != nil {
			return nil, err
		}
	}
	if err := d.r.end(); err != nil {
		return nil, err
	}
	return d.envs, nil
}

// forget drops references to the last frame's messages.
func (d *envelopeDecoder) forget() {
	clear(d.envs)
	if cap(d.envs) > 16<<10 {
		d.envs = nil
	}
}

func (d *envelopeDecoder) envelope(e *Envelope) error {
	code, err := d.r.byte()
	if err != nil {
		return err
	}
	for _, p := range [...]*uint64{&e.Group, &e.From, &e.To} {
		if *p, err = d.r.uvarint(); err != nil {
			return err
		}
	}
	if code&raftCode == 0 {
		e.Kind = Kind(code)
		if e.Kind <= KindRaft || e.Kind >= raftCode {
			return frameErrorf("envelope kind %d", code)
		}
		n, err := d.r.length(0)
		if err != nil {
			return err
		}
		e.Body = d.r.take(n)
		return nil
	}
	e.Kind = KindRaft
	e.Raft.Type = raftpb.MessageType(code &^ raftCode)
	e.Raft.From, e.Raft.To = e.From, e.To
	if !crossesNetwork(e.Raft.Type) {
		return frameErrorf("raft message type %d from another node", e.Raft.Type)
	}
	return d.raft(&e.Raft)
}

func (d *envelopeDecoder) raft(m *raftpb.Message) error {
	r := &d.r
	mask, err := r.uvarint()
	if err != nil {
		return err
	}
	if mask >= maskBound {
		return frameErrorf("raft message mask %#x", mask)
	}
	m.Reject = mask&hasReject != 0
	numbers := [...]struct {
		bit uint64
		p   *uint64
	}{{hasTerm, &m.Term}, {hasIndex, &m.Index}, {hasCommit, &m.Commit}, {hasLogTerm, &m.LogTerm}, {hasRejectHint, &m.RejectHint}}
	for _, f := range numbers {
		if mask&f.bit != 0 {
			if *f.p, err = r.uvarint(); err != nil {
				return err
			}
		}
	}
	d.lengths = d.lengths[:0]
	claimed, contextLen, snapLen := 0, 0, 0
	if mask&hasContext != 0 {
		if contextLen, err = r.length(claimed); err != nil {
			return err
		}
		claimed += contextLen
	}
	if mask&hasSnapshot != 0 {
		if snapLen, err = d.snapshot(m, claimed); err != nil {
			return err
		}
		claimed += snapLen
	}
	if mask&hasVote != 0 {
		if m.Vote, err = r.uvarint(); err != nil {
			return err
		}
	}
	if mask&hasEntries != 0 {
		if claimed, err = d.entries(m, claimed); err != nil {
			return err
		}
	}
	blob := r.take(claimed)
	cut := func(n int) (b []byte) {
		if n > 0 {
			b, blob = blob[:n:n], blob[n:]
		}
		return b
	}
	m.Context = cut(contextLen)
	if m.Snapshot != nil {
		m.Snapshot.Data = cut(snapLen)
	}
	for i, n := range d.lengths {
		m.Entries[i].Data = cut(n)
	}
	return nil
}

func (d *envelopeDecoder) snapshot(m *raftpb.Message, claimed int) (dataLen int, err error) {
	n, err := d.r.uvarint()
	if err != nil {
		return 0, err
	}
	meta, err := d.r.bytes(n)
	if err != nil {
		return 0, err
	}
	m.Snapshot = &raftpb.Snapshot{}
	if err := m.Snapshot.Metadata.Unmarshal(meta); err != nil {
		return 0, frameErrorf("snapshot metadata: %v", err)
	}
	return d.r.length(claimed)
}

// entries reads the entries' headers; their lengths go to d.lengths.
func (d *envelopeDecoder) entries(m *raftpb.Message, claimed int) (int, error) {
	r := &d.r
	count, err := r.uvarint()
	if err != nil {
		return 0, err
	}
	if count == 0 || count > uint64(len(r.hdr)/minEntryBytes) {
		return 0, frameErrorf("%d entries in %d header bytes", count, len(r.hdr))
	}
	m.Entries = make([]raftpb.Entry, count)
	term, index := m.Term, m.Index
	for i := range m.Entries {
		flags, err := r.byte()
		if err != nil {
			return 0, err
		}
		if flags >= entryBound || flags&entryTypeMask > byte(raftpb.EntryConfChangeV2) {
			return 0, frameErrorf("entry flags %#x", flags)
		}
		index++
		if flags&entryHasTerm != 0 {
			if term, err = r.uvarint(); err != nil {
				return 0, err
			}
		}
		if flags&entryHasIndex != 0 {
			if index, err = r.uvarint(); err != nil {
				return 0, err
			}
		}
		n, err := r.length(claimed)
		if err != nil {
			return 0, err
		}
		claimed += n
		d.lengths = append(d.lengths, n)
		m.Entries[i] = raftpb.Entry{Term: term, Index: index, Type: raftpb.EntryType(flags & entryTypeMask)}
	}
	return claimed, nil
}
