package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/metadata"
)

// OffsetFetch (key 9), 1–10.
//
// v2  no topics (null): all; an error of the whole
// v3  throttle time
// v5  leader epochs (KIP-320)
// v6  flexible
// v7  require stable: without transactions every offset is
// v8  many groups (KIP-709)
// v9  member id and epoch (KIP-848), which a consumer group checks
// v10 topic ids (KIP-848)
//
// A quorum confirms the coordinator first, so that an offset that was fetched before is never followed by an older one.

func handleOffsetFetch(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetFetchRequest)
	resp := kmsg.NewPtrOffsetFetchResponse()
	if err := b.reserveAnswer(ctx, rc, b.allOffsetBytes(rc, req)); err != nil {
		return nil, err
	}
	if rc.Version < 8 {
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = req.Group
		if req.Topics != nil {
			g.Topics = []kmsg.OffsetFetchRequestGroupTopic{}
		}
		for _, t := range req.Topics {
			g.Topics = append(g.Topics, kmsg.OffsetFetchRequestGroupTopic{Topic: t.Topic, Partitions: t.Partitions})
		}
		out := kmsg.NewOffsetFetchResponseGroup()
		b.fetchOffsets(ctx, rc, &g, &out)
		if err := b.reserveAnswer(ctx, rc, metadataBytes(&g, &out)); err != nil {
			return nil, err
		}
		oldOffsets(rc, &g, &out, resp)
		return resp, nil
	}
	resp.Groups = make([]kmsg.OffsetFetchResponseGroup, len(req.Groups))
	var work []func()
	for i := range req.Groups {
		work = append(work, func() { b.fetchOffsets(ctx, rc, &req.Groups[i], &resp.Groups[i]) })
	}
	inParallel(b.cfg.Clock, work, lookups)
	bytes := int64(0)
	for i := range req.Groups {
		bytes += metadataBytes(&req.Groups[i], &resp.Groups[i])
	}
	if err := b.reserveAnswer(ctx, rc, bytes); err != nil {
		return nil, err
	}
	return resp, nil
}

// allOffsetBytes is about what all offsets of those groups take of which all are asked for, where this node coordinates them.
func (b *Broker) allOffsetBytes(rc *RequestContext, req *kmsg.OffsetFetchRequest) (n int64) {
	if b.cfg.Groups == nil {
		return 0
	}
	if rc.Version < 8 {
		if req.Topics == nil {
			n = b.cfg.Groups.OffsetBytes(req.Group)
		}
		return n
	}
	for i := range req.Groups {
		if g := &req.Groups[i]; g.Topics == nil {
			n += b.cfg.Groups.OffsetBytes(g.Group)
		}
	}
	return n
}

// metadataBytes is what the metadata of offsets that were asked for one by one takes in the answer; the rest of it is about as large as
// the question, which is counted.
func metadataBytes(rg *kmsg.OffsetFetchRequestGroup, out *kmsg.OffsetFetchResponseGroup) (n int64) {
	if rg.Topics == nil {
		return 0
	}
	for i := range out.Topics {
		for j := range out.Topics[i].Partitions {
			if m := out.Topics[i].Partitions[j].Metadata; m != nil {
				n += int64(len(*m))
			}
		}
	}
	return n
}

// oldOffsets puts one group's answer in the form before v8. v1 has no error but the partitions'.
func oldOffsets(rc *RequestContext, g *kmsg.OffsetFetchRequestGroup, in *kmsg.OffsetFetchResponseGroup, resp *kmsg.OffsetFetchResponse) {
	resp.ErrorCode = in.ErrorCode
	resp.Topics = []kmsg.OffsetFetchResponseTopic{}
	if in.ErrorCode != 0 && rc.Version < 2 {
		for _, t := range g.Topics {
			in.Topics = append(in.Topics, failedOffsets(t, in.ErrorCode))
		}
	}
	for _, t := range in.Topics {
		ot := kmsg.NewOffsetFetchResponseTopic()
		ot.Topic = t.Topic
		ot.Partitions = []kmsg.OffsetFetchResponseTopicPartition{}
		for _, p := range t.Partitions {
			op := kmsg.NewOffsetFetchResponseTopicPartition()
			op.Partition, op.Offset, op.LeaderEpoch, op.Metadata, op.ErrorCode = p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode
			ot.Partitions = append(ot.Partitions, op)
		}
		resp.Topics = append(resp.Topics, ot)
	}
}

