package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// conn asks one request at a time: what a member of a group needs, and cheap enough for 10,000 of them.
type conn struct {
	nc   net.Conn
	in   *bufio.Reader
	form *kmsg.RequestFormatter
	next int32
}

// wireTimeout bounds a dial and an answer; a JoinGroup may wait for the other members.
const wireTimeout = 60 * time.Second

func dial(ctx context.Context, addr string) (*conn, error) {
	d := net.Dialer{Timeout: wireTimeout}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{nc: nc, in: bufio.NewReaderSize(nc, 512), form: kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench"))}, nil
}

func (c *conn) ask(req kmsg.Request) (kmsg.Response, error) {
	c.next++
	if err := c.nc.SetDeadline(time.Now().Add(wireTimeout)); err != nil {
		return nil, err
	}
	if _, err := c.nc.Write(c.form.AppendRequest(nil, req, c.next)); err != nil {
		return nil, err
	}
	var head [8]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(head[:4]))
	if id := int32(binary.BigEndian.Uint32(head[4:])); id != c.next || size < 4 || size > 64<<20 {
		return nil, fmt.Errorf("answer %d of %d bytes to request %d", id, size, c.next)
	}
	body := make([]byte, size-4)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	resp := req.ResponseKind()
	if resp.IsFlexible() {
		if len(body) == 0 || body[0] != 0 {
			return nil, fmt.Errorf("an answer to %T with tags in its header", req)
		}
		body = body[1:]
	}
	return resp, resp.ReadFrom(body)
}

func (c *conn) close() { c.nc.Close() }
