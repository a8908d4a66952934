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
// A node answers for itself: it has one directory. Topics null means everything there; what is named and not here is left out.

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
			b.addLogDirTopic(&dir, t, nil)
		}
		slices.SortFunc(dir.Topics, func(a, b kmsg.DescribeLogDirsResponseDirTopic) int {
			return cmp.Compare(a.Topic, b.Topic)
		})
	}
	for _, asked := range req.Topics {
		if t := img.Topics[asked.Topic]; t != nil {
			b.addLogDirTopic(&dir, t, asked.Partitions)
		}
	}
	resp.Dirs = append(resp.Dirs, dir)
	return resp, nil
}

// addLogDirTopic adds the partitions of t that lie here: those named, or all of them if none are.
func (b *Broker) addLogDirTopic(dir *kmsg.DescribeLogDirsResponseDir, t *metadata.Topic, named []int32) {
	out := kmsg.NewDescribeLogDirsResponseDirTopic()
	out.Topic = t.Name
	for _, p := range t.Partitions {
		if named != nil && !slices.Contains(named, p.Index) {
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
