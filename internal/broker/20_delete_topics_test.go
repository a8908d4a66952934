package broker

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

func deleteRequest(v int16, names ...string) *kmsg.DeleteTopicsRequest {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis = 3_600_000
	for _, n := range names {
		if v < 6 {
			req.TopicNames = append(req.TopicNames, n)
			continue
		}
		req.Topics = append(req.Topics, kmsg.DeleteTopicsRequestTopic{Topic: &n})
	}
	return req
}

func TestDeleteTopics(t *testing.T) {
	everyVersion(t, 20, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1); c.addTopic(img, "dup", 1, 1) })
		resp := callAdmin[*kmsg.DeleteTopicsResponse](t, c.broker(t), v, deleteRequest(v, "a", "dup", "missing", "dup", metadata.MetadataTopic))
		if len(resp.Topics) != 4 { // one refusal for what is named twice
			t.Fatalf("%d topics answered", len(resp.Topics))
		}
		for i, want := range []int16{0, 42, 3, 3} {
			got := resp.Topics[i]
			if got.ErrorCode != want || got.Topic == nil {
				t.Errorf("topic %d: code %d name %v, want %d", i, got.ErrorCode, got.Topic, want)
			}
			if v >= 5 && (got.ErrorMessage == nil) != (want == 0) {
				t.Errorf("topic %d: message %v", i, got.ErrorMessage)
			}
		}
		if img := c.Image(); img.Topics["a"] != nil || img.Topics["dup"] == nil {
			t.Error("the wrong topics are gone")
		}
	})
}

func TestDeleteTopicsByID(t *testing.T) {
	c := newAdminCluster()
	var id, both uuid.UUID
	c.edit(func(img *metadata.Image) { id = c.addTopic(img, "a", 1, 1).ID; both = c.addTopic(img, "both", 1, 1).ID })
	name := "both"
	req := deleteRequest(6)
	req.Topics = []kmsg.DeleteTopicsRequestTopic{
		{TopicID: id}, {TopicID: uuid.New()}, {}, {Topic: &name, TopicID: both}, // and what names no topic at all
	}
	resp := callAdmin[*kmsg.DeleteTopicsResponse](t, c.broker(t), 6, req)
	for i, want := range []int16{0, 100, 42, 42} {
		if got := resp.Topics[i]; got.ErrorCode != want {
			t.Errorf("topic %d: code %d, want %d", i, got.ErrorCode, want)
		}
	}
	if got := resp.Topics[0]; got.Topic == nil || *got.Topic != "a" || got.TopicID != id {
		t.Errorf("deleted by id: %+v", got)
	}
	if resp.Topics[1].Topic != nil {
		t.Error("an unknown id has a name")
	}

	// The same topic by name and by id is a duplicate.
	req.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: &name}, {TopicID: both}}
	resp = callAdmin[*kmsg.DeleteTopicsResponse](t, c.broker(t), 6, req)
	if resp.Topics[0].ErrorCode != 42 || resp.Topics[1].ErrorCode != 42 || c.Image().Topics["both"] == nil {
		t.Errorf("by name and by id: %+v", resp.Topics)
	}
}

func TestDeleteTopicsDisabled(t *testing.T) {
	for v, want := range map[int16]int16{1: 42, 3: 73, 6: 73} {
		for _, off := range []string{"false", "FALSE"} {
			c := newAdminCluster()
			c.static = map[string]string{"delete.topic.enable": off}
			c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
			resp := callAdmin[*kmsg.DeleteTopicsResponse](t, c.broker(t), v, deleteRequest(v, "a"))
			if resp.Topics[0].ErrorCode != want || len(c.deletes) != 0 {
				t.Errorf("v%d, %s: code %d, want %d", v, off, resp.Topics[0].ErrorCode, want)
			}
		}
	}
}

func TestDeleteTopicsAnswersWhenEveryLiveNodeKnows(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
	c.indexes[2] = c.Image().Index
	b := c.broker(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		callAdmin[*kmsg.DeleteTopicsResponse](t, b, 6, deleteRequest(6, "a"))
	}()
	ctx, cancel := contextFor(t, time.Minute)
	defer cancel()
	if err := c.Await(ctx, func() bool { return c.Image().Topics["a"] == nil }); err != nil {
		t.Fatal(err)
	}
	waitsFor(t, done, "node 2's image", func() { c.edit(func(*metadata.Image) { delete(c.indexes, 2) }) })
}
