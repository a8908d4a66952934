package controller

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/metadata"
)

// liveness makes nodes unreachable.
type liveness struct{ dead []int32 }

func (l *liveness) nodes(n int) func(*Config) {
	return func(c *Config) {
		c.Live = func() (out []int32) {
			for id := int32(1); id <= int32(n); id++ {
				if !slices.Contains(l.dead, id) {
					out = append(out, id)
				}
			}
			return out
		}
	}
}

func moveTo(nodes ...int32) Reassignment { return Reassignment{Topic: "t", Nodes: nodes} }

// changing is a cluster of four nodes with a topic t of one partition on nodes 1 to 3.
func changing(t *testing.T) (*fakeCluster, *liveness) {
	l := &liveness{}
	fc := newFakeCluster(t, testImage(4), 4, l.nodes(4))
	mustCreate(t, fc.ctl(1), NewTopic{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: [][]int32{{1, 2, 3}}})
	return fc, l
}

func (fc *fakeCluster) part() *metadata.Partition {
	return fc.nodes[0].machine.Image().Topics["t"].Partitions[0]
}

func (fc *fakeCluster) reassign(t *testing.T, node int32, r Reassignment) error {
	t.Helper()
	return fc.ctl(node).Reassign(testContext(t), []Reassignment{r}, false)[0].Err
}

func TestReassignmentIsStateUntilItsGroupSaysSo(t *testing.T) {
	fc, _ := changing(t)
	before := fc.part()
	wantErr(t, "moving", fc.reassign(t, 2, moveTo(4, 2, 3)), nil)
	p := fc.part()
	if p.Change == nil || !slices.Equal(p.Replicas, before.Replicas) || !slices.Equal(p.Founders, []uint64{before.Replicas[0].ID, before.Replicas[1].ID, before.Replicas[2].ID}) {
		t.Fatalf("%+v", p)
	}
	added := p.Change.Adding[0]
	if len(p.Change.Adding) != 1 || added.Node != 4 || added.ID <= before.Replicas[2].ID || added.Log == 0 || added.Dir != (uuid.UUID{15: 4}) {
		t.Fatalf("added %+v", p.Change.Adding)
	}
	if !slices.Equal(p.Nodes(), []int32{4, 2, 3, 1}) {
		t.Errorf("clients are told %v", p.Nodes())
	}
	// The same once more is no other change; an end that is not the target's changes nothing.
	wantErr(t, "the same again", fc.reassign(t, 3, moveTo(4, 2, 3)), nil)
	wantErr(t, "an end too early", fc.ctl(2).EndChange(testContext(t), p.Group, p.Change.Number, []uint64{before.Replicas[1].ID, before.Replicas[2].ID}), nil)
	if now := fc.part(); now.Change == nil || len(now.Change.Adding) != 1 {
		t.Fatalf("%+v", now)
	}
	wantErr(t, "the end", fc.ctl(3).EndChange(testContext(t), p.Group, p.Change.Number, p.Change.Target), nil)
	now := fc.part()
	if now.Change != nil || now.Replicas[0] != added || !slices.Equal(now.Nodes(), []int32{4, 2, 3}) || !slices.Equal(now.Founders, p.Founders) {
		t.Fatalf("%+v", now)
	}
	// And a snapshot of it all is the same image.
	img, err := DecodeImage(fc.encodedAll(t))
	if err != nil || !slices.Equal(img.Topics["t"].Partitions[0].Replicas, now.Replicas) {
		t.Fatal(img, err)
	}
}

// Another order of preference needs no change of the group.
func TestAnotherOrderTakesEffectAtOnce(t *testing.T) {
	fc, _ := changing(t)
	wantErr(t, "reordering", fc.reassign(t, 1, moveTo(3, 1, 2)), nil)
	p := fc.part()
	if p.Change != nil || !slices.Equal(p.Nodes(), []int32{3, 1, 2}) {
		t.Fatalf("%+v", p)
	}
	if got := p.Founding(); !slices.Equal(got, []uint64{p.Replicas[1].ID, p.Replicas[2].ID, p.Replicas[0].ID}) {
		t.Errorf("the founders are %v", got)
	}
}

