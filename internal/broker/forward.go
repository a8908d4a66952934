package broker

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/transport"
)

// Methods of this package on the streams between nodes.
const (
	// MethodProduce is one batch on the ordered forward stream.
	MethodProduce uint16 = 0x0b00
	// MethodRequest is a whole Kafka request, on behalf of a client in one-address mode.
	MethodRequest uint16 = 0x0b01
	// MethodRequestAs is MethodRequest with the client's id and address before it: for groups, whose members are told apart by
	// them.
	MethodRequestAs uint16 = 0x0b02
)

// A forwarded batch: format, group, leader epoch, connection, incarnation of the route, batch. Big endian.
const (
	forwardFormat = 1
	forwardHeader = 1 + 8 + 4 + 8 + 4
)

var errForward = errors.New("malformed forward message")

type forwardedBatch struct {
	group       uint64
	epoch       int32
	conn        uint64
	incarnation uint32
	records     []byte
}

func (f *forwardedBatch) encode() []byte {
	b := make([]byte, 0, forwardHeader+len(f.records))
	b = append(b, forwardFormat)
	b = binary.BigEndian.AppendUint64(b, f.group)
	b = binary.BigEndian.AppendUint32(b, uint32(f.epoch))
	b = binary.BigEndian.AppendUint64(b, f.conn)
	b = binary.BigEndian.AppendUint32(b, f.incarnation)
	return append(b, f.records...)
}

func decodeForwarded(b []byte) (f forwardedBatch, err error) {
	if len(b) < forwardHeader || b[0] != forwardFormat {
		return f, errForward
	}
	f.group = binary.BigEndian.Uint64(b[1:])
	f.epoch = int32(binary.BigEndian.Uint32(b[9:]))
	f.conn = binary.BigEndian.Uint64(b[13:])
	f.incarnation = binary.BigEndian.Uint32(b[21:])
	f.records = b[forwardHeader:]
	return f, nil
}

// forward sends a batch to the node that leads its partition in epoch: one hop, in order, never repeated from here, since a
// batch sent again would overtake those behind it (design rule 21).
func (b *Broker) forward(node int32, group uint64, epoch int32, connID uint64, incarnation uint32, records []byte, done func(outcome)) {
	f := forwardedBatch{group: group, epoch: epoch, conn: connID, incarnation: incarnation, records: records}
	b.metrics.forwarded.Inc()
	b.cfg.Forwarder.Forward(node, MethodProduce, f.encode(), func(body []byte, err error) {
		if err != nil {
			done(hopFailed(node, err))
			return
		}
		o, err := decodeOutcome(body)
		if err != nil {
			o = hopFailed(node, fmt.Errorf("%w: %w", transport.ErrUnknownOutcome, err))
		}
		done(o)
	})
}

// hopFailed is the outcome when the stream failed, not the leader.
func hopFailed(node int32, err error) outcome {
	var remote *transport.RemoteError
	k := kerr.RequestTimedOut // it may have been handled
	switch {
	case errors.Is(err, transport.ErrUnknownOutcome), errors.As(err, &remote):
	case errors.Is(err, transport.ErrNotSent), errors.Is(err, transport.ErrPeerDown), errors.Is(err, transport.ErrPeerUnknown),
		errors.Is(err, transport.ErrClosed):
		k = kerr.NotLeaderForPartition
	case errors.Is(err, transport.ErrOverloaded):
		k = kerr.NotEnoughReplicas
	case errors.Is(err, transport.ErrTooLarge):
		k = kerr.MessageTooLarge
	}
	o := refused(k)
	o.message, o.broke = fmt.Sprintf("forwarding to node %d, which leads the partition: %v", node, err), true
	return o
}

