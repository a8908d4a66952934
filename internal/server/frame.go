package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// headerBytes is the part of a request that every version of every API has: key, version, correlation id.
	headerBytes = 8
	// firstBytes is what a frame's claim is trusted with before its bytes come.
	firstBytes = 64 << 10
	// secondBytes is what it is trusted with after those.
	secondBytes = 2 << 20
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

// readFrame reads size bytes. The buffer grows as bytes arrive, and grow is asked before each time, so a claim alone costs
// firstBytes at most.
func readFrame(r io.Reader, size int, grow func(n int64) error) ([]byte, error) {
	if err := grow(int64(min(size, firstBytes))); err != nil {
		return nil, err
	}
	buf := make([]byte, min(size, firstBytes))
	have := 0
	for {
		n, err := io.ReadFull(r, buf[have:])
		have += n
		if err != nil {
			return nil, err
		}
		if have == size {
			return buf, nil
		}
		// Bytes that came are proof enough of an honest frame of common size (one copy of firstBytes); past that, double.
		next := min(size, max(2*len(buf), secondBytes))
		if err := grow(int64(next - len(buf))); err != nil {
			return nil, err
		}
		bigger := make([]byte, next)
		copy(bigger, buf[:have])
		buf = bigger
	}
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
