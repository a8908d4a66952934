package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/controller"
)

func listReq(topic string, index int32, ts int64, epoch ...int32) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp, p.CurrentLeaderEpoch = index, ts, append(epoch, -1)[0]
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic, rt.Partitions = topic, []kmsg.ListOffsetsRequestTopicPartition{p}
	req.Topics = []kmsg.ListOffsetsRequestTopic{rt}
	return req
}

func listed(r *kmsg.ListOffsetsResponse) kmsg.ListOffsetsResponseTopicPartition {
	return r.Topics[0].Partitions[0]
}

// Special timestamps have versions; the answers are the same from the leader and, in one-address mode, through another node.
func TestListOffsetsEveryVersionAndTimestamp(t *testing.T) {
	f := newFleet(t, 2)
	topic := f.topic("t", 2, 1)                                                                   // both led by 1; the second stays empty
	ask[*kmsg.ProduceResponse](f.nodes[1].dial(t), 9, produceReq(topic, 0, batch(t, "a", 3), -1)) // timestamps 1000 to 1002
	for where, c := range map[string]*client{"leader": f.nodes[1].dial(t), "one address": f.nodes[2].dial(t, "one")} {
		for v := int16(1); v <= 11; v++ {
			for _, e := range []struct {
				index      int32
				ts         int64
				since      int16
				offset, at int64
			}{
				{0, -1, 1, 3, -1}, {0, -2, 1, 0, -1}, {0, -4, 8, 0, -1},
				{0, -3, 7, 0, 1002}, {1, -3, 7, -1, -1}, // of an empty partition: none
				{0, -5, 9, -1, -1}, {0, -6, 11, -1, -1}, // no tiering: none, and no error
				{0, -7, 99, 0, 0}, {0, -100, 99, 0, 0},
				{0, 1001, 1, 0, 1002}, {0, 5000, 1, -1, -1}, // past the end: none, and no error
			} {
				got := listed(ask[*kmsg.ListOffsetsResponse](c, v, listReq("t", e.index, e.ts)))
				if v < e.since {
					if got.ErrorCode != 35 || got.Offset != -1 || got.Timestamp != -1 {
						t.Errorf("%s v%d, timestamp %d: %+v, want 35", where, v, e.ts, got)
					}
					continue
				}
				if got.ErrorCode != 0 || got.Offset != e.offset || got.Timestamp != e.at {
					t.Errorf("%s v%d, timestamp %d of %d: %+v, want %d at %d", where, v, e.ts, e.index, got, e.offset, e.at)
				}
				if want := int32(3); v >= 4 && (e.offset >= 0 && got.LeaderEpoch != want || e.offset < 0 && got.LeaderEpoch != -1) {
					t.Errorf("%s v%d, timestamp %d: epoch %d", where, v, e.ts, got.LeaderEpoch)
				}
			}
		}
	}
}

