package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/group/consumer"
)

// ConsumerGroupHeartbeat (key 68), 0–1. KIP-848.
//
// v0  the whole protocol: a member joins, leaves, says what it owns and hears what it is to have
// v1  the client makes the member id; regular expressions, of RE2's syntax, that match whole names
//
// null means "as before"; whoever joins (epoch 0) has to say everything.

func handleConsumerGroupHeartbeat(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ConsumerGroupHeartbeatRequest)
	node, err := b.coordinator(rc, req.Group)
	if err == nil && node >= 0 {
		var resp kmsg.Response
		if resp, err = b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, req); err == nil {
			return resp, nil
		}
	}
	var answer group.ConsumerAnswer
	if err == nil {
		hb := consumer.Heartbeat{
			Version: rc.Version, Group: req.Group, Member: req.MemberID, Epoch: req.MemberEpoch, Instance: req.InstanceID, Rack: req.RackID,
			ClientID: clientID(rc), ClientHost: clientHost(rc), RebalanceTimeout: req.RebalanceTimeoutMillis,
			Topics: req.SubscribedTopicNames, Regex: req.SubscribedTopicRegex, Assignor: req.ServerAssignor, OwnedSaid: req.Topics != nil,
		}
		var owned []consumer.Partition
		for _, t := range req.Topics {
			for _, p := range t.Partitions {
				owned = append(owned, consumer.Partition{Topic: t.TopicID, Index: p})
			}
		}
		hb.Owned = consumer.NewAssignment(owned)
		answer, err = wait(b, ctx, b.cfg.RequestTimeout, func(done func(group.ConsumerAnswer, error)) { b.cfg.Groups.ConsumerHeartbeat(hb, done) })
	}
	resp := kmsg.NewPtrConsumerGroupHeartbeatResponse()
	resp.ErrorCode, resp.ErrorMessage = b.groupRefusal(rc, err)
	if err != nil {
		return resp, nil
	}
	resp.MemberID, resp.MemberEpoch, resp.HeartbeatIntervalMillis = &answer.Member, answer.Epoch, int32(answer.Interval.Milliseconds())
	if answer.Changed {
		resp.Assignment = &kmsg.ConsumerGroupHeartbeatResponseAssignment{Topics: []kmsg.ConsumerGroupHeartbeatResponseAssignmentTopic{}}
		answer.Assignment.EachTopic(func(id consumer.TopicID, partitions []int32) {
			resp.Assignment.Topics = append(resp.Assignment.Topics, kmsg.ConsumerGroupHeartbeatResponseAssignmentTopic{TopicID: id, Partitions: partitions})
		})
	}
	return resp, nil
}

// quickConsumerGroupHeartbeat: a member that only says that it is there waits for no write, most of the time.
func quickConsumerGroupHeartbeat(rc *RequestContext, r kmsg.Request) bool {
	req := r.(*kmsg.ConsumerGroupHeartbeatRequest)
	return alone(rc, r) && req.MemberEpoch > 0 && req.Topics == nil && req.SubscribedTopicNames == nil && req.SubscribedTopicRegex == nil
}

// groupRefusal is refusal with a message where Kafka has one: not for what passes when the client has found the coordinator.
func (b *Broker) groupRefusal(rc *RequestContext, err error) (code int16, message *string) {
	code, message = b.refusal(rc, err)
	if code >= 14 && code <= 16 {
		message = nil
	}
	return code, message
}
