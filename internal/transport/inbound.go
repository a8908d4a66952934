package transport

import (
	"context"
	"errors"
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

// slot makes sure that one peer's messages of one stream reach the handler one at a time and in order, also while a stream
// that died without saying so still has frames to read: the newest stream owns the slot, an older one delivers nothing more.
type slot struct {
	mu    sync.Mutex
	owner uint64
}

func (s *Server) slot(key slotKey) (*slot, uint64) {
	s.mu.Lock()
	sl := s.slots[key]
	if sl == nil {
		sl = &slot{}
		s.slots[key] = sl
	}
	s.mu.Unlock()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.owner++
	return sl, sl.owner
}

// deliver calls fn if the stream still owns the slot.
func (sl *slot) deliver(owner uint64, fn func()) error {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.owner != owner {
		return status.Error(codeSuperseded, "a newer stream of this peer took over")
	}
	fn()
	return nil
}

// accept admits a stream, answers with this node's identity, and takes the peer's slot.
func (s *Server) accept(stream grpc.ServerStream, name string) (from int32, sl *slot, owner uint64, err error) {
	ctx := stream.Context()
	info, err := s.admit(ctx, name, remoteAddr(ctx))
	if err != nil {
		return 0, nil, 0, err
	}
	sl, owner = s.slot(slotKey{info.NodeID, name})
	self := s.cfg.self()
	if err := stream.SendHeader(self.headers()); err != nil {
		return 0, nil, 0, err
	}
	if s.cfg.OnInbound != nil {
		s.cfg.OnInbound(info.NodeID)
	}
	return info.NodeID, sl, owner, nil
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
	from, sl, owner, err := s.accept(stream, name)
	if err != nil {
		return err
	}
	var dec envelopeDecoder
	for {
		var in inFrame
		if err := stream.RecvMsg(&in); err != nil {
			return endOfStream(err)
		}
		envs, err := dec.decode(in.bufs)
		in.free()
		if err != nil {
			return s.badFrame(from, name, err)
		}
		err = sl.deliver(owner, func() {
			if len(envs) > 0 {
				s.handler.HandleEnvelopes(from, envs)
			}
		})
		if err != nil {
			return err
		}
		dec.forget()
	}
}

// badFrame logs a frame that could not be decoded; the stream ends, and the peer starts a new one.
func (s *Server) badFrame(from int32, stream string, err error) error {
	s.refusals.warn("frame/"+stream, "a peer sent a damaged frame", "peer", from, "stream", stream, "err", err)
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
	from, sl, owner, err := s.accept(stream, "forward")
	if err != nil {
		return err
	}
	fs := newForwardServer(s.cfg.ForwardBytes)
	// The context ends with the connection, and wakes whoever waits for room or for answers.
	unhook := context.AfterFunc(stream.Context(), fs.close)
	defer unhook()
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		fs.send(stream)
	}()
	// RecvMsg only fails once the stream's context is done (then SendMsg fails as well) or the peer has finished sending,
	// so this wait is as bounded as the stream.
	defer func() {
		fs.close()
		<-sender
	}()
	var dec forwardDecoder
	for {
		var in inFrame
		if err := stream.RecvMsg(&in); err != nil {
			return endOfStream(err)
		}
		items, err := dec.decode(in.bufs, frameForwards)
		in.free()
		if err != nil {
			return s.badFrame(from, "forward", err)
		}
		for i := range items {
			it := items[i]
			if !fs.admit(len(it.body)) {
				return status.Error(codes.Unavailable, "the stream is closing")
			}
			reply := fs.reply(it.id, len(it.body))
			if err := sl.deliver(owner, func() { s.handler.HandleForward(from, it.method, it.body, reply) }); err != nil {
				return err
			}
		}
		dec.forget()
	}
}
