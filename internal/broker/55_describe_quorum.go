package broker

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
)

// DescribeQuorum (key 55), 0–2. KIP-595, KIP-836, KIP-853.
//
// v1  when each was heard from last, and was known to have everything
// v2  directory ids, nodes and messages
//
// Of the metadata group only. Offsets are raft indexes, ends exclusive as Kafka's are. Any node takes it and asks the group's leader, one
// hop; what the leader knows of the others' progress nobody else does.

func handleDescribeQuorum(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeQuorumRequest)
	resp := req.ResponseKind().(*kmsg.DescribeQuorumResponse)
	resp.ErrorMessage = kmsg.StringPtr("") // not null, as Kafka's
	if len(req.Topics) != 1 || req.Topics[0].Topic != metadata.MetadataTopic || len(req.Topics[0].Partitions) != 1 || req.Topics[0].Partitions[0].Partition != 0 {
		for _, t := range req.Topics {
			out := kmsg.NewDescribeQuorumResponseTopic()
			out.Topic = t.Topic
			for _, p := range t.Partitions {
				part := kmsg.NewDescribeQuorumResponseTopicPartition()
				part.Partition = p.Partition
				part.ErrorCode, part.ErrorMessage = b.refusal(rc, kerr.UnknownTopicOrPartition)
				out.Partitions = append(out.Partitions, part)
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp, nil
	}
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.RequestTimeout)
	defer cancel()
	err := b.describeQuorum(ctx, resp)
	if leader, _ := b.cfg.Cluster.Leader(metadata.MetadataGroup); err != nil && !rc.FromPeer && leader >= 0 && leader != b.cfg.Cluster.NodeID() {
		answer, askErr := b.askPeer(ctx, leader, req)
		if askErr == nil {
			return answer, nil
		}
		err = fmt.Errorf("%w: %w", kerr.NotLeaderForPartition, askErr)
	}
	if err != nil {
		resp.Topics, resp.Nodes = nil, nil
		resp.ErrorCode, resp.ErrorMessage = b.refusal(rc, err)
	}
	return resp, nil
}

// describeQuorum answers from this node, which must lead the metadata group.
func (b *Broker) describeQuorum(ctx context.Context, resp *kmsg.DescribeQuorumResponse) error {
	if b.cfg.Quorum == nil {
		return kerr.NotLeaderForPartition
	}
	q := b.cfg.Quorum()
	if q == nil {
		return kerr.NotLeaderForPartition
	}
	type answer struct {
		term uint64
		all  []multiraft.Progress
		err  error
	}
	got := make(chan answer, 1)
	q.Progress(func(term uint64, all []multiraft.Progress, err error) { got <- answer{term, all, err} })
	a, err := clock.Recv(b.cfg.Clock, ctx, got)
	if err != nil {
		return err
	}
	if a.err != nil {
		return a.err
	}
	img := b.cfg.Cluster.Image()
	part := kmsg.NewDescribeQuorumResponseTopicPartition()
	part.ErrorMessage = kmsg.StringPtr("")
	part.LeaderID, part.LeaderEpoch, part.HighWatermark = b.cfg.Cluster.NodeID(), int32(a.term), int64(q.Status().Commit)+1
	for _, p := range a.all {
		state := kmsg.NewDescribeQuorumResponseTopicPartitionReplicaState()
		state.ReplicaID, state.LogEndOffset = p.Node, -1
		state.LastFetchTimestamp, state.LastCaughtUpTimestamp = millisOf(p.Heard), millisOf(p.CaughtUp)
		if p.Match > 0 {
			state.LogEndOffset = int64(p.Match) + 1
		}
		if n := img.Nodes[p.Node]; n != nil {
			state.ReplicaDirectoryID = n.Dir
		}
		if p.Learner {
			part.Observers = append(part.Observers, state)
			continue
		}
		part.CurrentVoters = append(part.CurrentVoters, state)
		if n := img.Nodes[p.Node]; n != nil {
			resp.Nodes = append(resp.Nodes, quorumNode(n))
		}
	}
	t := kmsg.NewDescribeQuorumResponseTopic()
	t.Topic, t.Partitions = metadata.MetadataTopic, append(t.Partitions, part)
	resp.Topics = append(resp.Topics, t)
	return nil
}

// millisOf is a moment as the protocol has it, -1 for none.
func millisOf(t time.Time) int64 {
	if t.IsZero() {
		return -1
	}
	return t.UnixMilli()
}

// quorumNode names where a voter is reached by the others.
func quorumNode(n *metadata.Node) kmsg.DescribeQuorumResponseNode {
	out := kmsg.NewDescribeQuorumResponseNode()
	out.NodeID = n.ID
	if host, port, err := net.SplitHostPort(n.RaftAddr); err == nil {
		if p, err := strconv.ParseUint(port, 10, 16); err == nil {
			l := kmsg.NewDescribeQuorumResponseNodeListener()
			l.Name, l.Host, l.Port = "RAFT", host, uint16(p)
			out.Listeners = append(out.Listeners, l)
		}
	}
	return out
}