// TestALateEndOfAnEarlierChangeEndsNothing: two changes turned back have one target. What was said of the first must not end the second,
// whose replicas the group may have taken in already.
func TestALateEndOfAnEarlierChangeEndsNothing(t *testing.T) {
	fc, _ := changing(t)
	turnedBack := func() *metadata.Partition {
		wantErr(t, "moving", fc.reassign(t, 1, moveTo(4)), nil)
		wantErr(t, "cancelling", fc.reassign(t, 1, Reassignment{Topic: "t", Cancel: true}), nil)
		return fc.part()
	}
	first := turnedBack()
	end := func(p *metadata.Partition) error {
		return fc.ctl(1).EndChange(testContext(t), p.Group, p.Change.Number, p.Change.Target)
	}
	wantErr(t, "the end", end(first), nil)
	second := turnedBack()
	if !slices.Equal(first.Change.Target, second.Change.Target) {
		t.Fatalf("%v and then %v", first.Change.Target, second.Change.Target)
	}
	wantErr(t, "the end of the first, again", end(first), nil)
	if now := fc.part(); now.Change == nil || len(now.Change.Adding) != 1 {
		t.Fatalf("ended by what was said of an earlier change: %+v", now)
	}
	wantErr(t, "the end of the second", end(second), nil)
	if now := fc.part(); now.Change != nil {
		t.Fatalf("%+v", now.Change)
	}
}

func TestCancelGoesBack(t *testing.T) {
	fc, _ := changing(t)
	cancel := Reassignment{Topic: "t", Cancel: true}
	wantErr(t, "nothing to cancel", fc.reassign(t, 1, cancel), ErrNoReassignment)
	before := fc.part()
	wantErr(t, "moving", fc.reassign(t, 1, moveTo(4)), nil)
	wantErr(t, "cancelling", fc.reassign(t, 1, cancel), nil)
	p := fc.part()
	if p.Change == nil || !slices.Equal(p.Target(), before.Replicas) || len(p.Change.Adding) != 1 {
		t.Fatalf("%+v: the replica that was being added must stay known until the group has dropped it", p)
	}
	wantErr(t, "cancelling twice", fc.reassign(t, 1, cancel), ErrNoReassignment)
	wantErr(t, "the end", fc.ctl(1).EndChange(testContext(t), p.Group, p.Change.Number, p.Change.Target), nil)
	if now := fc.part(); now.Change != nil || !slices.Equal(now.Replicas, before.Replicas) {
		t.Fatalf("%+v", now)
	}
}

func TestReassignmentRefusals(t *testing.T) {
	fc, l := changing(t)
	l.dead = []int32{4}
	for name, c := range map[string]struct {
		r    Reassignment
		want error
	}{
		"no nodes":             {moveTo(), ErrInvalidAssignment},
		"a node twice":         {moveTo(1, 2, 1), ErrInvalidAssignment},
		"a node nobody knows":  {moveTo(1, 9), ErrInvalidAssignment},
		"a node that is down":  {moveTo(1, 4), ErrInvalidAssignment},
		"a partition too many": {Reassignment{Topic: "t", Partition: 1, Nodes: []int32{1}}, ErrUnknownTopic},
		"a topic nobody knows": {Reassignment{Topic: "x", Nodes: []int32{1}}, ErrUnknownTopic},
		"the metadata":         {Reassignment{Topic: metadata.MetadataTopic, Nodes: []int32{1}}, ErrUnknownTopic},
	} {
		wantErr(t, name, fc.reassign(t, 2, c.r), c.want)
	}
	two := fc.ctl(1).Reassign(testContext(t), []Reassignment{moveTo(1), moveTo(2)}, false)
	wantErr(t, "one partition twice", two[0].Err, ErrInvalidRequest)
	wantErr(t, "one partition twice", two[1].Err, ErrInvalidRequest)
	kept := fc.ctl(1).Reassign(testContext(t), []Reassignment{moveTo(1, 2)}, true)
	wantErr(t, "fewer replicas", kept[0].Err, ErrInvalidReplicationFactor)
	if p := fc.part(); p.Change != nil {
		t.Errorf("%+v", p.Change)
	}
}

