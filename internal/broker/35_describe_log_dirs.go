package broker

import (
	"cmp"
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// DescribeLogDirs (key 35), 1–5. KIP-113, KIP-827.
//
// v2  flexible
// v3  an error at the top
// v4  the volume's size and free space
// v5  cordoned directories, of which there are none
//
// A node answers for itself: it has one directory. Topics null means everything there; what is named and not here is left out,
// and what is named twice is there once.

func handleDescribeLogDirs(b *Broker, _ context.Context, _ *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeLogDirsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	if b.cfg.DataDir == nil {
		resp.ErrorCode = kerr.KafkaStorageError.Code
		return resp, nil
	}
	dir := kmsg.NewDescribeLogDirsResponseDir()
	dir.Dir = b.cfg.DataDir.Path()
	if total, free, err := b.cfg.DataDir.Space(); err == nil {
		dir.TotalBytes, dir.UsableBytes = int64(total), int64(free)
	}
	img := b.cfg.Cluster.Image()
	if req.Topics == nil {
		for _, t := range img.Topics {
			b.addLogDirTopic(&dir, t, func(int32) bool { return true })
		}
		slices.SortFunc(dir.Topics, func(a, b kmsg.DescribeLogDirsResponseDirTopic) int {
			return cmp.Compare(a.Topic, b.Topic)
		})
	}
	asked, order := askedLogs(req.Topics)
	for _, name := range order {
		if t := img.Topics[name]; t != nil {
			b.addLogDirTopic(&dir, t, func(index int32) bool { return asked[name][index] })
		}
	}
	resp.Dirs = append(resp.Dirs, dir)
	return resp, nil
}

// askedLogs are the partitions asked for by their topics, each once, and the topics' order.
func askedLogs(topics []kmsg.DescribeLogDirsRequestTopic) (asked map[string]map[int32]bool, order []string) {
	asked = make(map[string]map[int32]bool, len(topics))
	for i := range topics {
		t := &topics[i]
		if asked[t.Topic] == nil {
			asked[t.Topic] = make(map[int32]bool, len(t.Partitions))
			order = append(order, t.Topic)
		}
		for _, index := range t.Partitions {
			asked[t.Topic][index] = true
		}
	}
	return asked, order
}

// addLogDirTopic adds the partitions of t that are asked for and lie here.
func (b *Broker) addLogDirTopic(dir *kmsg.DescribeLogDirsResponseDir, t *metadata.Topic, asked func(index int32) bool) {
	out := kmsg.NewDescribeLogDirsResponseDirTopic()
	out.Topic = t.Name
	for _, p := range t.Partitions {
		if !asked(p.Index) {
			continue
		}
		local, ok := b.cfg.Partitions.Lookup(t.Name, p.Index)
		if !ok {
			continue
		}
		part := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
		// What lies in the files is committed: it never runs behind the high watermark.
		part.Partition, part.Size = p.Index, local.Size()
		out.Partitions = append(out.Partitions, part)
	}
	if len(out.Partitions) > 0 {
		dir.Topics = append(dir.Topics, out)
	}
}
