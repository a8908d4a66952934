package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group/consumer"
	"github.com/chronik-go/chronik/internal/metadata"
)

// ConsumerGroupDescribe (key 69), 0–1. KIP-848.
//
// v1  the type of each member: 0 by the classic protocol, 1 by the consumer protocol (KIP-1099)

func handleConsumerGroupDescribe(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ConsumerGroupDescribeRequest)
	resp := kmsg.NewPtrConsumerGroupDescribeResponse()
	groups := namedOnce(req.Groups)
	resp.Groups = make([]kmsg.ConsumerGroupDescribeResponseGroup, len(groups))
	b.eachGroup(groups, func(i int, id string) {
		b.describeConsumerGroup(ctx, rc, id, req.IncludeAuthorizedOperations, &resp.Groups[i])
	})
	return resp, nil
}

func (b *Broker) describeConsumerGroup(ctx context.Context, rc *RequestContext, id string, operations bool, out *kmsg.ConsumerGroupDescribeResponseGroup) {
	out.Default()
	out.Group, out.Members = id, []kmsg.ConsumerGroupDescribeResponseGroupMember{}
	ask := kmsg.NewPtrConsumerGroupDescribeRequest()
	ask.Groups, ask.IncludeAuthorizedOperations = []string{id}, operations
	got, answered, err := fromCoordinator(b, ctx, rc, id, ask, func(r kmsg.Response) []kmsg.ConsumerGroupDescribeResponseGroup {
		return r.(*kmsg.ConsumerGroupDescribeResponse).Groups
	})
	if answered {
		*out = got
		return
	}
	var d consumer.Description
	if err == nil {
		d, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func(consumer.Description, error)) { b.cfg.Groups.DescribeConsumer(id, done) })
	}
	if err != nil {
		out.ErrorCode, out.ErrorMessage = b.undescribed(rc, err)
		return
	}
	if operations {
		out.AuthorizedOperations = groupOperations
	}
	out.State, out.Epoch, out.AssignmentEpoch, out.AssignorName = d.State, d.Epoch, d.TargetEpoch, d.Assignor
	img := b.cfg.Cluster.Image()
	for i := range d.Members {
		m := &d.Members[i]
		om := kmsg.NewConsumerGroupDescribeResponseGroupMember()
		om.MemberID, om.InstanceID, om.RackID, om.MemberEpoch, om.ClientID, om.ClientHost = m.ID, m.Instance, m.Rack, m.Epoch, m.ClientID, m.ClientHost
		om.SubscribedTopics, om.SubscribedTopicRegex = append([]string{}, m.Topics...), &m.Regex
		om.Assignment, om.TargetAssignment = namedAssignment(img, m.Assigned), namedAssignment(img, m.Target)
		if om.MemberType = 1; m.Classic != nil {
			om.MemberType = 0
		}
		out.Members = append(out.Members, om)
	}
}

// namedAssignment is an assignment with the names of its topics; one that is deleted has none and is left out.
func namedAssignment(img *metadata.Image, a consumer.Assignment) kmsg.Assignment {
	out := kmsg.Assignment{TopicPartitions: []kmsg.AssignmentTopicPartition{}}
	a.EachTopic(func(id consumer.TopicID, partitions []int32) {
		if t := img.TopicsByID[id]; t != nil {
			out.TopicPartitions = append(out.TopicPartitions, kmsg.AssignmentTopicPartition{TopicID: id, Topic: t.Name, Partitions: partitions})
		}
	})
	return out
}