// A replica that is lost makes way on its node for a new one; without a sound majority beside it nothing is done.
func TestReplacementOfALostReplica(t *testing.T) {
	fc, l := changing(t)
	was := fc.part()
	lost := was.Replicas[1]
	l.dead = []int32{3}
	wantErr(t, "no majority", fc.ctl(1).ReplaceReplica(testContext(t), was.Group, lost.ID), ErrNoQuorum)
	l.dead = nil
	for range 2 {
		wantErr(t, "replacing", fc.ctl(2).ReplaceReplica(testContext(t), was.Group, lost.ID), nil)
	}
	p := fc.part()
	held, ok := p.Held(lost.Node, lost.Dir)
	if !ok || held.ID == lost.ID || held.Log == 0 || p.Target()[1] != held || len(p.Change.Adding) != 1 {
		t.Fatalf("%+v", p)
	}
	if adding, removing := p.Moves(); len(adding)+len(removing) > 0 || !slices.Equal(p.Nodes(), []int32{1, 2, 3}) {
		t.Errorf("clients are told of a move: %v %v", adding, removing)
	}
	// A second one would leave one sound replica of three.
	wantErr(t, "another", fc.ctl(1).ReplaceReplica(testContext(t), was.Group, was.Replicas[0].ID), ErrNoQuorum)
	// A reassignment on top, cancelled, does not go back to what is lost.
	wantErr(t, "moving", fc.reassign(t, 1, moveTo(4, 1, 3)), nil)
	wantErr(t, "cancelling", fc.reassign(t, 1, Reassignment{Topic: "t", Cancel: true}), nil)
	p = fc.part()
	if got := p.Target(); len(got) != 3 || got[1] != held {
		t.Fatalf("back to %+v", got)
	}
	wantErr(t, "the end", fc.ctl(1).EndChange(testContext(t), p.Group, p.Change.Number, p.Change.Target), nil)
	if now := fc.part(); now.Change != nil || now.Replicas[1] != held || len(now.Replicas) != 3 {
		t.Fatalf("%+v", now)
	}
	wantErr(t, "a replica that has gone", fc.ctl(1).ReplaceReplica(testContext(t), was.Group, lost.ID), nil)
	wantErr(t, "a group that has gone", fc.ctl(1).ReplaceReplica(testContext(t), 999, lost.ID), nil)
}

// A removed node's vote on the metadata waits for a node that is away, if no other is there: it would be lost for good otherwise, since nodes are
// given votes at no other time (simulator seed 89: two voters of three nodes were left).
func TestRemovedNodesVoteWaitsForANodeThatIsAway(t *testing.T) {
	fc, l := changing(t)
	l.dead = []int32{3, 4}
	wantErr(t, "moving", fc.reassign(t, 1, moveTo(1, 2)), nil)
	p := fc.part()
	wantErr(t, "the end", fc.ctl(1).EndChange(testContext(t), p.Group, p.Change.Number, p.Change.Target), nil)
	wantErr(t, "removing", fc.ctl(2).RemoveNode(testContext(t), 3), nil)
	img := fc.nodes[2].machine.Image()
	if img.Nodes[3] != nil || !img.Nodes[4].Voter {
		t.Fatalf("node 3 %+v, node 4 %+v: two voters are left of three", img.Nodes[3], img.Nodes[4])
	}
	fc.encodedAll(t)
}

func TestRemoveNode(t *testing.T) {
	fc, l := changing(t)
	remove := func(node int32) error { return fc.ctl(2).RemoveNode(testContext(t), node) }
	wantErr(t, "a node that runs", remove(4), ErrNodeInUse)
	l.dead = []int32{3}
	wantErr(t, "a node with replicas", remove(3), ErrNodeInUse)
	wantErr(t, "a node nobody knows", remove(9), ErrUnknownNode)
	wantErr(t, "moving", fc.reassign(t, 1, moveTo(1, 2)), nil)
	p := fc.part()
	wantErr(t, "a node that still counts", remove(3), ErrNodeInUse)
	wantErr(t, "the end", fc.ctl(1).EndChange(testContext(t), p.Group, p.Change.Number, p.Change.Target), nil)
	wantErr(t, "removing", remove(3), nil)
	img := fc.nodes[3].machine.Image()
	if img.Nodes[3] != nil || !img.Nodes[4].Voter {
		t.Fatalf("node 3 %+v, node 4 %+v: its vote goes to a node that learns", img.Nodes[3], img.Nodes[4])
	}
	wantErr(t, "removing again", remove(3), ErrUnknownNode)
	old := metadata.Node{ID: 3, Dir: uuid.UUID{15: 3}, KafkaHost: "h", KafkaPort: 1}
	_, err := fc.ctl(1).Register(testContext(t), old)
	wantErr(t, "its directory comes back", err, ErrNodeIdentity)
	old.ID = 7
	_, err = fc.ctl(1).Register(testContext(t), old)
	wantErr(t, "its directory comes back under another id", err, ErrNodeIdentity)
	old.ID, old.Dir = 3, uuid.UUID{15: 99}
	_, err = fc.ctl(1).Register(testContext(t), old)
	wantErr(t, "its id, emptied", err, nil)
	fc.encodedAll(t)
}
