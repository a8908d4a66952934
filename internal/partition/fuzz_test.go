package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
)

// Fuzzers mutate blindly; a CRC stops nearly all of it at the door. Each target therefore also sees its input with the sum put
// right, as damage in memory before the sum was made would look.
func resealed(b []byte, sumAt int, covers func(b []byte) uint32) []byte {
	if len(b) < sumAt+4 {
		return b
	}
	b = bytes.Clone(b)
	binary.BigEndian.PutUint32(b[sumAt:], covers(b))
	return b
}

func FuzzCommand(f *testing.F) {
	for _, c := range []command{{commandLogStart, 0}, {commandLogStart, 1 << 40}, {commandExpireProducers, 7}, {99, 1}, {commandLogStart, -1}} {
		f.Add(c.encode(3))
	}
	f.Add(bytes.Repeat([]byte{commandMark}, commandSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, resealed(b, 20, func(b []byte) uint32 { return crc32.Checksum(b[:20], castagnoli) })} {
			c, err := decodeCommand(b)
			if err != nil {
				continue
			}
			if again := c.encode(int32(binary.BigEndian.Uint32(b[12:]))); !bytes.Equal(again, b) {
				t.Fatalf("%x decodes to %+v, which encodes to %x", b, c, again)
			}
		}
	})
}

func FuzzState(f *testing.F) {
	st := newState()
	st.replica, st.generation, st.index, st.term, st.start, st.end = 3, 4, 500, 6, 10, 900
	for i := range int64(12) {
		h := record.Header{BaseOffset: 10 + i*5, LastOffsetDelta: 4, ProducerID: i % 3, BaseSequence: int32(i/3) * 5, MaxTimestamp: i}
		st.producers.observe(&h, uint64(100+i))
	}
	for v := byte(1); v <= stateVersion; v++ {
		f.Add(asVersion(&st, v))
	}
	empty := newState()
	f.Add(empty.encode())
	f.Add([]byte("CP\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, resealed(b, 4, func(b []byte) uint32 { return crc32.Checksum(b[8:], castagnoli) })} {
			st, err := decodeState(b)
			if err != nil || len(b) == 0 {
				continue
			}
			again := st.encode()
			if bytes.Equal(again[:4], b[:4]) && !bytes.Equal(again, b) {
				t.Fatalf("%x\nencodes to\n%x", b, again)
			}
			// What an older format said is said in today's, and read back as the same.
			if st2, err := decodeState(again); err != nil || !bytes.Equal(st2.encode(), again) {
				t.Fatalf("%x\nencodes to\n%x, which comes back otherwise, %v", b, again, err)
			}
			n := 0
			for q := st.producers.root.next; q != &st.producers.root; q = q.next {
				n++
			}
			if n != st.producers.len() {
				t.Fatalf("%d producers in order, %d by id", n, st.producers.len())
			}
		}
	})
}