func TestListOffsetsErrors(t *testing.T) {
	f := newFleet(t, 2)
	f.topic("t", 2) // led by 1 and 2
	for where, listener := range map[string]string{"ordinary": "main", "one address": "one"} {
		c := f.nodes[1].dial(t, listener)
		for name, e := range map[string]struct {
			topic string
			index int32
			epoch int32
			code  int16
		}{
			"unknown topic":        {"nope", 0, -1, 3},
			"partition too high":   {"t", 2, -1, 3},
			"negative partition":   {"t", -1, -1, 3},
			"a former epoch":       {"t", 0, 2, 74},
			"an epoch to come":     {"t", 0, 4, 75},
			"its own epoch":        {"t", 0, 3, 0},
			"led elsewhere":        {"t", 1, -1, 6},
			"epoch checked first":  {"t", 1, 2, 74},
			"future, at follower":  {"t", 1, 9, 75},
			"current, at follower": {"t", 1, 3, 6},
		} {
			want := e.code
			if want == 6 && listener == "one" {
				want = 0 // proxied
			}
			got := listed(ask[*kmsg.ListOffsetsResponse](c, 7, listReq(e.topic, e.index, -1, e.epoch)))
			if got.ErrorCode != want || want != 0 && (got.Offset != -1 || got.Timestamp != -1 || got.LeaderEpoch != -1) {
				t.Errorf("%s, %s: %+v, want %d", where, name, got, want)
			}
		}
		twice := listReq("t", 0, -1)
		twice.Topics[0].Partitions = append(twice.Topics[0].Partitions, twice.Topics[0].Partitions[0])
		if got := ask[*kmsg.ListOffsetsResponse](c, 7, twice).Topics[0].Partitions; len(got) != 1 || got[0].ErrorCode != 42 {
			t.Errorf("%s, named twice: %+v", where, got)
		}
	}
	// The node that leads is gone: try again.
	f.edit(func() { f.dead[2] = true })
	if got := listed(ask[*kmsg.ListOffsetsResponse](f.nodes[1].dial(t, "one"), 11, listReq("t", 1, -1))); got.ErrorCode != 6 {
		t.Errorf("through a dead node: %+v", got)
	}
	f.lead(f.part("t", 1), -1, 3)
	if got := listed(ask[*kmsg.ListOffsetsResponse](f.nodes[1].dial(t, "one"), 11, listReq("t", 1, -1))); got.ErrorCode != 6 {
		t.Errorf("leaderless: %+v, want 6, not 5", got)
	}
}

// Many partitions are asked side by side, and answered in their places.
func TestListOffsetsOfManyPartitions(t *testing.T) {
	f := newFleet(t, 3)
	topic := f.topic("t", 100)
	req := kmsg.NewPtrListOffsetsRequest()
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = "t"
	for i := range int32(100) {
		d := f.part("t", i)
		d.hw, d.end = int64(i), int64(i)
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = i, -1
		rt.Partitions = append(rt.Partitions, p)
	}
	req.Topics = append(req.Topics, rt)
	got := ask[*kmsg.ListOffsetsResponse](f.nodes[2].dial(t, "one"), 6, req).Topics[0].Partitions
	for i, p := range got {
		if p.ErrorCode != 0 || p.Partition != int32(i) || p.Offset != int64(i) {
			t.Errorf("%d of %s: %+v", i, topic.Name, p)
		}
	}
}

func epochReq(index, current, epoch int32) *kmsg.OffsetForLeaderEpochRequest {
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.ReplicaID = -1
	p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
	p.Partition, p.CurrentLeaderEpoch, p.LeaderEpoch = index, current, epoch
	rt := kmsg.NewOffsetForLeaderEpochRequestTopic()
	rt.Topic, rt.Partitions = "t", []kmsg.OffsetForLeaderEpochRequestTopicPartition{p}
	req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{rt}
	return req
}

func TestOffsetForLeaderEpoch(t *testing.T) {
	f := newFleet(t, 2)
	topic := f.topic("t", 2) // led by 1 and 2
	ask[*kmsg.ProduceResponse](f.nodes[2].dial(t), 9, produceReq(topic, 1, batch(t, "a", 4), -1))
	for _, listener := range []string{"main", "one"} {
		c := f.nodes[1].dial(t, listener)
		for v := int16(2); v <= 4; v++ {
			for name, e := range map[string]struct {
				index, current, asked int32
				code                  int16
				epoch                 int32
				end                   int64
			}{
				"empty: the current epoch, 0": {0, -1, 3, 0, 3, 0},
				"a future epoch: no error":    {0, -1, 9, 0, -1, -1},
				"fenced":                      {0, 1, 3, 74, -1, -1},
				"unknown":                     {0, 7, 3, 75, -1, -1},
				"of another node":             {1, -1, 3, 6, -1, -1},
				"no such partition":           {2, -1, 3, 3, -1, -1},
			} {
				if e.code == 6 && listener == "one" {
					e.code, e.epoch, e.end = 0, 3, 4 // proxied
				}
				p := ask[*kmsg.OffsetForLeaderEpochResponse](c, v, epochReq(e.index, e.current, e.asked)).Topics[0].Partitions[0]
				if p.ErrorCode != e.code || p.Partition != e.index || p.LeaderEpoch != e.epoch || p.EndOffset != e.end {
					t.Errorf("%s v%d, %s: %+v, want %+v", listener, v, name, p, e)
				}
			}
		}
	}
	f.edit(func() { f.dead[2] = true })
	if p := ask[*kmsg.OffsetForLeaderEpochResponse](f.nodes[1].dial(t, "one"), 4, epochReq(1, -1, 3)).Topics[0].Partitions[0]; p.ErrorCode != 6 {
		t.Errorf("through a dead node: %+v", p)
	}
}

