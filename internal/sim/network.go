package sim

import (
	"bytes"
	"fmt"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
)

// network joins processes by links of two streams each, control and bulk, as the transport does: order is kept within a
// stream and not between them, what is lost is reported to the sender (mostly: what a broken connection had swallowed is not).
type network struct {
	w     *world
	links map[[2]int32]*link
}

// link is one direction between two nodes.
type link struct {
	from, to int32
	cut      bool
	slow     time.Duration // added to every delay
	loss     float64
	last     [2]time.Time // when the last message of each stream arrives
	lost     []lostTo     // bursts not yet reported, in the order they began
}

type lostTo struct {
	group, to uint64
	snapshot  bool
}

func newNetwork(w *world) *network {
	n := &network{w: w, links: make(map[[2]int32]*link)}
	for a := int32(1); a <= 3; a++ {
		for b := int32(1); b <= 3; b++ {
			if a != b {
				n.links[[2]int32{a, b}] = &link{from: a, to: b}
			}
		}
	}
	return n
}

func (n *network) link(from, to int32) *link { return n.links[[2]int32{from, to}] }

// each calls f for every link, in a fixed order.
func (n *network) each(f func(l *link)) {
	for a := int32(1); a <= 3; a++ {
		for b := int32(1); b <= 3; b++ {
			if a != b {
				f(n.link(a, b))
			}
		}
	}
}

func isBulk(env *transport.Envelope) bool {
	if env.Kind == transport.KindRaft {
		return env.Raft.Type == raftpb.MsgApp || env.Raft.Type == raftpb.MsgSnap
	}
	return env.Kind == transport.KindDeltaChunk
}

func (n *network) send(p *proc, to int32, env transport.Envelope) {
	w := n.w
	if p.dead {
		return
	}
	l := n.link(p.node.id, to)
	dest := w.nodes[to-1].proc
	if dest == nil || l.cut || w.chance(l.loss) || !w.healed && w.chance(w.set.dropRate) {
		n.lose(p, l, &env)
		return
	}
	stream := 0
	if isBulk(&env) {
		stream = 1
	}
	at := w.clk.Now().Add(w.upTo(w.set.netDelay) + l.slow)
	if at.Before(l.last[stream]) {
		at = l.last[stream]
	}
	l.last[stream] = at
	copies := 1
	if !w.healed && env.Kind == transport.KindRaft && w.chance(w.set.dupRate) {
		copies = 2
		w.counts["messages duplicated"]++
	}
	wire := encodeEnvelope(w, env)
	for range copies {
		w.after(at.Sub(w.clk.Now()), func() { n.deliver(p, dest, l, wire) })
	}
}

// flying is an envelope on its way: it shares no memory with the sender.
type flying struct {
	env  transport.Envelope
	raft []byte
}

func encodeEnvelope(w *world, env transport.Envelope) flying {
	f := flying{env: env}
	f.env.Body = bytes.Clone(env.Body)
	if env.Kind == transport.KindRaft {
		b, err := env.Raft.Marshal()
		if err != nil {
			w.fail("a message does not encode: %v", err)
		}
		f.raft, f.env.Raft = b, raftpb.Message{}
	}
	return f
}

func (n *network) deliver(p, dest *proc, l *link, f flying) {
	w := n.w
	env := f.env
	env.Body = bytes.Clone(f.env.Body)
	if f.raft != nil {
		if err := env.Raft.Unmarshal(f.raft); err != nil {
			w.fail("a message does not decode: %v", err)
			return
		}
	}
	if dest.dead || l.cut {
		n.lose(p, l, &env)
		return
	}
	w.counts["messages"]++
	w.traceMessage(l, &env)
	dest.svc.HandleEnvelopes(l.from, []transport.Envelope{env})
}

// traceMessage enters a message that arrives into the trace. There are many: they are printed only where somebody looks.
func (w *world) traceMessage(l *link, env *transport.Envelope) {
	t, at, m := &w.trace, w.clk.Now().Sub(epoch), &env.Raft
	t.mix(uint64(at), uint64(l.from)<<32|uint64(l.to), env.Group, uint64(env.Kind), uint64(len(env.Body)))
	if env.Kind != transport.KindRaft {
		if t.sink != nil {
			t.print(at, fmt.Sprintf("%d->%d g%d kind %d, %d bytes", l.from, l.to, env.Group, env.Kind, len(env.Body)))
		}
		return
	}
	reject := uint64(0)
	if m.Reject {
		reject = 1
	}
	t.mix(uint64(m.Type), m.Term, m.Index, m.LogTerm, m.Commit, uint64(len(m.Entries)), reject)
	if t.sink != nil {
		t.print(at, fmt.Sprintf("%d->%d g%d %v term %d index %d logterm %d commit %d entries %d reject %v", l.from, l.to, env.Group, m.Type, m.Term,
			m.Index, m.LogTerm, m.Commit, len(m.Entries), m.Reject))
	}
}

// lose drops a message. The sender hears of it once for each burst and group; rarely never, as when a connection dies with
// bytes in its buffers.
func (n *network) lose(p *proc, l *link, env *transport.Envelope) {
	w := n.w
	w.counts["messages lost"]++
	snapshot := env.Kind == transport.KindRaft && env.Raft.Type == raftpb.MsgSnap
	if p.dead {
		return
	}
	if w.chance(0.1) {
		w.counts["losses never reported"]++
		return
	}
	for i := range l.lost {
		if d := &l.lost[i]; d.group == env.Group && d.to == env.To {
			d.snapshot = d.snapshot || snapshot
			return
		}
	}
	l.lost = append(l.lost, lostTo{env.Group, env.To, snapshot})
	if len(l.lost) > 1 {
		return
	}
	w.after(w.upTo(50*time.Millisecond), func() {
		lost := l.lost
		l.lost = nil
		if p.dead {
			return
		}
		for _, d := range lost {
			p.svc.HandleDropped(l.to, d.group, d.to, d.snapshot)
		}
	})
}

// closed tells the others that a node's process has ended: its kernel resets the connections. Where a link is cut, nobody hears.
func (n *network) closed(id int32) {
	for _, other := range n.w.nodes {
		p := other.proc
		if other.id == id || p == nil || n.link(id, other.id).cut {
			continue
		}
		n.w.after(n.w.between(time.Millisecond, 20*time.Millisecond), func() {
			if !p.dead {
				p.svc.HandlePeerDown(id)
			}
		})
	}
}
