package transport

import (
	"google.golang.org/grpc/mem"
)

// A request or response of the forward stream, in a frame's header:
//
//	requests:  id | method | body length
//	responses: id | status | code | body length        (status 0: body is the answer; 1: an error's text)
//
// ids count up from 1 on each stream.
type forwardItem struct {
	id     uint64
	method uint16
	failed bool   // responses only
	code   uint32 // responses only
	body   []byte
}

const (
	forwardOverhead   = 64   // what a request costs in memory beside its bytes
	forwardFrameCount = 1024 // most requests in a frame
)

func encodeForwards(w *frameWriter, kind byte, items []forwardItem) mem.BufferSlice {
	w.begin(kind)
	for i := range items {
		it := &items[i]
		w.uvarint(it.id)
		if kind == frameForwards {
			w.uvarint(uint64(it.method))
		} else {
			failed := byte(0)
			if it.failed {
				failed = 1
			}
			w.byte(failed)
			w.uvarint(uint64(it.code))
		}
		w.uvarint(uint64(len(it.body)))
		w.data(it.body)
	}
	return w.finish()
}

// forwardDecoder decodes the frames of a forward stream.
type forwardDecoder struct {
	r     frameReader
	items []forwardItem
}

// decode returns the frame's items; the slice is valid until the next call, the bodies are new memory.
func (d *forwardDecoder) decode(data mem.BufferSlice, kind byte) ([]forwardItem, error) {
	d.forget()
	if err := d.r.begin(data); err != nil {
		return nil, err
	}
	if d.r.kind != kind {
		return nil, frameErrorf("kind %d, want %d", d.r.kind, kind)
	}
	for len(d.r.hdr) > 0 {
		it, err := d.item(kind)
		if err != nil {
			return nil, err
		}
		d.items = append(d.items, it)
	}
	if err := d.r.end(); err != nil {
		return nil, err
	}
	return d.items, nil
}

func (d *forwardDecoder) forget() {
	clear(d.items)
	d.items = d.items[:0]
}

func (d *forwardDecoder) item(kind byte) (it forwardItem, err error) {
	r := &d.r
	if it.id, err = r.uvarint(); err != nil {
		return it, err
	}
	if kind == frameForwards {
		method, err := r.uvarint()
		if err != nil {
			return it, err
		}
		if method > 1<<16-1 {
			return it, frameErrorf("method %d", method)
		}
		it.method = uint16(method)
	} else {
		failed, err := r.byte()
		if err != nil {
			return it, err
		}
		code, err := r.uvarint()
		if err != nil {
			return it, err
		}
		if failed > 1 || code > 1<<32-1 {
			return it, frameErrorf("status %d, code %d", failed, code)
		}
		it.failed, it.code = failed == 1, uint32(code)
	}
	n, err := r.length(0)
	if err != nil {
		return it, err
	}
	it.body = r.take(n)
	return it, nil
}
