package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// hasty makes every wait of a broker as short as can be: a fuzzer has no time for long polls.
func hasty(_ int32, c *Config) {
	c.Registerer = nil
	c.MaxFetchWait, c.AutoCreateWait, c.RequestTimeout, c.ProduceTimeout = time.Millisecond, time.Millisecond, time.Millisecond, 50*time.Millisecond
}

// FuzzConnection feeds a connection one request of any key and version, header and all, and answers it: nothing a client
// sends makes a handler panic or answer what its own client could not read. What a client can set up by it, topics and
// sessions, goes with the cluster that each input gets.
func FuzzConnection(f *testing.F) {
	for i := range apis {
		for _, req := range requestsOf(&apis[i]) {
			rest := []byte{0, 1, 'c'}
			if req.IsFlexible() {
				rest = append(rest, 0)
			}
			if v := req.GetVersion(); v == apis[i].min || v == apis[i].max {
				f.Add(apis[i].key, v, req.AppendTo(rest), v == apis[i].max)
			}
		}
	}
	f.Add(int16(18), int16(99), []byte{1, 2, 3}, false)
	local, remote := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2}
	f.Fuzz(func(t *testing.T, key, version int16, rest []byte, oneAddress bool) {
		fl := newDryFleet(t, 1, hasty)
		fl.topic("text", 3)
		listener := "main"
		if oneAddress {
			listener = "one"
		}
		begin, closed := fl.nodes[1].b.Connect(listener, local, remote)
		defer closed()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		finish, _, err := begin(ctx, key, version, rest)
		if err != nil {
			if !errors.Is(err, errRequest) {
				t.Fatalf("API %d, version %d: untyped: %v", key, version, err)
			}
			return
		}
		payload, release, err := finish(ctx)
		if err != nil || payload == nil {
			return
		}
		defer release()
		if key == int16(kmsg.ApiVersions) {
			return // of whatever version: TestUnknownApiVersionsVersionGetsV0AndOneKey
		}
		var body []byte
		for _, b := range payload {
			body = append(body, b...)
		}
		resp := kmsg.ResponseForKey(key)
		resp.SetVersion(version)
		if resp.IsFlexible() {
			body = body[1:]
		}
		if err := resp.ReadFrom(body); err != nil {
			t.Fatalf("API %d, version %d: its answer can't be read: %v", key, version, err)
		}
	})
}

// FuzzPeerRequest feeds what another node asks on a client's behalf.
func FuzzPeerRequest(f *testing.F) {
	for i := range apis {
		for _, req := range requestsOf(&apis[i]) {
			if req.GetVersion() != apis[i].max {
				continue
			}
			body := binary.BigEndian.AppendUint16(nil, uint16(apis[i].key))
			body = binary.BigEndian.AppendUint16(body, uint16(req.GetVersion()))
			f.Add(req.AppendTo(body))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fl := newDryFleet(t, 1, hasty)
		fl.topic("text", 3)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		answer, err := fl.nodes[1].b.HandleCall(ctx, 2, MethodRequest, body)
		if err != nil {
			return
		}
		resp := kmsg.ResponseForKey(int16(binary.BigEndian.Uint16(body)))
		resp.SetVersion(int16(binary.BigEndian.Uint16(body[2:])))
		if err := resp.ReadFrom(answer); err != nil {
			t.Fatalf("its answer can't be read: %v", err)
		}
	})
}

// FuzzPeerAnswer feeds what a node that was asked answers: any bytes are an answer or an error, within the walk's bound of
// memory.
func FuzzPeerAnswer(f *testing.F) {
	for key := range answerShapes {
		for _, resp := range answersOf(key) {
			f.Add(key, resp.GetVersion(), resp.AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, key, version int16, b []byte) {
		if lookupAPI(key, version) == nil || answerShapes[key] == nil {
			t.Skip()
		}
		resp, err := decodeAnswer(kmsg.ResponseForKey(key), version, b)
		if (err == nil) == (resp == nil) {
			t.Fatal(fmt.Sprint(resp, err))
		}
	})
}
