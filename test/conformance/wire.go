package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// patience bounds every request.
const patience = 90 * time.Second

// silence is how long is waited for an answer that Kafka never gives.
const silence = 30 * time.Second

// errSilent says that nothing came in time.
var errSilent = errors.New("no answer")

// errClosed says that the server closed the connection instead of answering.
var errClosed = errors.New("connection closed")

// conn is a connection to one broker. Requests go one at a time.
type conn struct {
	nc       net.Conn
	seq      int32
	patience time.Duration
}

func dial(addr string) (*conn, error) {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	return &conn{nc: nc, patience: patience}, nil
}

// request sends req at its version and reads the answer. The error matches errClosed where the server hung up.
func (c *conn) request(req kmsg.Request) (kmsg.Response, error) {
	c.seq++
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("conformance"))
	body, err := c.raw(f.AppendRequest(nil, req, c.seq))
	if err != nil {
		return nil, err
	}
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if len(body) < 4 || int32(binary.BigEndian.Uint32(body)) != c.seq {
		return nil, errors.New("the answer is of another request")
	}
	body = body[4:]
	if resp.IsFlexible() && resp.Key() != int16(kmsg.ApiVersions) {
		if len(body) < 1 || body[0] != 0 {
			return nil, errors.New("tags in the response's header")
		}
		body = body[1:]
	}
	if resp.Key() == int16(kmsg.ApiVersions) && len(body) > 2 && binary.BigEndian.Uint16(body) == 35 {
		resp.SetVersion(0) // KIP-511
	}
	if err := resp.ReadFrom(body); err != nil {
		return nil, fmt.Errorf("the answer does not decode: %w", err)
	}
	return resp, nil
}

// raw sends a frame (with its length) and returns the answer's (without).
func (c *conn) raw(frame []byte) ([]byte, error) {
	if err := c.nc.SetDeadline(time.Now().Add(c.patience)); err != nil {
		return nil, err
	}
	if _, err := c.nc.Write(frame); err != nil {
		return nil, hungUp(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(c.nc, size[:]); err != nil {
		return nil, hungUp(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(c.nc, body); err != nil {
		return nil, hungUp(err)
	}
	return body, nil
}

func hungUp(err error) error {
	var t net.Error
	if errors.As(err, &t) && t.Timeout() {
		return errSilent
	}
	return fmt.Errorf("%w: %w", errClosed, err)
}
