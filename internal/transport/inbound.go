package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/chronik-go/chronik/internal/transport/peerpb"
)

type slotKey struct {
	node   int32
	stream string
}

// inbound is one stream that was accepted.
type inbound struct {
	from     int32
	name     string
	slot     *slot
	owner    uint64
	replaced <-chan struct{} // closed when a newer stream takes the slot
}

// slot makes sure that one peer's messages of one stream reach the handler one at a time and in order, also while a stream
// that died without saying so still has frames to read: the newest stream owns the slot, an older one delivers nothing more.
type slot struct {
	mu       sync.Mutex
	owner    uint64
	replaced chan struct{}
}

var (
	errSuperseded = status.Error(codeSuperseded, "a newer stream of this peer took over")
	errStopping   = status.Error(codes.Unavailable, "the node is stopping")
)

// take gives the slot of key to a new stream, and ends the one that had it.
func (s *Server) take(key slotKey) (sl *slot, owner uint64, replaced <-chan struct{}) {
	s.mu.Lock()
	sl = s.slots[key]
	if sl == nil {
		sl = &slot{}
		s.slots[key] = sl
	}
	s.mu.Unlock()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.owner++
	if sl.replaced != nil {
		close(sl.replaced)
	}
	sl.replaced = make(chan struct{})
	return sl, sl.owner, sl.replaced
}

// deliver calls fn if the stream still owns the slot.
func (sl *slot) deliver(owner uint64, fn func()) error {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.owner != owner {
		return errSuperseded
	}
	fn()
	return nil
}

// accept admits a stream, answers with this node's identity, and takes the peer's slot.
func (s *Server) accept(stream grpc.ServerStream, name string) (*inbound, error) {
	ctx := stream.Context()
	info, err := s.admit(ctx, name, remoteAddr(ctx))
	if err != nil {
		return nil, err
	}
	in := &inbound{from: info.NodeID, name: name}
	in.slot, in.owner, in.replaced = s.take(slotKey{info.NodeID, name})
	self := s.cfg.self()
	if err := stream.SendHeader(self.headers()); err != nil {
		return nil, err
	}
	if s.cfg.OnInbound != nil {
		s.cfg.OnInbound(info.NodeID)
	}
	return in, nil
}

// serve runs receive on a goroutine of its own until the stream ends, is replaced, or the server closes. gRPC ends a
// stream when its handler returns, and only that frees a receive that is waiting: Close waits for it, not serve.
func (s *Server) serve(in *inbound, receive func() error) error {
	ended := make(chan error, 1)
	s.streams.Go(func() { ended <- receive() })
	select {
	case err := <-ended:
		return err
	case <-in.replaced:
		return errSuperseded
	case <-s.quit:
		return errStopping
	}
}

// Control implements peerpb.PeerServer.
func (s *Server) Control(stream grpc.BidiStreamingServer[peerpb.Frame, peerpb.Frame]) error {
	return s.envelopes(stream, "control")
}

// Bulk implements peerpb.PeerServer.
func (s *Server) Bulk(stream grpc.BidiStreamingServer[peerpb.Frame, peerpb.Frame]) error {
	return s.envelopes(stream, "bulk")
}

// envelopes hands a stream's messages to the handler until the stream ends.
func (s *Server) envelopes(stream grpc.ServerStream, name string) error {
	in, err := s.accept(stream, name)
	if err != nil {
		return err
	}
	return s.serve(in, func() error { return s.receiveEnvelopes(stream, in) })
}

func (s *Server) receiveEnvelopes(stream grpc.ServerStream, in *inbound) error {
	var dec envelopeDecoder
	for {
		var frame inFrame
		if err := stream.RecvMsg(&frame); err != nil {
			return endOfStream(err)
		}
		envs, err := dec.decode(frame.bufs)
		frame.free()
		if err != nil {
			return s.badFrame(in, err)
		}
		err = in.slot.deliver(in.owner, func() {
			if len(envs) > 0 {
				s.handler.HandleEnvelopes(in.from, envs)
			}
		})
		if err != nil {
			return err
		}
		dec.forget()
	}
}

// badFrame logs a frame that could not be decoded; the stream ends, and the peer starts a new one.
func (s *Server) badFrame(in *inbound, err error) error {
	s.refusals.warn(fmt.Sprintf("frame/%d/%s", in.from, in.name), "a peer sent a damaged frame", "peer", in.from,
		"stream", in.name, "err", err)
	return status.Error(codes.DataLoss, err.Error())
}

func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Forward implements peerpb.PeerServer.
func (s *Server) Forward(stream grpc.BidiStreamingServer[peerpb.Frame, peerpb.Frame]) error {
	in, err := s.accept(stream, "forward")
	if err != nil {
		return err
	}
	fs := newForwardServer(s.cfg.ForwardBytes)
	// The context ends with the connection, and wakes whoever waits for room or for answers.
	defer context.AfterFunc(stream.Context(), fs.close)()
	defer fs.close()
	s.streams.Go(func() { fs.send(stream) })
	return s.serve(in, func() error { return s.receiveForwards(stream, in, fs) })
}

func (s *Server) receiveForwards(stream grpc.ServerStream, in *inbound, fs *forwardServer) error {
	var dec forwardDecoder
	for {
		var frame inFrame
		if err := stream.RecvMsg(&frame); err != nil {
			return endOfStream(err)
		}
		items, err := dec.decode(frame.bufs, frameForwards)
		frame.free()
		if err != nil {
			return s.badFrame(in, err)
		}
		for i := range items {
			it := items[i]
			if !fs.admit(len(it.body)) {
				return errStopping
			}
			reply := fs.reply(it.id, len(it.body))
			err := in.slot.deliver(in.owner, func() { s.handler.HandleForward(in.from, it.method, it.body, reply) })
			if err != nil {
				return err
			}
		}
		dec.forget()
	}
}
