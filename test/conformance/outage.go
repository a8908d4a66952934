package conformance

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// An outage is played with one broker of three stopped. These topics are made before, of one partition each.
const (
	// outKept has replicas everywhere and is led by one that lives, outLost by the one that is stopped; outStray is as outKept.
	outKept, outLost, outStray = "outage-kept", "outage-lost", "outage-stray"
	// outAlone has its only replica on the stopped broker, outPair one of two, where outSingle has its only one on a broker that lives.
	outAlone, outPair, outSingle = "outage-alone", "outage-pair", "outage-single"
)

// outage prepares the topics, has a broker stopped that does not lead the metadata, and returns once the living ones all say so.
func (c *cluster) outage(stop func(node int32) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	c.cast()
	c.placed(outKept, []int32{c.a, c.b, c.down})
	c.placed(outStray, []int32{c.a, c.b, c.down})
	c.placed(outLost, []int32{c.down, c.a, c.b})
	c.placed(outAlone, []int32{c.down})
	c.placed(outPair, []int32{c.a, c.down})
	c.placed(outSingle, []int32{c.b})
	for topic, leader := range map[string]int32{outKept: c.a, outStray: c.a, outLost: c.down, outPair: c.a} {
		c.led(topic, leader)
	}
	s := &scene{cluster: c}
	for _, topic := range []string{outKept, outLost, outAlone, outPair, outSingle} {
		s.fill(topic, batch(nil, "a", "b"), batch(nil, "c"))
	}
	// Chronik hands on what goes to a broker that has ceased to lead, for a while; the while begins here.
	s.must(c.b, at(s.produceTo(outStray, 0, -1, batch(nil, "a")), 9))
	for i := 0; c.group == ""; i++ {
		if g := fmt.Sprint("outage-group-", i); c.coordinator(g) == c.down {
			c.group = g
		}
	}
	s.must(c.down, at(s.commitOf(member{group: c.group, generation: -1}, outKept, 0, 2), 7))
	if err := stop(c.down); err != nil {
		return err
	}
	if x := c.conns[c.down]; x != nil {
		x.nc.Close()
		delete(c.conns, c.down)
	}
	c.stopped = true
	var missing string
	until(func() bool {
		missing = c.unnoticed()
		return missing == ""
	})
	if missing != "" {
		return errors.New("broker " + fmt.Sprint(c.down) + " is stopped: " + missing)
	}
	c.coordinator(c.group)
	return nil
}

// cast gives the brokers their parts: who leads the metadata lives, and every voter has been heard of.
func (c *cluster) cast() {
	until(func() bool {
		req := kmsg.NewPtrDescribeQuorumRequest()
		req.Version = 1
		req.Topics = []kmsg.DescribeQuorumRequestTopic{{Topic: "__cluster_metadata", Partitions: []kmsg.DescribeQuorumRequestTopicPartition{{}}}}
		r := c.must(1, req).(*kmsg.DescribeQuorumResponse)
		if r.ErrorCode != 0 {
			return false
		}
		p := r.Topics[0].Partitions[0]
		c.a = p.LeaderID
		return !slices.ContainsFunc(p.CurrentVoters, func(v kmsg.DescribeQuorumResponseTopicPartitionReplicaState) bool {
			return v.LastFetchTimestamp < 0 || v.LastCaughtUpTimestamp < 0
		})
	})
	c.b, c.down = c.a%3+1, (c.a+1)%3+1
}

// led waits until every broker names a topic's leader, having it elected where another is.
func (c *cluster) led(topic string, leader int32) {
	s := &scene{cluster: c}
	until(func() bool {
		if now, _ := c.leader(topic, 0); now != leader {
			s.prefer(topic, 0)
			return false
		}
		return !slices.ContainsFunc(c.living(), func(node int32) bool { return c.describe(node, topic).Partitions[0].Leader != leader })
	})
}

// unnoticed is what a living broker does not say yet of the one that is stopped.
func (c *cluster) unnoticed() string {
	for _, node := range c.living() {
		req := metadataOf(false)
		req.Version = 12
		r := c.must(node, req).(*kmsg.MetadataResponse)
		if len(r.Brokers) != 2 || slices.ContainsFunc(r.Brokers, func(b kmsg.MetadataResponseBroker) bool { return b.NodeID == c.down }) {
			return fmt.Sprintf("%d names %d brokers", node, len(r.Brokers))
		}
		for _, topic := range []string{outKept, outStray, outLost, outAlone, outPair, outSingle} {
			p := c.describe(node, topic).Partitions[0]
			led := p.Leader > 0
			switch {
			case topic == outAlone && led, topic != outAlone && topic != outPair && !led, p.Leader == c.down,
				led && len(p.ISR) != len(c.alive(p.Replicas)), len(c.alive(p.ISR)) != len(p.ISR) && topic != outAlone:
				return fmt.Sprintf("%s on broker %d has leader %d and in sync %v of %v", topic, node, p.Leader, p.ISR, p.Replicas)
			}
		}
	}
	return ""
}

// RecordOutage plays the script of an outage against a fresh cluster, and writes the answers below dir; stop kills a broker. check: they are compared with what is
// there instead, and what differs is an error.
func RecordOutage(bootstrap, dir string, check bool, stop func(node int32) error, say func(format string, args ...any)) error {
	c, err := connect(bootstrap)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.outage(stop); err != nil {
		return err
	}
	for _, a := range outageAPIs() {
		answers, err := a.play(c, false)
		if err != nil {
			return err
		}
		name := file(filepath.Join(dir, "outage"), a.key)
		if !check {
			if err := save(name, answers); err != nil {
				return err
			}
			say("%s in an outage: %d answers", kmsg.NameForKey(a.key), len(answers))
			continue
		}
		was, err := load(name)
		if err != nil {
			return err
		}
		for _, step := range slices.Sorted(maps.Keys(answers)) {
			compare("", was[step], asJSON(answers[step]), func(path string, before, now tree) {
				err = errors.Join(err, fmt.Errorf("%s, %s: %s: recorded %s, now %s", kmsg.NameForKey(a.key), step, path, short(before), short(now)))
			})
		}
		if err != nil {
			return err
		}
		say("%s in an outage: the %d recorded answers again", kmsg.NameForKey(a.key), len(answers))
	}
	return nil
}
