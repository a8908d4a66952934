package transport

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/transport/peerpb"
)

// fuzzServer answers calls without a socket.
func fuzzServer(h Handler) *Server {
	cfg := Config{NodeID: 1, ClusterID: func() string { return "c" }, Dir: uuid.UUID{1}, Logger: slog.New(slog.DiscardHandler), Clock: clock.System{}}
	return &Server{cfg: cfg.withDefaults(), handler: h, quit: make(chan struct{}), slots: map[slotKey]*slot{},
		refusals: seldom{logger: cfg.Logger, clock: cfg.Clock, interval: refusalInterval}}
}

func marshalled(f *testing.F, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzHello feeds first contact, from both sides: what a stranger asks, and what a stranger answers.
func FuzzHello(f *testing.F) {
	dir := uuid.UUID{7}
	node := &peerpb.Node{NodeId: 2, Dir: dir[:], ClusterId: "c", Version: 1, MinVersion: 1, Payload: []byte("p"),
		Founding: []*peerpb.Founder{{NodeId: 2, Dir: dir[:], Address: "h:1"}}}
	f.Add(marshalled(f, &peerpb.HelloRequest{From: node}))
	f.Add(marshalled(f, &peerpb.HelloResponse{Self: node}))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0x0f})
	s := fuzzServer(new(recorder))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req peerpb.HelloRequest
		if proto.Unmarshal(b, &req) == nil {
			if resp, err := s.Hello(context.Background(), &req); err == nil && resp.GetSelf().GetNodeId() != 1 {
				t.Fatalf("answered as %+v", resp)
			} else if err != nil && status.Code(err) != codes.InvalidArgument {
				t.Fatal(err)
			}
		}
		var resp peerpb.HelloResponse
		if proto.Unmarshal(b, &resp) != nil {
			return
		}
		p, err := fromProto(resp.GetSelf())
		if err != nil {
			return
		}
		if again, err := fromProto(toProto(p)); err != nil || !reflect.DeepEqual(p, again) {
			t.Fatalf("%+v comes back as %+v, %v", p, again, err)
		}
	})
}

// FuzzHeaders feeds the headers with which a peer introduces itself: it is let in only as what it says it is, and only if that
// fits.
func FuzzHeaders(f *testing.F) {
	f.Add("c", "2", "1", uuid.UUID{9}.String(), "1", "1")
	f.Add("c", "-1", "1", "", "1", "1")
	f.Add("other", "99999999999", "2", "x", "4294967296", "0")
	s := fuzzServer(new(recorder))
	f.Fuzz(func(t *testing.T, cluster, node, target, dir, version, oldest string) {
		md := metadata.Pairs(mdCluster, cluster, mdNode, node, mdTarget, target, mdDir, dir, mdVersion, version, mdMinVersion, oldest)
		p, err := s.admit(metadata.NewIncomingContext(context.Background(), md), "control", "test")
		if err != nil {
			if status.Code(err) != codeRefused {
				t.Fatal(err)
			}
			return
		}
		if p.ClusterID != "c" || p.NodeID == 1 || p.NodeID < 0 || p.Version < ProtocolVersion || p.MinVersion > ProtocolVersion {
			t.Fatalf("%v is let in as %+v", md, p)
		}
	})
}

// FuzzCall feeds a call as gRPC delivers it, and the answer to one.
func FuzzCall(f *testing.F) {
	f.Add(marshalled(f, &peerpb.CallRequest{Method: 3, Body: []byte("b")}))
	f.Add(marshalled(f, &peerpb.CallResponse{Error: &peerpb.CallError{Code: 4, Message: "no"}}))
	f.Add(marshalled(f, &peerpb.CallRequest{Method: 1 << 31}))
	s := fuzzServer(new(recorder))
	md := PeerInfo{NodeID: 2, ClusterID: "c", Version: 1, MinVersion: 1}.headers()
	md.Set(mdTarget, "1")
	ctx := metadata.NewIncomingContext(context.Background(), md)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req peerpb.CallRequest
		if proto.Unmarshal(b, &req) == nil {
			resp, err := s.Call(ctx, &req)
			if (err != nil) != (req.Method > 1<<16-1) || err == nil && resp == nil {
				t.Fatalf("method %d: %v, %v", req.Method, resp, err)
			}
		}
		var resp peerpb.CallResponse
		if proto.Unmarshal(b, &resp) == nil && resp.GetError() != nil {
			_ = resp.GetError().GetMessage()
		}
	})
}

// FuzzFrameCodec feeds what gRPC hands over for a stream's message: it comes out as it went in, in however many pieces, and
// every buffer is given back once.
func FuzzFrameCodec(f *testing.F) {
	f.Add(encode(f, sampleEnvelopes()[:2]), uint16(3))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		pool := &countingPool{}
		cut := min(int(at), len(b))
		var in mem.BufferSlice
		for _, part := range [][]byte{b[:cut], b[cut:]} {
			buf := append([]byte(nil), part...)
			in = append(in, mem.NewBuffer(&buf, pool))
		}
		var frame inFrame
		if err := (frameCodec{}).Unmarshal(in, &frame); err != nil {
			t.Fatal(err)
		}
		in.Free() // as gRPC does
		if got := frame.bufs.Materialize(); string(got) != string(b) {
			t.Fatalf("%x became %x", b, got)
		}
		var dec envelopeDecoder
		if _, err := dec.decode(frame.bufs); err != nil && !errors.Is(err, ErrFrame) {
			t.Fatal(err)
		}
		frame.free()
		if pool.put > 2 {
			t.Fatalf("%d buffers given back", pool.put)
		}
	})
}

type countingPool struct{ put int }

func (p *countingPool) Get(n int) *[]byte { b := make([]byte, n); return &b }
func (p *countingPool) Put(*[]byte)       { p.put++ }