func FuzzDeltaMessages(f *testing.F) {
	req := deltaRequest{chunks: 4, session: 1, from: 10, to: 300}
	f.Add(req.encode())
	chunk := deltaChunk{status: chunkOK, last: true, session: 1, from: 15, end: 18, batches: makeBatch(f, batchSpec{records: 3})}
	f.Add(chunk.encode())
	hole := deltaChunk{status: chunkOK, session: 1, from: 5, end: 300, holes: 400, horizon: 4}
	f.Add(hole.encode())
	below := deltaChunk{status: chunkBelowStart, last: true, session: 1, from: 15, start: 100}
	f.Add(below.encode())
	sums := func(at int) func(b []byte) uint32 {
		return func(b []byte) uint32 { return crc32.Update(crc32.Checksum(b[:at], castagnoli), castagnoli, b[at+4:]) }
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		both := [][]byte{b, resealed(b, 28, sums(28)), resealed(b, deltaChunkSum, sums(deltaChunkSum))}
		for _, b := range both {
			if r, err := decodeDeltaRequest(b); err == nil {
				if again, err := decodeDeltaRequest(r.encode()); err != nil || !reflect.DeepEqual(r, again) {
					t.Fatalf("%+v comes back as %+v, %v", r, again, err)
				}
			}
			if c, err := decodeDeltaChunk(b); err == nil {
				if again, err := decodeDeltaChunk(c.encode()); err != nil || !reflect.DeepEqual(c, again) {
					t.Fatalf("%+v comes back as %+v, %v", c, again, err)
				}
			}
		}
		// And into the machine, on both sides of a catch-up: whatever a peer says, the follower's committed records stay and
		// the attempt goes on or ends.
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		c.fill(5)
		fo := c.nodes[1]
		fo.apply()
		c.fill(20)
		before := fo.contents()
		_, r := c.stage(1, 0)
		fo.m.Step()
		for _, b := range both {
			for _, kind := range []transport.Kind{transport.KindDeltaRequest, transport.KindDeltaChunk} {
				c.leader.p.Receive(transport.Envelope{Kind: kind, Body: b}, c.peer(0, 1))
				fo.p.Receive(transport.Envelope{Kind: kind, Body: b}, c.peer(1, 0))
			}
		}
		c.settle()
		if r.n > 1 || fo.p.HighWatermark() != 15 || fo.fatal != nil || c.leader.fatal != nil {
			t.Fatalf("%d answers, high watermark %d, %v, %v", r.n, fo.p.HighWatermark(), fo.fatal, c.leader.fatal)
		}
		if !bytes.HasPrefix(fo.contents(), before) {
			t.Fatal("committed records changed")
		}
	})
}

// FuzzApply feeds whole entries to a replica, in step with its log and behind it (as after a crash): the entry is carried out
// whole, or refused whole.
func FuzzApply(f *testing.F) {
	at := func(off int64, s batchSpec) []byte {
		b := makeBatch(f, s)
		record.SetOffset(b, off, 2)
		return b
	}
	one := at(15, batchSpec{records: 3, producer: 11, seq: 15})
	two := append(bytes.Clone(one), at(18, batchSpec{records: 1})...)
	for _, b := range [][]byte{one, two, append(bytes.Clone(two), two...), one[:40], two[:len(two)-1],
		command{commandLogStart, 6}.encode(2), command{commandExpireProducers, 3}.encode(2), append(bytes.Clone(one), 0)} {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, behind bool) {
		for _, data := range [][]byte{data, resealedBatches(data)} {
			c := newCluster(t, 1, nil)
			c.elect(0, false)
			c.fill(5)
			nd := c.nodes[0]
			if behind {
				nd.m.Pinned(testGroup, 0)
				c.settle()
				c.fill(2)
				nd.crash(1, true) // the segments have what the state has yet to hear of
			}
			p := nd.p
			index, end, logEnd, start := p.st.index, p.st.end, p.log.EndOffset(), p.st.start
			state, bytesBefore := nd.encoded(), nd.contents()
			err := p.Apply([]raftEntry{{Index: index + 1, Term: 2, Data: data}})
			switch {
			case err != nil:
				if !bytes.Equal(nd.encoded(), state) || p.log.EndOffset() != logEnd || p.HighWatermark() != end || !bytes.Equal(nd.contents(), bytesBefore) {
					t.Fatalf("refused with %v, and half done", err)
				}
				if p.refusal() == nil {
					t.Fatal("refused, and serves on")
				}
			case len(data) == 0 || isCommand(data):
				if p.st.index != index+1 || p.st.end != end || p.st.start < start || p.st.start > end {
					t.Fatalf("state %+v", p.st)
				}
			default:
				want := end
				walk := record.Each(data, func(h record.Header, b []byte) error {
					if h.BaseOffset != want {
						t.Fatalf("a batch at %d was taken at %d", h.BaseOffset, want)
					}
					_, err := record.Check(b)
					want = h.LastOffset() + 1
					return err
				})
				if walk != nil || p.st.end != want || p.HighWatermark() != want || p.log.EndOffset() != max(want, logEnd) {
					t.Fatalf("taken: %v; end %d, want %d", walk, p.st.end, want)
				}
				if !bytes.HasSuffix(nd.contents(), data) && !behind {
					t.Fatal("the segments do not end with the entry")
				}
			}
			nd.stop()
		}
	})
}

