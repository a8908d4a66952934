package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// output writes a connection's answers. It is used by one goroutine at a time.
type output struct {
	s   *Server
	nc  net.Conn
	raw syscall.RawConn // nil: nc is no plain socket
	put func(fd uintptr) bool

	// An attempt of put: what is to be written, and what came of it.
	rest []byte
	n    int
	err  error

	head [8]byte
	vec  net.Buffers // backing array, so that an answer allocates nothing
	bufs net.Buffers
}

func (o *output) init(s *Server, nc net.Conn, raw syscall.RawConn) {
	o.s, o.nc, o.raw = s, nc, raw
	o.put = o.putNow
}

// answer writes one response: size, correlation id, payload, in one system call if the client keeps up. A client that reads
// slower than MinRate is cut once its time is over, or as soon as others need the memory that waits for it.
func (o *output) answer(corr int32, payload net.Buffers) error {
	size := 4
	for _, b := range payload {
		size += len(b)
	}
	s := o.s
	held := s.responses.Add(int64(size))
	defer s.responses.Add(-int64(size))
	if held > s.cfg.MaxResponseBytes && held > int64(size) {
		return &cutError{cutMemory, fmt.Errorf("clients have not read %d bytes of answers, and this one has %d", held-int64(size), size)}
	}
	binary.BigEndian.PutUint32(o.head[:], uint32(size))
	binary.BigEndian.PutUint32(o.head[4:], uint32(corr))
	o.vec = append(append(o.vec[:0], o.head[:]), payload...)
	defer clear(o.vec)
	o.bufs = o.vec // WriteTo shortens what it is called on
	if size+4 > ioBuffer || o.raw == nil {
		return o.write(size)
	}
	buf := ioBuffers.Get().(*[ioBuffer]byte)
	defer ioBuffers.Put(buf)
	whole := buf[:0]
	for _, b := range o.vec {
		whole = append(whole, b...)
	}
	n, err := o.try(whole)
	s.metrics.bytesOut.Add(float64(n))
	if err != nil || n == len(whole) {
		return err
	}
	o.vec = append(o.vec[:0], whole[n:]) // the client does not keep up
	o.bufs = o.vec
	return o.write(size)
}

// write writes what is in bufs, of an answer of size bytes, as fast as the client takes it.
func (o *output) write(size int) error {
	s := o.s
	end := time.Now().Add(s.ioTime(size))
	for {
		now := time.Now()
		o.nc.SetWriteDeadline(minTime(end, now.Add(s.cfg.writeStep)))
		n, err := o.bufs.WriteTo(o.nc)
		s.metrics.bytesOut.Add(float64(n))
		if err == nil {
			o.nc.SetWriteDeadline(time.Time{}) // try would not get past one that is over
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		short := s.responses.Load() > s.cfg.MaxResponseBytes/2 || s.cfg.Pressed != nil && s.cfg.Pressed()
		if !time.Now().Before(end) || short && n < int64(s.cfg.writeStep.Seconds()*float64(s.cfg.MinRate)) {
			return &cutError{cutSlowReader, err}
		}
	}
}

// try writes what the socket takes at once: no deadline is needed.
func (o *output) try(b []byte) (int, error) {
	o.rest, o.n, o.err = b, 0, nil
	err := o.raw.Write(o.put)
	o.rest = nil
	if err == nil {
		err = o.err
	}
	return o.n, err
}

// putNow is try's system call.
func (o *output) putNow(fd uintptr) bool {
	n, err := unix.Write(int(fd), o.rest)
	for err == unix.EINTR {
		n, err = unix.Write(int(fd), o.rest)
	}
	o.n = max(n, 0)
	if err != nil && err != unix.EAGAIN {
		o.err = &net.OpError{Op: "write", Net: "tcp", Source: o.nc.LocalAddr(), Addr: o.nc.RemoteAddr(), Err: err}
	}
	return true
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ioTime is how long size bytes may take.
func (s *Server) ioTime(size int) time.Duration {
	return s.cfg.IOTimeout + time.Duration(int64(size)/s.cfg.MinRate)*time.Second
}
