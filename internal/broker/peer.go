package broker

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// In one-address mode, and for a few APIs in any, this node asks others on its clients' behalf: a whole Kafka request goes
// over transport's Call, is answered there as if by an ordinary listener, and never goes a second hop.

// askPeer sends req to a node and returns its answer.
func (b *Broker) askPeer(ctx context.Context, node int32, req kmsg.Request) (kmsg.Response, error) {
	return b.call(ctx, node, MethodRequest, nil, req)
}

// call sends req, with what goes before it, and takes the answer.
func (b *Broker) call(ctx context.Context, node int32, method uint16, body []byte, req kmsg.Request) (kmsg.Response, error) {
	body = binary.BigEndian.AppendUint16(body, uint16(req.Key()))
	body = binary.BigEndian.AppendUint16(body, uint16(req.GetVersion()))
	answer, err := b.cfg.Forwarder.Call(ctx, node, method, req.AppendTo(body))
	if err != nil {
		return nil, fmt.Errorf("asking node %d: %w", node, err)
	}
	resp, err := decodeAnswer(req.ResponseKind(), req.GetVersion(), answer)
	if err != nil {
		return nil, fmt.Errorf("answer of node %d: %w", node, err)
	}
	return resp, nil
}

// decodeAnswer reads another node's answer into resp, walked first like a request: a peer that lies costs no memory either.
func decodeAnswer(resp kmsg.Response, version int16, b []byte) (kmsg.Response, error) {
	resp.SetVersion(version)
	if _, err := guardBy(answerShapes[resp.Key()], resp.Key(), version, resp.IsFlexible(), b); err != nil {
		return nil, err
	}
	if err := resp.ReadFrom(b); err != nil {
		return nil, err
	}
	return resp, nil
}

// HandleCall answers another node's MethodRequest or MethodRequestAs.
func (b *Broker) HandleCall(ctx context.Context, from int32, method uint16, body []byte) ([]byte, error) {
	rc := &RequestContext{Received: b.cfg.Clock.Now(), FromPeer: true}
	switch method {
	case MethodRequest:
	case MethodRequestAs:
		var err error
		if body, err = takeClient(rc, body); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("broker: no call method %#x", method)
	}
	if len(body) < 4 {
		return nil, errForward
	}
	key, version := int16(binary.BigEndian.Uint16(body)), int16(binary.BigEndian.Uint16(body[2:]))
	a := lookupAPI(key, version)
	switch key {
	case int16(kmsg.Fetch), int16(kmsg.ListOffsets), int16(kmsg.OffsetForLeaderEpoch), int16(kmsg.DeleteRecords),
		int16(kmsg.DescribeQuorum), int16(kmsg.DescribeProducers), int16(kmsg.ElectLeaders):
	case int16(kmsg.JoinGroup), int16(kmsg.SyncGroup), int16(kmsg.Heartbeat), int16(kmsg.LeaveGroup), int16(kmsg.OffsetCommit),
		int16(kmsg.OffsetFetch), int16(kmsg.DescribeGroups), int16(kmsg.ListGroups), int16(kmsg.DeleteGroups), int16(kmsg.OffsetDelete),
		int16(kmsg.ConsumerGroupHeartbeat), int16(kmsg.ConsumerGroupDescribe):
	default:
		a = nil
	}
	if a == nil {
		return nil, fmt.Errorf("broker: node %d asked API %d, version %d", from, key, version)
	}
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	if _, err := guard(key, version, req.IsFlexible(), body[4:]); err != nil {
		return nil, err
	}
	if err := req.ReadFrom(body[4:]); err != nil {
		return nil, err
	}
	rc.Key, rc.Version = key, version
	defer b.keep(rc, 0)
	resp, err := a.handle(b, ctx, rc, req)
	if err != nil {
		return nil, err
	}
	resp.SetVersion(version)
	f, ok := resp.(*fetchResponse)
	if !ok {
		return resp.AppendTo(nil), nil
	}
	// One buffer of the right size: the transport has it next, so there is nothing to give back.
	out := f.AppendTo(make([]byte, 0, f.encodedBound()))
	f.free()
	return out, nil
}
