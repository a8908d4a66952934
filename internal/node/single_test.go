package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// A node alone serves, and has everything after it was closed and opened again.
func TestSingleNodeServesAndKeeps(t *testing.T) {
	n := newTestNode(t, 1).onDisk(t.TempDir())
	began := time.Now()
	n.start()
	t.Logf("start to ready: %v", time.Since(began))
	nodes := []*testNode{n}
	c := client(t, nodes)
	createTopics(t, c, 3, -1, "orders")
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprint("record ", i))
		if off := produce(t, c, "orders", 1, want[i]); off != int64(i) {
			t.Fatalf("record %d is at offset %d", i, off)
		}
	}
	if got := consume(t, nodes, "orders", 1, 50); !slices.Equal(got, want) {
		t.Fatalf("consumed %q", got)
	}
	cluster := n.image().ClusterID
	c.Close()
	n.stop()

	began = time.Now()
	n.start()
	t.Logf("restart to ready: %v", time.Since(began))
	if n.image().ClusterID != cluster {
		t.Errorf("cluster id %s became %s", cluster, n.image().ClusterID)
	}
	if got := consume(t, nodes, "orders", 1, 50); !slices.Equal(got, want) {
		t.Fatalf("consumed after the restart %q", got)
	}
	c = client(t, nodes)
	if off := produce(t, c, "orders", 1, "one more"); off != 50 {
		t.Errorf("the first record after the restart is at offset %d", off)
	}
}

// What says that a topic is deleted is in the log's checkpoint of the metadata as soon as the topic's groups leave the log: a node
// that restarts must not begin before it, and make them again (found by the simulator: a deleted group elected a second leader of
// a term).
func TestDeletionOutlivesTheGroupsLog(t *testing.T) {
	n := newTestNode(t, 1)
	n.start()
	c := client(t, []*testNode{n})
	createTopics(t, c, 1, 1, "short")
	group := n.image().Topics["short"].Partitions[0].Group
	deleteTopic(t, c, "short")
	deleted := n.image().Index
	for end := time.Now().Add(bound); ; time.Sleep(time.Millisecond) {
		if n.wal.Group(group) == nil && n.wal.Group(metadata.MetadataGroup).Checkpoint().Index >= deleted {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the group is there: %v; the metadata's checkpoint is at %d, the deletion at %d", n.wal.Group(group) != nil,
				n.wal.Group(metadata.MetadataGroup).Checkpoint().Index, deleted)
		}
	}
}

// A node that dies after a deleted partition's log is gone, and before its files are, removes them when it starts again: nothing else
// ever would (found by test/chaos, kill -9 of all). What no metadata explains stays.
func TestFilesOfADeletedPartitionGoAtTheNextStart(t *testing.T) {
	n := newTestNode(t, 1)
	n.start()
	c := client(t, []*testNode{n})
	createTopics(t, c, 1, 1, "gone", "kept")
	gone, kept := n.image().Topics["gone"].Partitions[0].Group, n.image().Topics["kept"].Partitions[0].Group
	deleteTopic(t, c, "gone")
	topics := filepath.Join(n.cfg.DataDir, topicsName)
	missing := func() error {
		if _, err := n.fs.List(filepath.Join(topics, "gone")); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the topic's directory is still there: %v", err)
		}
		return nil
	}
	eventually(t, missing)
	next := n.image().NextGroup
	n.stop()
	stay := []string{fmt.Sprintf("kept/0.%d", kept), fmt.Sprintf("later/0.%d", next), "notes/0.x"}
	for _, dir := range append([]string{fmt.Sprintf("gone/0.%d", gone)}, stay...) {
		if err := n.fs.MkdirAll(filepath.Join(topics, dir, "0000000000000000")); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	eventually(t, missing)
	for _, dir := range stay {
		if _, err := n.fs.List(filepath.Join(topics, dir)); err != nil {
			t.Error(err)
		}
	}
}

func deleteTopic(t *testing.T, c *kgo.Client, name string) {
	t.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis, req.TopicNames = 10000, []string{name}
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = &name
	req.Topics = append(req.Topics, topic)
	if _, err := req.RequestWith(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	c := http.Client{Timeout: bound, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}
