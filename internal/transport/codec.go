package transport

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// codecName is the content subtype of the streams.
const codecName = "chronik-frame"

func init() { encoding.RegisterCodecV2(frameCodec{}) }

// frameCodec passes frames through gRPC without touching them.
type frameCodec struct{}

// outFrame is a frame to be sent; gRPC frees its buffers.
type outFrame struct{ bufs mem.BufferSlice }

// inFrame is a frame received; whoever received it calls free once it is decoded.
type inFrame struct{ bufs mem.BufferSlice }

func (f *inFrame) free() {
	f.bufs.Free()
	f.bufs = nil
}

// Marshal implements encoding.CodecV2.
func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*outFrame)
	if !ok {
		return nil, fmt.Errorf("transport: cannot send a %T on a stream of frames", v)
	}
	return f.bufs, nil
}

// Unmarshal implements encoding.CodecV2.
func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*inFrame)
	if !ok {
		return fmt.Errorf("transport: cannot receive a %T from a stream of frames", v)
	}
	data.Ref()
	f.bufs = data
	return nil
}

// Name implements encoding.CodecV2.
func (frameCodec) Name() string { return codecName }
