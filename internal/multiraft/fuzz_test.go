package multiraft

import (
	"encoding/binary"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/chronik-go/chronik/internal/transport"
)

// FuzzEnvelopes feeds a node messages as a peer of the cluster might send them: raft's with any fields, and the bodies of all
// others. Such a peer can stop the group it is a member of, which is fenced then; it can't take the process down, nor any
// other group.
func FuzzEnvelopes(f *testing.F) {
	msg := func(m raftpb.Message) []byte {
		b, err := m.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for _, m := range []raftpb.Message{
		{Type: raftpb.MsgHeartbeat, Term: 3, Commit: 1 << 40},
		{Type: raftpb.MsgApp, Term: 3, LogTerm: 1, Index: 1, Commit: 2, Entries: []raftpb.Entry{{Term: 3, Index: 2, Data: []byte("x")}}},
		{Type: raftpb.MsgApp, Term: 3, LogTerm: 1, Index: 1, Commit: 9, Entries: []raftpb.Entry{{Term: 3, Index: 2, Type: raftpb.EntryConfChangeV2, Data: []byte{0xff}}}},
		{Type: raftpb.MsgAppResp, Term: 1, Index: 1 << 50},
		{Type: raftpb.MsgSnap, Term: 3, Snapshot: &raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: 9, Term: 2, ConfState: raftpb.ConfState{Voters: []uint64{99}}}}},
		{Type: raftpb.MsgTimeoutNow, Term: 1},
	} {
		f.Add(byte(transport.KindRaft), msg(m), true)
		f.Add(byte(transport.KindRaft), msg(m), false)
	}
	for kind := byte(2); kind < 9; kind++ {
		f.Add(kind, []byte{1}, true)
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte, toLeader bool) {
		c := newCluster(t, 3)
		const other = testGroup + 1
		for _, id := range c.order {
			c.register(id, other, false)
		}
		l := c.leader()
		victim := l
		if !toLeader {
			victim = c.others(l)[0]
		}
		from := c.others(victim)[0]
		env := transport.Envelope{Kind: transport.Kind(kind), Group: testGroup, From: replicaOf(from), To: replicaOf(victim), Body: body}
		if env.Kind == transport.KindRaft {
			if env.Raft.Unmarshal(body) != nil {
				return
			}
			env.Body = nil
			env.Raft.From, env.Raft.To = env.From, env.To
			if env.Raft.Snapshot != nil && len(env.Raft.Snapshot.Data) < 16 { // the list's own format
				env.Raft.Snapshot.Data = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, env.Raft.Snapshot.Metadata.Index), env.Raft.Snapshot.Metadata.Term)
			}
		}
		c.nodes[victim].svc.HandleEnvelopes(from, []transport.Envelope{env})
		c.settle()
		c.tick(3)
		var led int32
		for range 100 {
			for _, id := range c.order {
				if r, ok := c.nodes[id].svc.Group(other); ok && r.Status().Ready {
					led = id
				}
			}
			if led != 0 {
				break
			}
			c.tick(1)
			c.settle()
		}
		if led == 0 {
			t.Fatal("the other group has no leader any more")
		}
		r, _ := c.nodes[led].svc.Group(other)
		var done error
		answered := false
		r.Enqueue(&RawProposal{Data: []byte("still here"), OnDone: func(err error) { done, answered = err, true }})
		c.settle()
		if !answered || done != nil {
			t.Fatalf("the other group takes nothing any more: answered %v, %v", answered, done)
		}
	})
}
