package conformance

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// api is what is asked of one API. The range is what Kafka 4.3.1 and Chronik both have.
type api struct {
	key      int16
	min, max int16
	cases    []testCase
}

// testCase is a few requests that belong together, played once for each version, each time on topics and groups of its own.
type testCase struct {
	name string
	// from is the first version that has what is asked; 0: all.
	from int16
	play func(s *scene)
}

// scene is one case at one version.
type scene struct {
	*cluster
	v      int16
	prefix string
	record func(step string, answer tree)
}

// name is a topic's or group's name of this case and version alone.
func (s *scene) name(what string) string { return s.prefix + what }

// ask sends a request at the case's version and records the answer.
func (s *scene) ask(step string, node int32, req kmsg.Request) kmsg.Response {
	req.SetVersion(s.v)
	resp, err := s.at(node, req)
	switch {
	case errors.Is(err, errClosed):
		s.record(step, "the connection is closed")
		return nil
	case err != nil:
		s.record(step, "error: "+err.Error())
		return nil
	}
	s.record(step, s.normalize(resp))
	return resp
}

// askBriefly is ask for what Kafka does not answer: it is not waited for long.
func (s *scene) askBriefly(step string, node int32, req kmsg.Request) {
	s.brief = true
	s.ask(step, node, req)
	s.brief = false
}

// apis is the whole script, in order of keys.
func apis() []api {
	all := slices.Concat(dataAPIs(), topicAPIs(), adminAPIs(), clusterAPIs(), moveAPIs(), groupAPIs(), consumerAPIs())
	slices.SortFunc(all, func(a, b api) int { return int(a.key) - int(b.key) })
	return all
}

// play runs the script of one API against a cluster and returns the answers by case, version and step.
// some leaves out two thirds of the versions, but neither the first nor the last.
func (a *api) play(c *cluster, some bool) (out map[string]tree, err error) {
	out = map[string]tree{}
	at := ""
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", at, p)
		}
	}()
	for i, tc := range a.cases {
		for v := max(a.min, tc.from); v <= a.max; v++ {
			if some && v != max(a.min, tc.from) && v != a.max && int(v)%3 != i%3 {
				continue
			}
			at = fmt.Sprintf("%s v%d: %s", kmsg.NameForKey(a.key), v, tc.name)
			tc.play(&scene{cluster: c, v: v, prefix: fmt.Sprintf("k%dc%dv%d-", a.key, i, v), record: func(step string, answer tree) {
				out[fmt.Sprintf("%s, v%d: %s", tc.name, v, step)] = answer
			}})
		}
	}
	return out, nil
}

// batch builds a record batch with plain records, at a fixed time so that its bytes do not depend on when.
func batch(edit func(b *record.Builder), values ...string) []byte {
	b := record.NewBuilder()
	if edit != nil {
		edit(b)
	}
	for i, v := range values {
		b.Add(time.Now().UnixMilli(), []byte(fmt.Sprint("key", i)), []byte(v))
	}
	out, err := b.Build()
	if err != nil {
		panic(err)
	}
	return out
}

// produce makes a request of one batch.
func (s *scene) produceTo(topic string, partition int32, acks int16, records []byte) *kmsg.ProduceRequest {
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.TopicID, t.Partitions = topic, s.topics[topic], append(t.Partitions, p)
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis, req.Topics = acks, 15_000, append(req.Topics, t)
	return req
}

// fill puts one batch of each value list into partition 0 of a topic.
func (s *scene) fill(topic string, batches ...[]byte) {
	leader, _ := s.leader(topic, 0)
	for _, b := range batches {
		req := s.produceTo(topic, 0, -1, b)
		req.SetVersion(9)
		resp := s.must(leader, req).(*kmsg.ProduceResponse)
		if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
			panic(fmt.Errorf("preparing: producing to %s: error %d", topic, code))
		}
	}
}

func ptr[T any](v T) *T { return &v }
