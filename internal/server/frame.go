package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	// headerBytes is the part of a request that every version of every API has: key, version, correlation id.
	headerBytes = 8
	// firstBytes is what a frame's claim is trusted with before its bytes come.
	firstBytes = 64 << 10
	// secondBytes is what it is trusted with after those; and growth times as much after that.
	secondBytes = 2 << 20
	growth      = 8
)

// A large frame's first bytes are read into a buffer that goes back, so that what is allocated for a frame of common size is
// the frame and nothing else.
var (
	firstBuffers  = sync.Pool{New: func() any { b := make([]byte, firstBytes); return &b }}
	secondBuffers = sync.Pool{New: func() any { b := make([]byte, secondBytes); return &b }}
)

// ErrFrame matches every error about a frame that breaks the rules; the connection is closed.
var ErrFrame = errors.New("bad frame")

// frameSize checks a frame's claimed size.
func frameSize(prefix [4]byte, limit int) (int, error) {
	n := int32(binary.BigEndian.Uint32(prefix[:]))
	if n < headerBytes {
		return 0, fmt.Errorf("%w: %d bytes hold no request header", ErrFrame, n)
	}
	if int(n) > limit {
		return 0, fmt.Errorf("%w: %d bytes claimed, %d allowed", ErrFrame, n, limit)
	}
	return int(n), nil
}

// grower is asked before memory is taken for n more bytes.
type grower interface{ grow(n int64) error }

// readFrame reads size bytes. It takes memory as bytes arrive, and g is asked before each time, so a claim alone costs
// firstBytes at most. The result is the caller's for good.
func readFrame(r io.Reader, size int, g grower) ([]byte, error) {
	if size <= firstBytes {
		return readRest(r, nil, size, g)
	}
	first := firstBuffers.Get().(*[]byte)
	defer firstBuffers.Put(first)
	got, err := readInto(r, *first, nil, g)
	if err != nil {
		return nil, err
	}
	if size <= secondBytes {
		return readRest(r, got, size, g)
	}
	second := secondBuffers.Get().(*[]byte)
	defer secondBuffers.Put(second)
	if got, err = readInto(r, *second, got, g); err != nil {
		return nil, err
	}
	for growth*len(got) < size {
		if got, err = readRest(r, got, growth*len(got), g); err != nil {
			return nil, err
		}
	}
	return readRest(r, got, size, g)
}

// readRest allocates size bytes for what was got and what follows.
func readRest(r io.Reader, got []byte, size int, g grower) ([]byte, error) {
	if err := g.grow(int64(size - len(got))); err != nil {
		return nil, err
	}
	buf := make([]byte, size)
	_, err := io.ReadFull(r, buf[copy(buf, got):])
	return buf, err
}

// readInto fills buf with what was got and what follows.
func readInto(r io.Reader, buf, got []byte, g grower) ([]byte, error) {
	if err := g.grow(int64(len(buf) - len(got))); err != nil {
		return nil, err
	}
	_, err := io.ReadFull(r, buf[copy(buf, got):])
	return buf, err
}

// header is a request's fixed part.
type header struct {
	key, version  int16
	correlationID int32
}

func parseHeader(frame []byte) (h header, rest []byte, err error) {
	if len(frame) < headerBytes {
		return h, nil, fmt.Errorf("%w: no request header", ErrFrame)
	}
	h.key = int16(binary.BigEndian.Uint16(frame))
	h.version = int16(binary.BigEndian.Uint16(frame[2:]))
	h.correlationID = int32(binary.BigEndian.Uint32(frame[4:]))
	return h, frame[headerBytes:], nil
}