// HandleForward takes a request of the ordered stream from another node. It does not block; reply is called exactly once.
func (b *Broker) HandleForward(from int32, method uint16, body []byte, reply func(body []byte, err error)) {
	if method != MethodProduce {
		reply(nil, fmt.Errorf("broker: no forward method %#x", method))
		return
	}
	f, err := decodeForwarded(body)
	if err != nil {
		reply(nil, err)
		return
	}
	key := hopKey{from, f.conn, f.group}
	answer := func(o outcome) {
		if o.broke {
			b.hops.add(key, f.incarnation)
		}
		reply(o.encode(), nil)
	}
	img := b.cfg.Cluster.Image()
	ref, ok := img.Groups[f.group]
	if !ok {
		answer(refused(kerr.UnknownTopicOrPartition))
		return
	}
	notLeader := func(message string) {
		o := refused(kerr.NotLeaderForPartition)
		o.message, o.leader, o.broke = message, b.hintFor(img, ListenerConfig{}, f.group), true
		answer(o)
	}
	p, ok := b.cfg.Partitions.Lookup(ref.Topic.Name, ref.Partition.Index)
	switch {
	case !ok:
		notLeader("the node it was forwarded to has no such partition open")
		return
	case b.hops.has(key, f.incarnation):
		notLeader("a batch before it on its route failed")
		return
	}
	// Bound to the leader's term: a batch for an earlier one may have been overtaken by what a client sent since.
	if st := p.Status(); !st.IsLeader || int32(st.Term) != f.epoch {
		notLeader(fmt.Sprintf("forwarded to a leader of epoch %d, which is over", f.epoch))
		return
	}
	p.Produce(f.records, func(r ProduceResult) { answer(b.outcomeOf(r, img, ListenerConfig{}, f.group)) })
}

// recordErrorsOf finds which records an error blames.
func recordErrorsOf(err error) []partition.RecordError {
	var re *partition.RecordErrors
	if errors.As(err, &re) {
		return re.Records
	}
	return nil
}

// maxRecordErrors bounds the records named in one forwarded outcome.
const maxRecordErrors = 100

// encode writes an outcome: format, code, broke, base, time, log start, leader, epoch, message, record errors.
func (o *outcome) encode() []byte {
	b := make([]byte, 0, 64+len(o.message))
	b = append(b, forwardFormat)
	var code int16
	if o.err != nil {
		code = o.err.Code
	}
	b = binary.BigEndian.AppendUint16(b, uint16(code))
	b = append(b, byte(boolInt(o.broke)))
	b = binary.BigEndian.AppendUint64(b, uint64(o.base))
	b = binary.BigEndian.AppendUint64(b, uint64(o.ts))
	b = binary.BigEndian.AppendUint64(b, uint64(o.from))
	b = binary.BigEndian.AppendUint32(b, uint32(o.leader.node))
	b = binary.BigEndian.AppendUint32(b, uint32(o.leader.epoch))
	b = appendText(b, o.message)
	records := o.records[:min(len(o.records), maxRecordErrors)]
	b = append(b, byte(len(records)))
	for _, r := range records {
		b = binary.BigEndian.AppendUint32(b, uint32(r.Index))
		b = appendText(b, r.Message)
	}
	return b
}

const outcomeFixed = 1 + 2 + 1 + 8*3 + 4*2

func decodeOutcome(b []byte) (o outcome, err error) {
	if len(b) < outcomeFixed || b[0] != forwardFormat {
		return o, errForward
	}
	if code := int16(binary.BigEndian.Uint16(b[1:])); code != 0 {
		o.err = kerr.TypedErrorForCode(code)
		if o.err == nil {
			o.err = kerr.UnknownServerError
		}
	}
	o.broke = b[3] != 0
	o.base = int64(binary.BigEndian.Uint64(b[4:]))
	o.ts = int64(binary.BigEndian.Uint64(b[12:]))
	o.from = int64(binary.BigEndian.Uint64(b[20:]))
	o.leader = hint{int32(binary.BigEndian.Uint32(b[28:])), int32(binary.BigEndian.Uint32(b[32:]))}
	b = b[outcomeFixed:]
	if o.message, b, err = takeText(b); err != nil {
		return o, err
	}
	if len(b) == 0 {
		return o, errForward
	}
	n := int(b[0])
	b = b[1:]
	for ; n > 0; n-- {
		if len(b) < 4 {
			return o, errForward
		}
		r := partition.RecordError{Index: int32(binary.BigEndian.Uint32(b))}
		if r.Message, b, err = takeText(b[4:]); err != nil {
			return o, err
		}
		o.records = append(o.records, r)
	}
	return o, nil
}

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), 1<<12)]
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func takeText(b []byte) (string, []byte, error) {
	if len(b) < 2 {
		return "", nil, errForward
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return "", nil, errForward
	}
	return string(b[2 : 2+n]), b[2+n:], nil
}

func boolInt(v bool) int {
	if v {
		return 1
	}
	return 0
}
