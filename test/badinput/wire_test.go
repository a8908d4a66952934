package badinput

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/test/harness"
)

// maxRSS is what the server may use at its peak, whatever it is sent: its limits on requests in memory (48 MiB), the log's cache
// (48 MiB) and one frame of the largest size (100 MiB), with what Go's collector needs above that.
const maxRSS = 400 << 20

// target is a server under attack.
type target struct {
	*server
	addr string
	n    int // records that went through while it was attacked
}

func newTarget(t *testing.T) *target {
	args := alone(t, filepath.Join(t.TempDir(), "data"))
	s := &target{server: start(t, args...), addr: flagOf(args, "--kafka-addr")}
	s.awaitReady(t)
	s.unharmed(t)
	return s
}

// unharmed sends a record, finds it and all before it, and looks at the process's memory.
func (s *target) unharmed(t *testing.T) {
	t.Helper()
	s.n++
	if got := roundTrip(t, s.addr, "others", fmt.Sprint(s.n)); len(got) != s.n {
		t.Fatalf("%d records of others, want %d: %q", len(got), s.n, got)
	}
	u, err := harness.UsageOf(s.cmd.Process.Pid)
	if err != nil {
		t.Fatalf("the server is gone: %v\n%s", err, &s.errs)
	}
	t.Logf("memory %d MiB, at most %d MiB", u.RSS>>20, u.PeakRSS>>20)
	if u.PeakRSS > maxRSS {
		t.Errorf("the server used %d MiB", u.PeakRSS>>20)
	}
}

func (s *target) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", s.addr, bound)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(bound)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// closes sends bytes and wants the connection closed, without an answer.
func (s *target) closes(t *testing.T, b []byte) {
	t.Helper()
	c := s.dial(t)
	_, werr := c.Write(b)
	got, err := io.ReadAll(io.LimitReader(c, 1<<20))
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(werr, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open long after %.40q", b)
	}
	if len(got) > 0 {
		t.Errorf("%.40q was answered with %d bytes: %.80q", b, len(got), got)
	}
}

// ask sends a request on a connection of its own and returns the answer.
func (s *target) ask(t *testing.T, req kmsg.Request) kmsg.Response {
	t.Helper()
	resp, err := exchange(s.dial(t), req)
	if err != nil {
		t.Fatalf("%s v%d: %v", kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	return resp
}

func exchange(c net.Conn, req kmsg.Request) (kmsg.Response, error) {
	if _, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 77)); err != nil {
		return nil, err
	}
	body, err := answer(c, 77)
	if err != nil {
		return nil, err
	}
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && req.Key() != 18 {
		r := kbin.Reader{Src: body}
		for range r.Uvarint() {
			r.Uvarint()
			r.Span(int(r.Uvarint()))
		}
		body = r.Src
	}
	return resp, resp.ReadFrom(body)
}

// answer reads one response of at most 16 MiB: what follows the correlation id.
func answer(c net.Conn, corr uint32) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 4 || size > 16<<20 {
		return nil, fmt.Errorf("an answer of %d bytes", size)
	}
	if got := binary.BigEndian.Uint32(head[4:]); got != corr {
		return nil, fmt.Errorf("correlation id %d, want %d", got, corr)
	}
	b := make([]byte, size-4)
	_, err := io.ReadFull(c, b)
	return b, err
}

