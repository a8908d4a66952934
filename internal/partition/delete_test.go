package partition

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/wal"
)

// leavingHost is a Host whose replicas take their time to stop.
type leavingHost struct {
	idleHost
	known   map[uint64]bool
	stopped func() // of the replica that is stopping
	removed []uint64
}

func (h *leavingHost) Checkpoint(group uint64) (wal.Checkpoint, bool, error) {
	return wal.Checkpoint{Index: 1, Term: 1}, h.known[group], nil
}

func (h *leavingHost) Unregister(_ string, _ int32, done func()) error {
	h.stopped = done
	return nil
}

func (h *leavingHost) Remove(group uint64, done func(error)) {
	h.removed = append(h.removed, group)
	done(nil)
}

// What is deleted is not flushed first: other groups wait for whoever closes it.
func TestWhatIsDeletedIsNotFlushed(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.elect(0, false)
	c.fillAll(60)
	nd := c.nodes[0]
	before := nd.fs.Stats()
	if err := nd.m.Delete(testGroup); err != nil {
		t.Fatal(err)
	}
	if after := nd.fs.Stats(); after.Syncs != before.Syncs || after.DirSyncs != before.DirSyncs {
		t.Errorf("%d syncs, %d of directories", after.Syncs-before.Syncs, after.DirSyncs-before.DirSyncs)
	}
	c.settle()
	if names, err := nd.fs.List(nd.m.cfg.Dir); err != nil || len(names) != 0 {
		t.Errorf("left: %v (%v)", names, err)
	}
}

// A replica's log goes only once the replica has stopped, whoever asks for it: the one who sweeps up logs
// that no topic names sees it until then. Removed under a replica that had yet to open, it was fenced (found by
// the simulator).
func TestALogStaysUntilItsReplicaHasStopped(t *testing.T) {
	m, _, _ := idleManager(t, 0)
	h := &leavingHost{known: map[uint64]bool{}}
	m.cfg.Host = h
	r := metadata.Replica{ID: 1, Dir: uuid.UUID{1}}
	p := &metadata.Partition{Group: 7, Replicas: []metadata.Replica{r}}
	if err := m.Open(&metadata.Topic{Name: "t"}, p, r); err != nil {
		t.Fatal(err)
	}
	h.known[7] = true
	if err := m.Delete(7); err != nil {
		t.Fatal(err)
	}
	if err := m.DeleteLog(7); err != nil {
		t.Fatal(err)
	}
	if len(h.removed) > 0 {
		t.Fatalf("groups %v were removed while the replica runs", h.removed)
	}
	h.stopped()
	if !slices.Equal(h.removed, []uint64{7}) {
		t.Fatalf("groups %v were removed after the replica stopped", h.removed)
	}
	// Found in the log later, it is removed like any that no replica has.
	if err := m.DeleteLog(7); err != nil || len(h.removed) != 2 {
		t.Errorf("%v; groups %v were removed", err, h.removed)
	}
}
