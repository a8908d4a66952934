package server

import (
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ioBuffer takes a small request in one system call, and a small answer. What is larger is read past it, into the frame's own
// buffer, and written from the handler's.
const ioBuffer = 4 << 10

var ioBuffers = sync.Pool{New: func() any { return new([ioBuffer]byte) }}

// input reads a connection. While nothing comes it holds no buffer: the poller is asked for the socket first, and a buffer is
// taken for what is there.
type input struct {
	nc   net.Conn
	raw  syscall.RawConn // nil: nc is no plain socket, and is read as it is
	take func(fd uintptr) bool

	buf     *[ioBuffer]byte // nil: everything that was read is taken
	at, end int
	err     error // of take
}

func (in *input) init(nc net.Conn, raw syscall.RawConn) {
	in.nc, in.raw = nc, raw
	in.take = in.takeNow // once: a method value is allocated
}

// rawConn is the socket under a connection; nil where there is none to be had.
func rawConn(nc net.Conn) syscall.RawConn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil // closed already, as a Read will say
	}
	return raw
}

// buffered is how many bytes are there without a system call.
func (in *input) buffered() int { return in.end - in.at }

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	if in.at == in.end {
		if len(p) >= ioBuffer {
			return in.nc.Read(p)
		}
		if err := in.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.at:in.end])
	if in.at += n; in.at == in.end {
		in.release()
	}
	return n, nil
}

// fill waits for bytes and reads what is there.
func (in *input) fill() error {
	if in.raw == nil {
		in.buf = ioBuffers.Get().(*[ioBuffer]byte)
		in.at, in.end = 0, 0
		n, err := in.nc.Read(in.buf[:])
		if in.end = n; n == 0 {
			in.release()
		}
		return err
	}
	if err := in.raw.Read(in.take); err != nil {
		return err
	}
	return in.err
}

// takeNow reads without waiting; false: there is nothing yet.
func (in *input) takeNow(fd uintptr) bool {
	buf := ioBuffers.Get().(*[ioBuffer]byte)
	n, err := unix.Read(int(fd), buf[:])
	for err == unix.EINTR {
		n, err = unix.Read(int(fd), buf[:])
	}
	if n > 0 {
		in.buf, in.at, in.end, in.err = buf, 0, n, nil
		return true
	}
	ioBuffers.Put(buf)
	switch {
	case err == unix.EAGAIN:
		return false
	case err == nil:
		in.err = io.EOF
	default:
		in.err = &net.OpError{Op: "read", Net: "tcp", Source: in.nc.LocalAddr(), Addr: in.nc.RemoteAddr(), Err: err}
	}
	return true
}

// release gives the buffer back.
func (in *input) release() {
	if in.buf != nil {
		ioBuffers.Put(in.buf)
		in.buf, in.at, in.end = nil, 0, 0
	}
}
