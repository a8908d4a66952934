package sim

import (
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// BeginMove asks for a topic's partition to be moved to other nodes, or without nodes for a move under way to be turned back. It waits for
// the answer, not for the move.
func (s *Script) BeginMove(topic string, nodes ...int32) (string, error) {
	p := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
	p.Replicas = nodes
	t := kmsg.NewAlterPartitionAssignmentsRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.TimeoutMillis, req.Topics = int32(requestTimeout/time.Millisecond), append(req.Topics, t)
	return s.client(func(c *client) string {
		k := s.anybody(c)
		defer k.close(errReset)
		resp, err := k.ask(req, nil)
		if err != nil {
			return err.Error()
		}
		r := resp.(*kmsg.AlterPartitionAssignmentsResponse)
		if code := typed(r.ErrorCode); code != nil {
			return code.Message
		}
		if code := typed(r.Topics[0].Partitions[0].ErrorCode); code != nil {
			return code.Message
		}
		return "accepted"
	})
}

// anybody connects to a node that runs and is not paused.
func (s *Script) anybody(c *client) (k *conn) {
	for k == nil {
		for _, n := range s.w.members {
			if k == nil && n.up() && !n.proc.frozen {
				k = s.w.dial(c, n.id)
			}
		}
		c.sleep(10 * ms)
	}
	return k
}

// Reassign moves a topic's partition to other nodes and waits until the move is over.
func (s *Script) Reassign(topic string, nodes ...int32) (string, error) {
	answer, err := s.BeginMove(topic, nodes...)
	if err != nil || answer != "accepted" {
		return answer, err
	}
	return answer, s.Moved(topic, nodes...)
}

// Moved waits until every node that runs knows that a topic's partition is on these nodes, and nothing is under way.
func (s *Script) Moved(topic string, nodes ...int32) error {
	sort.Slice(nodes, func(i, j int) bool { return nodes[i] < nodes[j] })
	return s.until("the move", func() bool {
		for _, n := range s.w.members {
			if !n.up() || n.proc.core == nil {
				continue
			}
			p := image(n).Topics[topic].Partitions[0]
			if p.Change != nil || fmt.Sprint(nodesOf(p)) != fmt.Sprint(nodes) {
				return false
			}
		}
		return true
	})
}

// Replicas tells where a topic's partition is, and what is under way with that, as a node knows it.
func (s *Script) Replicas(node int32, topic string) (string, error) {
	n := s.w.nodes[node-1]
	if !n.up() || n.proc.core == nil || image(n).Topics[topic] == nil {
		return "", fmt.Errorf("node %d does not run, or knows no topic %s", node, topic)
	}
	p := image(n).Topics[topic].Partitions[0]
	out := fmt.Sprintf("on nodes %v", nodesOf(p))
	if p.Change != nil {
		adding, removing := p.Moves()
		out += fmt.Sprintf(", adding %v, removing %v", adding, removing)
	}
	return out, nil
}

// Throttle bounds what replicas of a topic that catch up are sent and receive, in bytes a second on each node, or with a rate below 0 no longer;
// side, if it is not empty, says that only what is sent (leader) is bounded, or what is received (follower). It waits until every node that runs, and
// is not paused, knows it.
func (s *Script) Throttle(topic, side string, rate int64) error {
	var among [2]string
	for i, of := range sides {
		if rate >= 0 && (side == "" || side == of) {
			among[i] = "*"
		}
	}
	if rate < 0 {
		s.w.throttles.check()
	}
	known := func() bool {
		for _, n := range s.w.members {
			if n.up() && n.proc.core != nil && !n.proc.frozen && !throttledTo(n, topic, among, rate) {
				return false
			}
		}
		return true
	}
	_, err := s.client(func(c *client) string {
		for !known() {
			// Where a node is paused there is no answer: it comes when all show the change, or after a while.
			_ = mover{c}.alter(s.anybody(c), rate, among, []string{topic})
			c.sleep(100 * ms)
		}
		return ""
	})
	return err
}

// throttledTo says whether a node knows a throttle.
func throttledTo(n *node, topic string, among [2]string, rate int64) bool {
	for i, side := range sides {
		name := side + ".replication.throttled."
		v, ok := image(n).BrokerConfigs[n.id][name+"rate"]
		if ok != (rate >= 0) || ok && v != strconv.FormatInt(rate, 10) || image(n).Topics[topic].Configs[name+"replicas"] != among[i] {
			return false
		}
	}
	return true
}