func TestInitProducerIDsAreUnique(t *testing.T) {
	f := newFleet(t, 2)
	seen := map[int64]bool{}
	for id := int32(1); id <= 2; id++ {
		c := f.nodes[id].dial(t)
		for v := int16(0); v <= 5; v++ {
			for range 10 {
				resp := ask[*kmsg.InitProducerIDResponse](c, v, kmsg.NewPtrInitProducerIDRequest())
				if resp.ErrorCode != 0 || resp.ProducerEpoch != 0 || resp.ProducerID < 0 || seen[resp.ProducerID] {
					t.Fatalf("node %d v%d: %+v", id, v, resp)
				}
				seen[resp.ProducerID] = true
			}
		}
	}
	// A block ends and another begins.
	b := f.nodes[1].b
	for range producerIDBlock {
		id, err := b.nextProducerID(t.Context())
		if err != nil || seen[id] {
			t.Fatalf("%d: %v", id, err)
		}
		seen[id] = true
	}
}

// Transactions do not exist: a transactional id gets a fatal code. At 15, or any other that is retried, a Java producer would
// hang until its max.block.ms.
func TestInitProducerIDOfATransactionIsFatal(t *testing.T) {
	c := newFleet(t, 1).nodes[1].dial(t)
	for v := int16(0); v <= 5; v++ {
		for txn, code := range map[string]int16{"tx": 35, "": 42} {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.TransactionalID = kmsg.StringPtr(txn)
			if resp := ask[*kmsg.InitProducerIDResponse](c, v, req); resp.ErrorCode != code || resp.ProducerID != -1 || resp.ProducerEpoch != -1 {
				t.Errorf("v%d %q: %+v", v, txn, resp)
			}
		}
	}
}

func TestInitProducerIDWithoutAControllerIsRetriable(t *testing.T) {
	f := newFleet(t, 1)
	for _, err := range []error{controller.ErrNoLeader, context.DeadlineExceeded, errors.New("odd")} {
		f.edit(func() { f.pidErr = err })
		if resp := ask[*kmsg.InitProducerIDResponse](f.nodes[1].dial(t), 4, kmsg.NewPtrInitProducerIDRequest()); resp.ErrorCode != 14 || resp.ProducerID != -1 {
			t.Errorf("%v: %+v", err, resp)
		}
	}
	f.edit(func() { f.pidErr = nil })
	if resp := ask[*kmsg.InitProducerIDResponse](f.nodes[1].dial(t), 4, kmsg.NewPtrInitProducerIDRequest()); resp.ErrorCode != 0 {
		t.Errorf("afterwards: %+v", resp)
	}
}