func failedOffsets(t kmsg.OffsetFetchRequestGroupTopic, code int16) kmsg.OffsetFetchResponseGroupTopic {
	out := kmsg.OffsetFetchResponseGroupTopic{Topic: t.Topic, TopicID: t.TopicID, Partitions: []kmsg.OffsetFetchResponseGroupTopicPartition{}}
	for _, p := range t.Partitions {
		out.Partitions = append(out.Partitions, kmsg.OffsetFetchResponseGroupTopicPartition{
			Partition: p, Offset: -1, LeaderEpoch: -1, Metadata: kmsg.StringPtr(""), ErrorCode: code,
		})
	}
	return out
}

// fetchOffsets answers for one group.
func (b *Broker) fetchOffsets(ctx context.Context, rc *RequestContext, rg *kmsg.OffsetFetchRequestGroup, out *kmsg.OffsetFetchResponseGroup) {
	out.Default()
	out.Group, out.Topics = rg.Group, []kmsg.OffsetFetchResponseGroupTopic{}
	node, err := b.coordinator(rc, rg.Group)
	if err == nil && node >= 0 {
		if err = b.fetchOffsetsAt(ctx, rc, node, rg, out); err == nil {
			return
		}
	}
	img := b.cfg.Cluster.Image()
	byID := rc.Version >= 10
	var ask []group.Partition
	names := make([]string, len(rg.Topics)) // "": unknown by its id
	for i, t := range rg.Topics {
		names[i] = t.Topic
		if byID {
			known, kerror := findTopic(img, true, "", t.TopicID)
			if kerror != nil {
				names[i] = ""
				continue
			}
			names[i] = known.Name
		}
		for _, p := range t.Partitions {
			ask = append(ask, group.Partition{Topic: names[i], Partition: p})
		}
	}
	var got []group.FetchedOffset
	if err == nil {
		got, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func([]group.FetchedOffset, error)) {
			b.cfg.Groups.Fetch(group.FetchRequest{Group: rg.Group, Member: rg.MemberID, Epoch: rg.MemberEpoch, Partitions: ask, All: rg.Topics == nil}, done)
		})
	}
	if err != nil {
		out.ErrorCode, _ = b.refusal(rc, err)
		return
	}
	if rg.Topics == nil {
		out.Topics = allOffsets(img, byID, got)
		return
	}
	for i, t := range rg.Topics {
		if byID && names[i] == "" {
			out.Topics = append(out.Topics, failedOffsets(t, kerr.UnknownTopicID.Code))
			continue
		}
		ot := kmsg.OffsetFetchResponseGroupTopic{Topic: t.Topic, TopicID: t.TopicID, Partitions: []kmsg.OffsetFetchResponseGroupTopicPartition{}}
		for range t.Partitions {
			ot.Partitions = append(ot.Partitions, offsetOf(&got[0]))
			got = got[1:]
		}
		out.Topics = append(out.Topics, ot)
	}
}

func offsetOf(o *group.FetchedOffset) kmsg.OffsetFetchResponseGroupTopicPartition {
	return kmsg.OffsetFetchResponseGroupTopicPartition{Partition: o.Partition, Offset: o.Offset, LeaderEpoch: o.LeaderEpoch, Metadata: &o.Metadata}
}

// allOffsets gives what a group has by topic; got is in their order. By id only what still exists can be named.
func allOffsets(img *metadata.Image, byID bool, got []group.FetchedOffset) []kmsg.OffsetFetchResponseGroupTopic {
	out := []kmsg.OffsetFetchResponseGroupTopic{}
	last := ""
	for i := range got {
		o := &got[i]
		if len(out) == 0 || o.Topic != last {
			t := kmsg.NewOffsetFetchResponseGroupTopic()
			t.Topic = o.Topic
			if byID {
				known := img.Topics[o.Topic]
				if known == nil {
					continue
				}
				t.TopicID = known.ID
			}
			out, last = append(out, t), o.Topic
		}
		t := &out[len(out)-1]
		t.Partitions = append(t.Partitions, offsetOf(o))
	}
	return out
}

// fetchOffsetsAt asks a group's coordinator, for a client in one-address mode.
func (b *Broker) fetchOffsetsAt(ctx context.Context, rc *RequestContext, node int32, rg *kmsg.OffsetFetchRequestGroup, out *kmsg.OffsetFetchResponseGroup) error {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.SetVersion(max(rc.Version, 8)) // one form of the answer for all
	req.Groups = []kmsg.OffsetFetchRequestGroup{*rg}
	answer, err := b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req)
	if err != nil {
		return err
	}
	if got := answer.(*kmsg.OffsetFetchResponse); len(got.Groups) == 1 {
		*out = got.Groups[0]
		return nil
	}
	return kerr.UnknownServerError
}
