package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand"
	"reflect"
	"runtime"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/mem"
)

func sampleEnvelopes() []Envelope {
	resp := raftpb.Message{Type: raftpb.MsgAppResp, From: 2, To: 1, Term: 3, Index: 90, LogTerm: 2, Reject: true, RejectHint: 40}
	read := raftpb.Message{Type: raftpb.MsgReadIndex, From: 2, To: 1, Context: []byte("ctx-1"), Entries: []raftpb.Entry{{Data: []byte("unique")}}}
	odd := raftpb.Message{Type: raftpb.MsgApp, From: 1, To: 2, Term: 9, LogTerm: 4, Index: 10, Commit: 8, Vote: 6, Entries: []raftpb.Entry{
		{Term: 4, Index: 11, Data: bytes.Repeat([]byte{1}, 3000)},
		{Term: 5, Index: 12, Type: raftpb.EntryConfChangeV2, Data: []byte("cc")},
		{Term: 9, Index: 13},
		{Term: 9, Index: 1 << 40, Data: bytes.Repeat([]byte{2}, 70000)},
		{Term: 2, Index: 3, Type: raftpb.EntryConfChange},
	}}
	return []Envelope{
		heartbeat(7, 2, 3),
		{Kind: KindRaft, Group: 1 << 60, From: 2, To: 1, Raft: resp},
		{Kind: KindRaft, Group: 5, From: 2, To: 1, Raft: read},
		{Kind: KindRaft, Group: 6, From: 1, To: 2, Raft: odd},
		appendMsg(8, 2, 100),
		snapMsg(9, 2),
		{Kind: KindDeltaChunk, Group: 9, From: 1, To: 2, Body: bytes.Repeat([]byte("segment "), 10000)},
		{Kind: KindLeaders, Body: []byte("leaders")},
		{Kind: KindDeltaRequest, Group: 9, From: 2, To: 1},
	}
}

func encode(t testing.TB, envs []Envelope) []byte {
	t.Helper()
	var w frameWriter
	bufs, err := encodeEnvelopes(&w, envs)
	if err != nil {
		t.Fatal(err)
	}
	defer bufs.Free()
	return bufs.Materialize()
}

// split cuts b into buffers of random sizes, as HTTP/2 does.
func split(b []byte, rng *rand.Rand) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		n := 1 + rng.Intn(min(len(b), 1+rng.Intn(16<<10)))
		out = append(out, mem.SliceBuffer(b[:n:n]))
		b = b[n:]
	}
	return out
}

func TestEnvelopesSurviveAFrame(t *testing.T) {
	var dec envelopeDecoder
	want := sampleEnvelopes()
	frame := encode(t, want)
	for seed := range int64(50) {
		got, err := dec.decode(split(bytes.Clone(frame), rand.New(rand.NewSource(seed))))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: got %+v\nwant %+v", seed, got, want)
		}
	}
}

// RAFT.md 19: what is delivered must not lie in a buffer that goes back to a pool.
func TestDecodedMessagesOutliveThePooledFrame(t *testing.T) {
	want := sampleEnvelopes()
	frame := encode(t, want)
	var dec envelopeDecoder
	got, err := dec.decode(split(frame, rand.New(rand.NewSource(1))))
	if err != nil {
		t.Fatal(err)
	}
	for i := range frame {
		frame[i] = 0xDB
	}
	for i := range dec.r.scratch {
		dec.r.scratch[i] = 0xDB
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatal("messages changed with the frame's buffers")
	}
}

func TestNeighbouringPayloadsDoNotShareCapacity(t *testing.T) {
	var dec envelopeDecoder
	frame := encode(t, []Envelope{appendMsg(1, 2, 0, []byte("first"), []byte("second"))})
	envs, err := dec.decode(mem.BufferSlice{mem.SliceBuffer(frame)})
	if err != nil {
		t.Fatal(err)
	}
	_ = append(envs[0].Raft.Entries[0].Data, "overwritten"...)
	if got := string(envs[0].Raft.Entries[1].Data); got != "second" {
		t.Fatalf("appending to an entry changed the next one to %q", got)
	}
}

func TestHeartbeatsAreSmallInAFrame(t *testing.T) {
	var envs []Envelope
	for g := range uint64(1000) {
		envs = append(envs, heartbeat(g+1, 2, 5))
	}
	if n := len(encode(t, envs)); n > 1000*11+framePrefix {
		t.Fatalf("1,000 heartbeats take %d bytes", n)
	}
}