// Groups: 15, which is retried, until they exist. Transactional ids: 35, which is fatal, for the reason above; never 15.
func TestFindCoordinatorGroupsRetryTransactionsFail(t *testing.T) {
	c := newFleet(t, 1).nodes[1].dial(t)
	for v := int16(0); v <= 6; v++ {
		for typ, code := range map[int8]int16{0: 15, 1: 35, 2: 42, 3: 42, -1: 42} {
			if v == 0 {
				if typ != 0 {
					continue // v0 has no key type
				}
			}
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorType = typ
			req.CoordinatorKey = "g"
			req.CoordinatorKeys = []string{"g", "h"}
			resp := ask[*kmsg.FindCoordinatorResponse](c, v, req)
			if v < 4 {
				if resp.ErrorCode != code || resp.NodeID != -1 || resp.Port != -1 || v >= 1 && (resp.ErrorMessage == nil || *resp.ErrorMessage == "") {
					t.Errorf("v%d type %d: %+v, want %d", v, typ, resp, code)
				}
				continue
			}
			if resp.ErrorCode != 0 || len(resp.Coordinators) != 2 {
				t.Fatalf("v%d type %d: %+v", v, typ, resp)
			}
			for i, k := range []string{"g", "h"} { // an error for each key
				if got := resp.Coordinators[i]; got.Key != k || got.ErrorCode != code || got.NodeID != -1 || got.ErrorMessage == nil {
					t.Errorf("v%d type %d: %+v, want %d", v, typ, got, code)
				}
			}
		}
	}
}

func TestHandleCallRefusals(t *testing.T) {
	f := newFleet(t, 2)
	topic := f.topic("t", 1, 1)
	b := f.nodes[2].b // does not lead
	call := func(key, version int16, body []byte) ([]byte, error) {
		return b.HandleCall(t.Context(), 1, MethodRequest, append([]byte{byte(key >> 8), byte(key), byte(version >> 8), byte(version)}, body...))
	}
	if _, err := b.HandleCall(t.Context(), 1, MethodProduce, nil); err == nil {
		t.Error("another method was answered")
	}
	for n := range 4 {
		if _, err := b.HandleCall(t.Context(), 1, MethodRequest, make([]byte, n)); err == nil {
			t.Errorf("%d bytes were a request", n)
		}
	}
	produce := produceReq(topic, 0, batch(t, "a", 1), -1)
	produce.SetVersion(9)
	meta := metadataReq(true, "made")
	meta.SetVersion(9)
	for name, e := range map[string]struct {
		key, version int16
		body         []byte
	}{
		"Produce has a stream of its own": {0, 9, produce.AppendTo(nil)},
		"Metadata is everyone's own":      {3, 9, meta.AppendTo(nil)},
		"a version not served":            {2, 12, nil},
		"no such API":                     {999, 0, nil},
		"not a whole request":             {2, 5, []byte{0, 0}},
		"a hostile length":                {2, 5, []byte{0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff}},
	} {
		if _, err := call(e.key, e.version, e.body); err == nil {
			t.Errorf("%s: answered", name)
		}
	}
	if f.created() != 0 {
		t.Error("a topic was created")
	}
	// One hop: this node does not lead, and asks nobody.
	list := listReq("t", 0, -1)
	list.SetVersion(11)
	out, err := call(2, 11, list.AppendTo(nil))
	resp := list.ResponseKind().(*kmsg.ListOffsetsResponse)
	if err == nil {
		err = resp.ReadFrom(out)
	}
	if err != nil || listed(resp).ErrorCode != 6 {
		t.Errorf("%v %+v", err, resp)
	}
	del := kmsg.NewPtrDeleteRecordsRequest()
	del.SetVersion(2)
	del.TimeoutMillis = 1000
	del.Topics = append(del.Topics, deleteRecords("t", [2]int64{0, -1}))
	dresp := del.ResponseKind().(*kmsg.DeleteRecordsResponse)
	if out, err = call(21, 2, del.AppendTo(nil)); err == nil {
		err = dresp.ReadFrom(out)
	}
	if err != nil || dresp.Topics[0].Partitions[0].ErrorCode != 6 {
		t.Errorf("%v %s", err, fmt.Sprintf("%+v", dresp))
	}
}