// request is a frame with a request header of the given kind, and any body.
func request(key, version int16, flexible bool, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 4), uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, 77)
	b = binary.BigEndian.AppendUint16(b, 0xffff) // no client id
	if flexible {
		b = append(b, 0)
	}
	b = append(b, body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func TestGarbageOnTheKafkaPort(t *testing.T) {
	s := newTarget(t)
	for _, b := range [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
		{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03}, // TLS
		[]byte("SSH-2.0-OpenSSH_9.6\r\n"),
		bytes.Repeat([]byte{0xff}, 4096),
		make([]byte, 4096),
		{0, 0, 0, 0},
		{0, 0, 0, 7, 0, 18, 0, 0, 0, 0, 0},
		{0x80, 0, 0, 0},
	} {
		s.closes(t, b)
	}
	s.unharmed(t)
	// Noise of the right shape for a frame. The client says that no more is coming, so that half a frame ends as well.
	for range 200 {
		noise := make([]byte, 300)
		if _, err := rand.Read(noise); err != nil {
			t.Fatal(err)
		}
		noise[0], noise[1], noise[2] = 0, 0, 0
		s.ends(t, noise)
	}
	s.unharmed(t)
}

// ends sends bytes and half-closes: whatever the server says to it, it must close.
func (s *target) ends(t *testing.T, b []byte) {
	t.Helper()
	c := s.dial(t)
	defer c.Close()
	if _, err := c.Write(b); err == nil {
		_ = c.CloseWrite() // the server may have been faster
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open long after %.40q (key %d, version %d)", b, binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]))
	}
}

// TestOversizedFramesAreNotAllocated: a claim of the largest size costs nothing; a larger one closes the connection.
func TestOversizedFramesAreNotAllocated(t *testing.T) {
	s := newTarget(t)
	before, err := harness.UsageOf(s.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint32{100<<20 + 1, 1 << 30, 1<<31 - 1} {
		s.closes(t, binary.BigEndian.AppendUint32(nil, size))
	}
	for range 300 {
		c := s.dial(t)
		b := request(0, 9, true, nil)
		binary.BigEndian.PutUint32(b, 100<<20)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	s.unharmed(t)
	after, err := harness.UsageOf(s.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.PeakRSS - before.PeakRSS; grown > 100<<20 {
		t.Errorf("300 claims of 100 MiB made the server grow by %d MiB", grown>>20)
	}
}

// TestLargestFramesSentAtOnce: what is really sent is taken up to the node's limit at a time; no more sockets are read then.
func TestLargestFramesSentAtOnce(t *testing.T) {
	s := newTarget(t)
	frame := request(0, 9, true, append([]byte{0, 0xff, 0xff, 0, 0, 0x75, 0x30, 2, 7, 'o', 't', 'h', 'e', 'r', 's', 2, 0, 0, 0, 0, 0x81, 0x80, 0x80, 0x20}, make([]byte, 64<<20)...))
	var wg sync.WaitGroup
	for range 4 {
		c := s.dial(t)
		if err := c.SetDeadline(time.Now().Add(2 * bound)); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			if _, err := c.Write(frame); err != nil {
				return // closed: refused as well
			}
			_ = c.CloseWrite()
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a frame of 64 MiB has neither an answer nor an end after minutes")
			}
		})
	}
	wg.Wait()
	s.unharmed(t)
}

// TestHostileLengths: every request type and version with lengths far beyond the frame, in every place where one can be.
func TestHostileLengths(t *testing.T) {
	s := newTarget(t)
	versions := s.ask(t, kmsg.NewPtrApiVersionsRequest()).(*kmsg.ApiVersionsResponse)
	if len(versions.ApiKeys) < 10 {
		t.Fatalf("%d APIs are advertised", len(versions.ApiKeys))
	}
	for _, k := range versions.ApiKeys {
		for v := max(0, k.MinVersion-1); v <= k.MaxVersion+1; v++ {
			req := kmsg.RequestForKey(k.ApiKey)
			req.SetVersion(v)
			flexible := req.IsFlexible()
			for lead := range 12 {
				for _, fill := range []byte{0xff, 0x7f} {
					// So many zero bytes get the decoder so far into the request.
					s.ends(t, request(k.ApiKey, v, flexible, append(make([]byte, lead), bytes.Repeat([]byte{fill}, 24)...)))
				}
			}
		}
	}
	s.unharmed(t)
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0x0f}
	for _, b := range [][]byte{
		request(3, 1, false, []byte{0x7f, 0xff, 0xff, 0xff}),
		request(3, 12, true, huge),
		request(19, 2, false, []byte{0x7f, 0xff, 0xff, 0xff}),
		request(19, 7, true, huge),
		request(0, 3, false, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0x75, 0x30, 0x7f, 0xff, 0xff, 0xff}),
		request(0, 9, true, append([]byte{0, 0xff, 0xff, 0, 0, 0x75, 0x30}, huge...)),
		request(0, 9, true, append([]byte{0, 0xff, 0xff, 0, 0, 0x75, 0x30, 2}, huge...)),
		request(0, 9, true, append([]byte{0, 0xff, 0xff, 0, 0, 0x75, 0x30, 2, 2, 't', 2, 0, 0, 0, 0}, huge...)),
	} {
		for range 20 {
			s.ends(t, b)
		}
	}
	s.unharmed(t)
}

func TestUnknownAPIClosesTheConnection(t *testing.T) {
	s := newTarget(t)
	for _, b := range [][]byte{
		request(999, 0, false, nil), request(-1, 0, false, nil), request(127, 0, false, nil), request(128, 0, false, nil), request(11, 0, false, nil),
		request(3, 99, true, []byte{0}), request(3, -1, false, nil), request(0, 2, false, nil), request(1, 99, true, nil),
	} {
		s.closes(t, b)
	}
	s.unharmed(t)
	// ApiVersions alone has an answer that every client can read (KIP-511).
	c := s.dial(t)
	if _, err := c.Write(request(18, 99, true, []byte{1, 1, 0})); err != nil {
		t.Fatal(err)
	}
	body, err := answer(c, 77)
	if err != nil {
		t.Fatal(err)
	}
	if want := []byte{0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4}; !bytes.Equal(body, want) {
		t.Errorf("ApiVersions v99 is answered with % x, want % x", body, want)
	}
	// And the connection lives: the client comes down to a version that the server knows.
	req := kmsg.NewPtrApiVersionsRequest()
	req.SetVersion(3)
	if _, err := exchange(c, req); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestSlowHalfFramesHoldNobodyUp: clients that stop in the middle of a request keep no other from being served: they still wait when the others
// have been, unless this machine was so slow that the server has given them up in the meantime.
func TestSlowHalfFramesHoldNobodyUp(t *testing.T) {
	s := newTarget(t)
	frame := request(3, 1, false, make([]byte, 1000))
	for range 3 {
		var slow []net.Conn
		for i := range 500 {
			c := s.dial(t)
			if _, err := c.Write(frame[:1+i%900]); err != nil {
				t.Fatal(err)
			}
			slow = append(slow, c)
		}
		s.unharmed(t)
		waiting := 0
		for _, c := range slow {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				waiting++
			}
			c.Close()
		}
		if waiting > 0 {
			return
		}
	}
	t.Error("others were served when the slow ones had been given up, each time")
}