func TestDamagedFramesAreRefused(t *testing.T) {
	frame := encode(t, []Envelope{heartbeat(7, 2, 3), appendMsg(8, 2, 1, []byte("hello"), []byte("world")), snapMsg(1, 2)})
	var dec envelopeDecoder
	for i := range frame {
		for _, flip := range []byte{1, 0x80, 0xff} {
			bad := bytes.Clone(frame)
			bad[i] ^= flip
			if _, err := dec.decode(mem.BufferSlice{mem.SliceBuffer(bad)}); !errors.Is(err, ErrFrame) {
				t.Fatalf("byte %d flipped by %#x: %v", i, flip, err)
			}
		}
		if _, err := dec.decode(mem.BufferSlice{mem.SliceBuffer(frame[:i])}); !errors.Is(err, ErrFrame) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := dec.decode(mem.BufferSlice{mem.SliceBuffer(append(bytes.Clone(frame), 0))}); !errors.Is(err, ErrFrame) {
		t.Fatalf("a byte too many: %v", err)
	}
	if _, err := dec.decode(mem.BufferSlice{mem.SliceBuffer(frame)}); err != nil {
		t.Fatalf("the decoder does not recover: %v", err)
	}
}

// seal makes a frame with valid CRCs around any header and payload.
func seal(kind byte, hdr, payload []byte) []byte {
	b := make([]byte, framePrefix, framePrefix+len(hdr)+len(payload))
	b[0], b[1] = frameVersion, kind
	binary.LittleEndian.PutUint32(b[2:], uint32(len(hdr)))
	binary.LittleEndian.PutUint32(b[6:], crc32.Checksum(payload, castagnoli))
	crc := crc32.Update(crc32.Checksum(b[:10], castagnoli), castagnoli, hdr)
	binary.LittleEndian.PutUint32(b[10:], crc)
	return append(append(b, hdr...), payload...)
}

func TestHostileLengthsAllocateNothing(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<62)
	raft := func(mask uint64, rest []byte) []byte {
		return append(binary.AppendUvarint([]byte{raftCode | byte(raftpb.MsgApp), 1, 1, 2}, mask), rest...)
	}
	headers := map[string][]byte{
		"body":                                 append([]byte{byte(KindDeltaChunk), 1, 1, 2}, huge...),
		"context":                              raft(hasContext, huge),
		"entries":                              raft(hasEntries, huge),
		"entry length":                         raft(hasEntries, append([]byte{1, 0}, huge...)),
		"snapshot metadata":                    raft(hasSnapshot, huge),
		"snapshot data":                        raft(hasSnapshot, append([]byte{0}, huge...)),
		"entries that claim the payload twice": raft(hasEntries, []byte{2, 0, 5, 0, 5}),
		"local message":                        {raftCode | byte(raftpb.MsgStorageAppend), 1, 1, 2, 0},
		"endless number":                       {byte(KindLeaders), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	for name, hdr := range headers {
		t.Run(name, func(t *testing.T) {
			frame := mem.BufferSlice{mem.SliceBuffer(seal(frameEnvelopes, hdr, []byte("tiny!")))}
			var dec envelopeDecoder
			var least uint64
			for i := range 10 { // what else goes on in this process allocates, too, but not each time
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, err := dec.decode(frame)
				runtime.ReadMemStats(&after)
				if !errors.Is(err, ErrFrame) {
					t.Fatalf("accepted: %v", err)
				}
				if n := after.TotalAlloc - before.TotalAlloc; i == 0 || n < least {
					least = n
				}
			}
			if least > 64<<10 {
				t.Fatalf("allocated %d bytes", least)
			}
		})
	}
}

func TestForwardsSurviveAFrame(t *testing.T) {
	var w frameWriter
	var dec forwardDecoder
	for kind, items := range map[byte][]forwardItem{
		frameForwards:  {{id: 1, method: 3, body: []byte("a")}, {id: 2, method: 65535, body: bytes.Repeat([]byte("b"), 9000)}, {id: 3}},
		frameResponses: {{id: 3, failed: true, code: 1 << 31, body: []byte("no")}, {id: 1}, {id: 2, body: []byte("yes")}},
	} {
		frame := encodeForwards(&w, kind, items)
		got, err := dec.decode(frame, kind)
		if err != nil || !reflect.DeepEqual(got, items) {
			t.Fatalf("got %+v, %v, want %+v", got, err, items)
		}
		if _, err := dec.decode(frame, kind^1); !errors.Is(err, ErrFrame) {
			t.Fatalf("a frame of kind %d taken for another: %v", kind, err)
		}
		frame.Free()
	}
}

func FuzzDecodeFrame(f *testing.F) {
	samples := sampleEnvelopes()
	samples[3].Raft.Entries = samples[3].Raft.Entries[1:3] // small inputs make a fast fuzzer
	samples[6].Body = samples[6].Body[:100]
	whole := encode(f, samples)
	f.Add(whole, []byte(nil), false, int64(1))
	n := binary.LittleEndian.Uint32(whole[2:])
	f.Add(whole[framePrefix:framePrefix+n], whole[framePrefix+n:], true, int64(2))
	f.Add([]byte{byte(KindLeaders), 0, 0, 0, 3}, []byte("abc"), true, int64(3))
	f.Fuzz(func(t *testing.T, hdr, payload []byte, sealed bool, seed int64) {
		for _, kind := range []byte{frameEnvelopes, frameForwards, frameResponses} {
			frame := hdr
			if sealed { // get the fuzzer past the CRCs
				frame = seal(kind, hdr, payload)
			}
			bufs := split(bytes.Clone(frame), rand.New(rand.NewSource(seed)))
			if kind != frameEnvelopes {
				var dec forwardDecoder
				if items, err := dec.decode(bufs, kind); err == nil {
					var w frameWriter
					var again forwardDecoder
					if got, err := again.decode(encodeForwards(&w, kind, items), kind); err != nil || len(got) != len(items) ||
						(len(items) > 0 && !reflect.DeepEqual(got, items)) {
						t.Fatalf("decoded %+v, then %+v, %v", items, got, err)
					}
				} else if !errors.Is(err, ErrFrame) {
					t.Fatalf("untyped error %v", err)
				}
				continue
			}
			var dec, again envelopeDecoder
			envs, err := dec.decode(bufs)
			if err != nil {
				if !errors.Is(err, ErrFrame) {
					t.Fatalf("untyped error %v", err)
				}
				continue
			}
			for i := range envs {
				if !envs[i].sendable() && envs[i].size() < MaxBodyBytes {
					t.Fatalf("decoded what cannot be sent: %+v", envs[i])
				}
			}
			got, err := again.decode(mem.BufferSlice{mem.SliceBuffer(encode(t, envs))})
			if err != nil || len(got) != len(envs) || (len(envs) > 0 && !reflect.DeepEqual(got, envs)) {
				t.Fatalf("decoded %+v\nthen %+v, %v", envs, got, err)
			}
		}
	})
}
