package node

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What an administrator asks about a cluster's disks, quorum, producers and resources, of real nodes.
func TestDescriptionsOfARunningCluster(t *testing.T) {
	t.Parallel()
	nodes := newTestCluster(t, 3)
	startAll(nodes)
	c := client(t, nodes)
	createTopics(t, c, 2, 3, "described")
	ctx := longContext(t)
	for i := range int32(2) {
		if err := c.ProduceSync(ctx, &kgo.Record{Topic: "described", Partition: i, Value: []byte("some bytes")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	adm := kadm.NewClient(c)

	t.Run("log directories", func(t *testing.T) {
		eventually(t, func() error { // followers apply a little later
			all, err := adm.DescribeAllLogDirs(ctx, nil)
			if err != nil {
				return err
			}
			for _, n := range nodes {
				dirs := all[n.cfg.ID()]
				if len(dirs) != 1 {
					return fmt.Errorf("node %d has %d directories", n.cfg.ID(), len(dirs))
				}
				for path, d := range dirs {
					if path != n.cfg.DataDir || d.Err != nil || d.TotalBytes <= 0 || d.UsableBytes <= 0 || d.UsableBytes > d.TotalBytes {
						return fmt.Errorf("node %d: %+v", n.cfg.ID(), d)
					}
					var size int64
					d.Topics.Each(func(p kadm.DescribedLogDirPartition) { size += p.Size })
					if len(d.Topics["described"]) != 2 || size == 0 {
						return fmt.Errorf("node %d: %d bytes of %+v", n.cfg.ID(), size, d.Topics)
					}
				}
			}
			return nil
		})
	})

	t.Run("quorum, asked of any node", func(t *testing.T) {
		for _, n := range nodes {
			eventually(t, func() error {
				req := kmsg.NewPtrDescribeQuorumRequest()
				req.Topics = []kmsg.DescribeQuorumRequestTopic{{Topic: "__cluster_metadata", Partitions: []kmsg.DescribeQuorumRequestTopicPartition{{}}}}
				got, err := c.Broker(int(n.cfg.ID())).Request(ctx, req)
				if err != nil {
					return err
				}
				resp := got.(*kmsg.DescribeQuorumResponse)
				if resp.ErrorCode != 0 || len(resp.Topics) != 1 || len(resp.Nodes) != 3 {
					return fmt.Errorf("%+v", resp)
				}
				p := resp.Topics[0].Partitions[0]
				if p.LeaderID < 1 || len(p.CurrentVoters) != 3 || len(p.Observers) != 0 || p.LeaderEpoch < 1 || p.HighWatermark < 2 {
					return fmt.Errorf("%+v", p)
				}
				st := nodes[p.LeaderID-1].core.Load().metadata.Status()
				if !st.IsLeader {
					return fmt.Errorf("node %d is named as the leader and is not", p.LeaderID)
				}
				for _, v := range p.CurrentVoters {
					if v.LogEndOffset != p.HighWatermark || v.ReplicaDirectoryID != [16]byte(nodes[v.ReplicaID-1].id.Dir) {
						return fmt.Errorf("voter %+v, high watermark %d", v, p.HighWatermark)
					}
				}
				return nil
			})
		}
	})

	t.Run("producers", func(t *testing.T) {
		var topics kadm.TopicsSet
		topics.Add("described", 0, 1)
		eventually(t, func() error {
			all, err := adm.DescribeProducers(ctx, topics)
			if err != nil {
				return err // a node that has yet to hear of the leader
			}
			for _, p := range all["described"].Partitions {
				if p.Err != nil || len(p.ActiveProducers) != 1 {
					return fmt.Errorf("partition %d: %+v", p.Partition, p)
				}
				for _, a := range p.ActiveProducers {
					if a.LastSequence != 0 || a.ProducerEpoch != 0 || a.CurrentTxnStartOffset != -1 {
						return fmt.Errorf("%+v", a)
					}
				}
			}
			return nil
		})
	})

	t.Run("resources that have configs", func(t *testing.T) {
		req := kmsg.NewPtrListConfigResourcesRequest()
		resp, err := req.RequestWith(ctx, c)
		if err != nil || resp.ErrorCode != 0 {
			t.Fatal(resp, err)
		}
		count := map[int8]int{}
		for _, r := range resp.ConfigResources {
			count[r.Type]++
		}
		if count[2] != 1 || count[4] != 3 || len(count) != 2 {
			t.Errorf("%+v", resp.ConfigResources)
		}
	})
}
