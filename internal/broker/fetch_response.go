package broker

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetchBuffers holds what records are read into until they are written to the client.
var fetchBuffers = sync.Pool{New: func() any { b := make([]byte, 0, fetchBuffer); return &b }}

// fetchBuffer is a batch of the largest size that a topic takes by default, and some.
const fetchBuffer = 1<<20 + 64<<10

// fetchPooledMax is the largest of them worth keeping.
const fetchPooledMax = 8 << 20

// fetchPooledParts is how many partitions of one response keep the buffers they were read into, whatever these hold. Those of a
// fetch of a thousand partitions with a record each would be a GiB.
const fetchPooledParts = 4

// hold counts the memory that a read took, and keeps a larger buffer that it needed. It returns the records, which may have
// moved to a buffer of their size.
func (op *fetchOp) hold(r *fetchRead, records []byte) []byte {
	if r.buf != nil {
		op.buffers++
		if n := len(records); n < cap(*r.buf)/2 && (op.buffers > fetchPooledParts || op.b.fetchHeld.short()) {
			records = append(make([]byte, 0, n), records...)
			fetchBuffers.Put(r.buf)
			r.buf = nil
		}
	}
	if r.buf != nil && cap(records) > cap(*r.buf) && cap(records) <= fetchPooledMax {
		*r.buf = records[:0]
	}
	switch {
	case r.buf != nil:
		r.held = max(cap(*r.buf), cap(records))
	default:
		r.held = cap(records)
	}
	op.b.fetchHeld.take(int64(r.held))
	return records
}

// holdRemote counts what another node sent in place of what it sent before.
func (op *fetchOp) holdRemote(r *fetchRead) {
	n := cap(r.res.Records)
	op.b.fetchHeld.give(int64(r.held - n))
	r.held = n
}

// free gives the buffers of the last local read back, and in the end all.
func (op *fetchOp) free(all bool) {
	for i := range op.reads {
		r := &op.reads[i]
		if r.local == nil && !all {
			continue
		}
		op.drop(r)
		r.res.Records = nil
	}
}

// drop gives back the buffer of one partition.
func (op *fetchOp) drop(r *fetchRead) {
	op.b.fetchHeld.give(int64(r.held))
	r.held = 0
	if r.buf != nil {
		fetchBuffers.Put(r.buf)
		r.buf = nil
	}
}

// fetchResponse is a response whose records lie in pooled buffers until it is written.
type fetchResponse struct {
	*kmsg.FetchResponse
	op    *fetchOp
	bytes int
	parts int
}

func (f *fetchResponse) free() {
	if f.op != nil {
		f.op.free(true)
	}
}

// spliceMin is from how many bytes on records are written from where they were read; fewer are cheaper to copy.
const spliceMin = 4 << 10

// spliceMark stands for records while the rest of a response is encoded. It is random, so that nothing that a client can make us
// say is taken for it.
var spliceMark = func() []byte {
	m := make([]byte, 16)
	rand.Read(m) // never fails
	return m
}()

// takeLarge puts the mark in place of large records, and returns those in the response's order.
func (f *fetchResponse) takeLarge() [][]byte {
	var out [][]byte
	for t := range f.Topics {
		for p := range f.Topics[t].Partitions {
			if part := &f.Topics[t].Partitions[p]; len(part.RecordBatches) >= spliceMin {
				out = append(out, part.RecordBatches)
				f.bytes -= len(part.RecordBatches)
				part.RecordBatches = spliceMark
			}
		}
	}
	return out
}

// splice replaces the marks in an encoded response, and the lengths before them, by large.
func splice(buf []byte, large [][]byte, flexible bool) net.Buffers {
	out := make(net.Buffers, 0, 3*len(large)+1)
	lengths := make([]byte, 0, binary.MaxVarintLen32*len(large))
	for _, records := range large {
		at := bytes.Index(buf, spliceMark)
		from := len(lengths)
		if flexible {
			out = append(out, buf[:at-1]) // a varint of 17, the length and one
			lengths = binary.AppendUvarint(lengths, uint64(len(records))+1)
		} else {
			out = append(out, buf[:at-4])
			lengths = binary.BigEndian.AppendUint32(lengths, uint32(len(records)))
		}
		out = append(out, lengths[from:], records)
		buf = buf[at+len(spliceMark):]
	}
	return append(out, buf)
}

// encodedBound is at least the response's size without large records that were taken, but for odd tags.
func (f *fetchResponse) encodedBound() int {
	return f.bytes + 128*f.parts + 300*len(f.Topics) + 600*len(f.Brokers) + 64
}
