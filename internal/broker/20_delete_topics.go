package broker

import (
	"context"
	"strings"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// DeleteTopics (key 20), 1–6. KIP-4.
//
// v1  throttle time
// v4  flexible
// v5  error messages
// v6  topics by name or by id (KIP-516)
//
// The answer comes when every live node's image has lost the topics (or the timeout is nearly over), so that the name is free
// wherever the client turns next.

func handleDeleteTopics(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DeleteTopicsRequest)
	resp := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	defer cancel()

	topics := req.Topics
	if rc.Version < 6 {
		topics = make([]kmsg.DeleteTopicsRequestTopic, len(req.TopicNames))
		for i := range req.TopicNames {
			topics[i].Topic = &req.TopicNames[i]
		}
	}
	img := b.cfg.Cluster.Image()
	disabled := strings.EqualFold(b.configLayers(img).BrokerValue("delete.topic.enable"), "false")
	dup := findDuplicates(topics, img)
	var ask []controller.TopicKey
	var at []int
	answered := map[askedKey]bool{}
	for i := range topics {
		t := &topics[i]
		if k := keyOfAsked(&kmsg.MetadataRequestTopic{Topic: t.Topic, TopicID: t.TopicID}); dup[i] && answered[k] {
			continue // one refusal for what is named twice
		} else {
			answered[k] = true
		}
		out := kmsg.NewDeleteTopicsResponseTopic()
		out.Topic, out.TopicID = t.Topic, t.TopicID
		err := checkDelete(t, dup[i], disabled, rc.Version)
		if err == nil && internalTopic(img, t) {
			err = coded(kerr.InvalidTopicException, "The topic is internal: what groups have committed is in it, and deleting it is prohibited.")
		}
		if err != nil {
			out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		} else {
			key := controller.TopicKey{ID: t.TopicID}
			if t.Topic != nil {
				key.Name = *t.Topic
			}
			ask, at = append(ask, key), append(at, len(resp.Topics))
		}
		resp.Topics = append(resp.Topics, out)
	}
	if len(ask) == 0 {
		return resp, nil
	}

	results := b.cfg.Controller.DeleteTopics(ctx, ask)
	var index uint64
	for i, slot := range at {
		out := &resp.Topics[slot]
		res, err := resultAt(results, i)
		if err != nil {
			out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
			continue
		}
		index = max(index, res.Index)
		if out.Topic == nil && res.Name != "" {
			out.Topic = &res.Name
		}
		out.TopicID = res.ID
	}
	if index > 0 && req.TimeoutMillis > 0 {
		b.awaitImages(ctx, index)
	}
	return resp, nil
}

func internalTopic(img *metadata.Image, t *kmsg.DeleteTopicsRequestTopic) bool {
	known := img.TopicsByID[t.TopicID]
	if t.Topic != nil {
		known = img.Topics[*t.Topic]
	}
	return known != nil && known.Internal
}

func checkDelete(t *kmsg.DeleteTopicsRequestTopic, duplicate, disabled bool, version int16) error {
	byID := t.TopicID != [16]byte{}
	switch {
	case t.Topic != nil && byID:
		return coded(kerr.InvalidRequest, "You may not specify both topic name and topic id.")
	case t.Topic == nil && !byID:
		return coded(kerr.InvalidRequest, "Neither topic name nor id were specified.")
	case duplicate && byID:
		return coded(kerr.InvalidRequest, "Duplicate topic id.")
	case duplicate:
		return coded(kerr.InvalidRequest, "Duplicate topic name.")
	case disabled && version < 3:
		return coded(kerr.InvalidRequest, "Topic deletion is disabled.")
	case disabled:
		return coded(kerr.TopicDeletionDisabled, "Topic deletion is disabled.")
	case t.Topic != nil && *t.Topic == metadata.MetadataTopic:
		return coded(kerr.UnknownTopicOrPartition, "")
	}
	return nil
}

// findDuplicates marks the topics that a request names more than once, be it by name and by id.
func findDuplicates(topics []kmsg.DeleteTopicsRequestTopic, img *metadata.Image) []bool {
	type key struct {
		name string
		id   uuid.UUID
	}
	keys := make([]key, len(topics))
	count := make(map[key]int, len(topics))
	for i, t := range topics {
		k := key{id: t.TopicID}
		if t.Topic != nil && k.id == uuid.Nil {
			k.name = *t.Topic
			if known := img.Topics[k.name]; known != nil {
				k = key{id: known.ID}
			}
		}
		keys[i] = k
		count[k]++
	}
	out := make([]bool, len(topics))
	for i, k := range keys {
		out[i] = count[k] > 1 && k != key{}
	}
	return out
}
