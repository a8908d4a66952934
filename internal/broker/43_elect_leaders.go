package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// ElectLeaders (key 43), 0–2. KIP-183, KIP-460.
//
// v1  preferred (0) and unclean (1) elections, an error for the whole request
// v2  flexible
//
// A preferred election hands the leadership to the first of a partition's replicas; the leader's node is asked to, and the answer
// comes once the new leader serves. There are no unclean elections: every leader has every acknowledged record, and where no
// majority is left to prove that, none can be made.

const electPreferred, electUnclean = 0, 1

func handleElectLeaders(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ElectLeadersRequest)
	resp := req.ResponseKind().(*kmsg.ElectLeadersResponse)
	ctx, cancel := b.adminContext(ctx, req.TimeoutMillis)
	defer cancel()
	img := b.cfg.Cluster.Image()
	topics, all := req.Topics, req.Topics == nil
	if all {
		topics = everyPartition(img)
	}
	unknown := req.ElectionType != electPreferred && req.ElectionType != electUnclean
	if unknown {
		resp.ErrorCode = kerr.InvalidRequest.Code
		topics = req.Topics // each that is named says so too
	}
	results := make([][]error, len(topics))
	var work []func()
	for i := range topics {
		results[i] = make([]error, len(topics[i].Partitions))
		for j, index := range topics[i].Partitions {
			if unknown {
				results[i][j] = coded(kerr.InvalidRequest, fmt.Sprintf("Unknown election type %d.", req.ElectionType))
				continue
			}
			work = append(work, func() { results[i][j] = b.elect(ctx, rc, img, topics[i].Topic, index, req.ElectionType) })
		}
	}
	inParallel(b.cfg.Clock, work, lookups)
	resp.Topics = []kmsg.ElectLeadersResponseTopic{}
	for i, t := range topics {
		out := kmsg.NewElectLeadersResponseTopic()
		out.Topic = t.Topic
		for j, index := range t.Partitions {
			err := results[i][j]
			if all && ErrorOf(err) == kerr.ElectionNotNeeded {
				continue // asked for all, Kafka names every topic, and the partitions that had something to do
			}
			p := kmsg.NewElectLeadersResponseTopicPartition()
			p.Partition = index
			p.ErrorCode, p.ErrorMessage = b.refusal(rc, err)
			out.Partitions = append(out.Partitions, p)
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp, nil
}

func everyPartition(img *metadata.Image) []kmsg.ElectLeadersRequestTopic {
	var out []kmsg.ElectLeadersRequestTopic
	for _, name := range sortedTopics(img) {
		t := kmsg.NewElectLeadersRequestTopic()
		t.Topic = name
		for _, p := range img.Topics[name].Partitions {
			t.Partitions = append(t.Partitions, p.Index)
		}
		out = append(out, t)
	}
	return out
}

// elect makes the preferred replica of a partition its leader. nil: it is, now.
func (b *Broker) elect(ctx context.Context, rc *RequestContext, img *metadata.Image, topic string, index int32, kind int8) error {
	t := img.Topics[topic]
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return coded(kerr.UnknownTopicOrPartition, "The partition does not exist.")
	}
	p := t.Partitions[index]
	preferred, leads := p.Target()[0].Node, func() int32 {
		node, _ := b.cfg.Cluster.Leader(p.Group)
		if node >= 0 && !b.cfg.Cluster.Live(node) {
			return -1
		}
		return node
	}
	leader := leads()
	switch {
	case kind == electUnclean && leader >= 0:
		return coded(kerr.ElectionNotNeeded, "Leader election not needed for topic partition.")
	case kind == electUnclean:
		return coded(kerr.EligibleLeadersNotAvailable, "There are no unclean elections here: a leader is elected as soon as a majority of the partition's replicas can be reached. Bring their nodes back.")
	case leader == preferred:
		return coded(kerr.ElectionNotNeeded, "Leader election not needed for topic partition.")
	case !b.cfg.Cluster.Live(preferred):
		return coded(kerr.PreferredLeaderNotAvailable, fmt.Sprintf("The preferred leader, broker %d, can't be reached.", preferred))
	case leader < 0:
		return coded(kerr.PreferredLeaderNotAvailable, "The partition has no leader who could hand over; one is being elected.")
	}
	if err := b.handOver(ctx, rc, leader, topic, p, preferred); err != nil {
		return err
	}
	if rc.FromPeer {
		return nil // who asked waits
	}
	if err := b.cfg.Cluster.Await(ctx, func() bool { return leads() == preferred }); err != nil {
		return coded(kerr.PreferredLeaderNotAvailable, fmt.Sprintf("Broker %d did not become the leader in time; it may lag behind.", preferred))
	}
	return nil
}

// handOver has the leader's node begin the transfer.
func (b *Broker) handOver(ctx context.Context, rc *RequestContext, leader int32, topic string, p *metadata.Partition, to int32) error {
	if leader == b.cfg.Cluster.NodeID() {
		if b.cfg.TransferLeadership != nil {
			b.cfg.TransferLeadership(p.Group, to)
		}
		return nil
	}
	if rc.FromPeer {
		return coded(kerr.NotLeaderForPartition, "The leadership has moved meanwhile; ask again.")
	}
	ask := kmsg.NewPtrElectLeadersRequest()
	ask.Version = 2
	ask.TimeoutMillis = 5000
	ask.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: topic, Partitions: []int32{p.Index}}}
	answer, err := b.askPeer(ctx, leader, ask)
	if err != nil {
		return coded(kerr.PreferredLeaderNotAvailable, err.Error())
	}
	for _, t := range answer.(*kmsg.ElectLeadersResponse).Topics {
		for _, r := range t.Partitions {
			if err := kerr.ErrorForCode(r.ErrorCode); err != nil && err != kerr.ElectionNotNeeded {
				return err
			}
		}
	}
	return nil
}
