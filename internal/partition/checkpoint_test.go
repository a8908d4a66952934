package partition

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"

	"github.com/chronik-go/chronik/internal/record"
)

// asVersion is a state as an earlier version of the program wrote it; of today's or a later version as today's, but for the number.
func asVersion(s *state, version byte) []byte {
	be := binary.BigEndian
	now := s.encode()
	old := bytes.Clone(now[:stateHeader])
	if version == 1 {
		old = append(old[:56:56], now[72:stateHeader]...)
	}
	rest := now[stateHeader:]
	for n := s.producers.root.next; n != &s.producers.root; n = n.next {
		size := stateProducerSize + int(n.n)*stateBatchSize
		old = append(append(old, rest[:stateProducerSizeV2]...), rest[stateProducerSize:size]...)
		rest = rest[size:]
	}
	if version >= 3 {
		old = now
	}
	old[2] = version
	be.PutUint32(old[4:], crc32.Checksum(old[8:], castagnoli))
	return old
}

func TestStatesOfEarlierVersionsLoad(t *testing.T) {
	st := newState()
	st.replica, st.index, st.term, st.end, st.origin, st.sum = 3, 500, 6, 900, 20, 77
	for i := range int64(12) {
		h := record.Header{BaseOffset: i * 5, LastOffsetDelta: 4, ProducerID: i % 3, BaseSequence: int32(i/3) * 5, MaxTimestamp: 1000 + i}
		st.producers.observe(&h, uint64(100+i))
	}
	for version := byte(1); version < stateVersion; version++ {
		got, err := decodeState(asVersion(&st, version))
		if err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
		want := st
		if version == 1 {
			want.origin, want.sum = want.end, 0
		}
		if got.replica != want.replica || got.index != want.index || got.term != want.term || got.end != want.end || got.origin != want.origin || got.sum != want.sum {
			t.Errorf("version %d: %+v, want %+v", version, got, want)
		}
		if got.producers.len() != 3 {
			t.Fatalf("version %d: %d producers", version, got.producers.len())
		}
		for id := range int64(3) {
			was, is := *st.producers.get(id), *got.producers.get(id)
			if was.lastTime = -1; was != is {
				t.Errorf("version %d, producer %d: %+v, want %+v", version, id, is, was)
			}
		}
	}
	if _, err := decodeState(asVersion(&st, stateVersion+1)); err == nil {
		t.Error("a state of a version to come loads")
	}
}

// Every replica knows the largest timestamp in a producer's last batch, also after a restart, a snapshot and a crash.
func TestProducersLastTimeIsOnEveryReplica(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.elect(0, false)
	base := int64(1_700_000_000_000)
	c.send(batchSpec{records: 3, producer: 7, ts: base + 500})
	c.send(batchSpec{records: 2, producer: 8, ts: base})
	c.send(batchSpec{records: 1, producer: 7, seq: 3, ts: base + 100}) // older than the one before: it is the last all the same
	c.flow()
	c.send(batchSpec{records: 3, producer: 8, seq: 2, ts: base + 900})
	c.propose(false)
	c.depose(false) // what was not committed does not count
	check := func(when string) {
		t.Helper()
		for _, nd := range c.nodes {
			all := nd.p.Producers()
			if len(all) != 2 || all[0].LastTime != base+100 || all[1].LastTime != base+1 {
				t.Fatalf("%s, node %d: %+v", when, nd.id, all)
			}
		}
	}
	check("applied")
	c.settle()
	for i, nd := range c.nodes {
		nd.crash(uint64(i), true)
		nd.apply()
	}
	check("killed and started again")
	c.elect(1, false)
	c.flow()
	c.advance(time.Minute) // flushed
	for _, nd := range c.nodes {
		if st, err := decodeState(nd.cp.State); err != nil || st.producers.get(7) == nil {
			t.Fatalf("node %d: no checkpoint: %v", nd.id, err)
		}
		nd.stop()
		nd.open()
		nd.apply()
	}
	check("from a checkpoint")
}