// resealedBatches puts the CRCs of batches right, as far as they can be told apart.
func resealedBatches(b []byte) []byte {
	b = bytes.Clone(b)
	for rest := b; len(rest) >= record.BatchOverhead; {
		h, err := record.ParseHeader(rest)
		if err != nil || h.Length < record.BatchOverhead-record.LogOverhead || h.Size() > len(rest) {
			break
		}
		binary.BigEndian.PutUint32(rest[17:], crc32.Checksum(rest[21:h.Size()], castagnoli))
		rest = rest[h.Size():]
	}
	return b
}

// FuzzProof feeds what replicas tell each other about their sums, to the leader and to a follower: neither fails, and no committed
// record changes.
func FuzzProof(f *testing.F) {
	points := proof{kind: proofPoints, points: []point{{index: 3, end: 15, sum: 99}, {index: 4, end: 20, sum: 1, origin: 2}}}
	f.Add(points.encode())
	for kind := proofPoints; kind <= proofAdopt; kind++ {
		m := proof{kind: kind, from: 3, to: 15, sum: 8, unable: kind%2 == 0}
		f.Add(m.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		both := [][]byte{b}
		if n := len(b) - 4; n >= 0 {
			both = append(both, resealed(b, n, func(b []byte) uint32 { return crc32.Checksum(b[:len(b)-4], castagnoli) }))
		}
		c := newCluster(t, 2, nil)
		c.elect(0, false)
		c.fillAll(5)
		fo := c.nodes[1]
		before, hw := fo.contents(), fo.p.HighWatermark()
		for _, b := range both {
			if m, err := decodeProof(b); err == nil {
				if again, err := decodeProof(m.encode()); err != nil || !reflect.DeepEqual(m, again) {
					t.Fatalf("%+v comes back as %+v, %v", m, again, err)
				}
			}
			c.leader.p.Receive(transport.Envelope{Kind: transport.KindProof, Body: b}, c.peer(0, 1))
			fo.p.Receive(transport.Envelope{Kind: transport.KindProof, Body: b}, c.peer(1, 0))
		}
		c.settle()
		if fo.fatal != nil || c.leader.fatal != nil || fo.p.HighWatermark() != hw || !bytes.Equal(fo.contents(), before) {
			t.Fatalf("high watermark %d, was %d; %v, %v", fo.p.HighWatermark(), hw, fo.fatal, c.leader.fatal)
		}
	})
}

// FuzzMark feeds the mark of damaged records, past its checksum: it says something is damaged, whatever it holds.
func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"version":1,"damage":[{"from":3,"to":9,"file":"x.log","byte":70,"reason":"batch"}]}`))
	f.Add([]byte(`{"version":1,"damage":[]}`))
	f.Add([]byte(`{"version":2,"damage":[{"from":-1,"to":9223372036854775807,"diverged":true,"rough":true}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, _, _ := bytes.Cut(b, []byte("\n"))
		for _, b := range [][]byte{b, fmt.Appendf(bytes.Clone(text), "\n%08x\n", crc32.Checksum(text, castagnoli))} {
			mem := vfs.NewMem(1)
			if err := vfs.WriteFileAtomic(mem, "/"+markName, b); err != nil {
				t.Fatal(err)
			}
			found, err := readMark(mem, "/", 0, 100)
			if err != nil || len(found) == 0 {
				t.Fatalf("%q: %+v, %v", b, found, err)
			}
			if err := writeMark(mem, "/", mark{Version: 1, Damage: found}); err != nil {
				t.Fatal(err)
			}
			if again, err := readMark(mem, "/", 0, 100); err != nil || !reflect.DeepEqual(found, again) {
				t.Fatalf("%+v comes back as %+v, %v", found, again, err)
			}
		}
	})
}
