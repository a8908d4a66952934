package broker

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// client is a raw connection.
type client struct {
	t    testing.TB
	nc   net.Conn
	corr int32
}

func (n *fleetNode) dial(t testing.TB, listener ...string) *client {
	t.Helper()
	name := append(listener, "main")[0]
	nc, err := net.Dial("tcp", n.srv.Addr(name).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{t: t, nc: nc}
}

// send writes a request and returns its correlation id.
func (c *client) send(version int16, req kmsg.Request) int32 {
	c.t.Helper()
	req.SetVersion(version)
	c.corr++
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("test"))
	if _, err := c.nc.Write(f.AppendRequest(nil, req, c.corr)); err != nil {
		c.t.Fatal(err)
	}
	return c.corr
}

func (c *client) frame() (int32, []byte, error) {
	c.nc.SetReadDeadline(time.Now().Add(time.Minute))
	var head [8]byte
	if _, err := io.ReadFull(c.nc, head[:]); err != nil {
		return 0, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:])-4)
	_, err := io.ReadFull(c.nc, body)
	return int32(binary.BigEndian.Uint32(head[4:])), body, err
}

// recv reads the answer to req, which must be the next.
func recv[R kmsg.Response](c *client, corr int32, req kmsg.Request) R {
	c.t.Helper()
	got, body, err := c.frame()
	if err != nil {
		c.t.Fatal(err)
	}
	if got != corr {
		c.t.Fatalf("correlation id %d, want %d", got, corr)
	}
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && resp.Key() != 18 {
		if len(body) == 0 || body[0] != 0 {
			c.t.Fatalf("flexible response without tag section: %x", body)
		}
		body = body[1:]
	}
	if err := resp.ReadFrom(body); err != nil {
		c.t.Fatalf("response %T: %v", resp, err)
	}
	again := resp.AppendTo(nil)
	if len(again) != len(body) {
		c.t.Fatalf("response %T v%d: %d bytes, its decoded form has %d", resp, resp.GetVersion(), len(body), len(again))
	}
	return resp.(R)
}

func ask[R kmsg.Response](c *client, version int16, req kmsg.Request) R {
	c.t.Helper()
	return recv[R](c, c.send(version, req), req)
}

// closed fails unless the server closes the connection without another byte.
func (c *client) closed() {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(time.Minute))
	var b [1]byte
	n, err := c.nc.Read(b[:])
	var ne net.Error
	if n != 0 || err == nil || errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatalf("connection not closed: %d bytes, %v", n, err)
	}
}

func produceReq(t *metadata.Topic, index int32, records []byte, acks int16) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = acks, 60_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = index, records
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID, rt.Partitions = t.Name, t.ID, []kmsg.ProduceRequestTopicPartition{p}
	req.Topics = []kmsg.ProduceRequestTopic{rt}
	return req
}

func fetchReq(t *metadata.Topic, wait int32, offsets ...int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = wait, 1, 50<<20, -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = t.Name, t.ID
	for i, o := range offsets {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = int32(i), o, 1<<20, -1
		rt.Partitions = append(rt.Partitions, p)
	}
	req.Topics = []kmsg.FetchRequestTopic{rt}
	return req
}

// until waits for a condition, bounded.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
