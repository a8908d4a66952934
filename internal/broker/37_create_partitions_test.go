package broker

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func growTopic(name string, count int32, assign ...[]int32) kmsg.CreatePartitionsRequestTopic {
	t := kmsg.NewCreatePartitionsRequestTopic()
	t.Topic, t.Count = name, count
	for _, a := range assign {
		t.Assignment = append(t.Assignment, kmsg.CreatePartitionsRequestTopicAssignment{Replicas: a})
	}
	return t
}

func TestCreatePartitions(t *testing.T) {
	everyVersion(t, 37, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) {
			for _, n := range []string{"a", "dup", "same", "wrong", "placed", "nobody", "empty"} {
				c.addTopic(img, n, 2, 1, 2)
			}
		})
		empty := growTopic("empty", 3)
		empty.Assignment = []kmsg.CreatePartitionsRequestTopicAssignment{}
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis = 3_600_000
		req.Topics = append(req.Topics, growTopic("a", 5), growTopic("missing", 3), growTopic("same", 2), growTopic("dup", 3), growTopic("dup", 4),
			growTopic("wrong", 4, []int32{1}), growTopic("placed", 4, []int32{1, 2}, []int32{2, 3}), growTopic("nobody", 3, []int32{}), growTopic("a2", 0), empty)
		resp := callAdmin[*kmsg.CreatePartitionsResponse](t, c.broker(t), v, req)
		want := map[string]int16{"a": 0, "missing": 3, "same": 37, "dup": 42, "wrong": 39, "placed": 0, "nobody": 39, "a2": 37, "empty": 39}
		if len(resp.Topics) != len(want) {
			t.Fatalf("%d topics answered: %+v", len(resp.Topics), resp.Topics)
		}
		for _, got := range resp.Topics {
			if got.ErrorCode != want[got.Topic] || (got.ErrorMessage == nil) != (got.ErrorCode == 0) {
				t.Errorf("%s: code %d message %v, want %d", got.Topic, got.ErrorCode, got.ErrorMessage, want[got.Topic])
			}
		}
		if n := len(c.Image().Topics["a"].Partitions); n != 5 {
			t.Errorf("a has %d partitions", n)
		}
		i := slices.IndexFunc(c.grows[0], func(n controller.NewPartitions) bool { return n.Name == "placed" })
		if i < 0 || !slices.EqualFunc(c.grows[0][i].Assignments, [][]int32{{1, 2}, {2, 3}}, slices.Equal) {
			t.Errorf("asked %+v", c.grows[0])
		}
	})
}

func TestCreatePartitionsValidateOnly(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.ValidateOnly, req.TimeoutMillis = true, 3_600_000
	req.Topics = append(req.Topics, growTopic("a", 3))
	resp := callAdmin[*kmsg.CreatePartitionsResponse](t, c.broker(t), 3, req)
	if resp.Topics[0].ErrorCode != 0 || !c.validate[0] || len(c.Image().Topics["a"].Partitions) != 1 {
		t.Errorf("%+v, asked with %v", resp.Topics[0], c.validate)
	}
}

func TestCreatePartitionsAnswersWhenLeadersExist(t *testing.T) {
	c := newAdminCluster()
	c.edit(func(img *metadata.Image) { c.addTopic(img, "a", 1, 1) })
	c.lead = false
	b := c.broker(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis = 3_600_000
		req.Topics = append(req.Topics, growTopic("a", 2))
		callAdmin[*kmsg.CreatePartitionsResponse](t, b, 3, req)
	}()
	ctx, cancel := contextFor(t, time.Minute)
	defer cancel()
	if err := c.Await(ctx, func() bool { return len(c.Image().Topics["a"].Partitions) == 2 }); err != nil {
		t.Fatal(err)
	}
	waitsFor(t, done, "leaders", func() {
		c.edit(func(img *metadata.Image) {
			for _, p := range img.Topics["a"].Partitions {
				c.leaders[p.Group] = 3
			}
		})
	})
}
