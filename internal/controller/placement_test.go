package controller

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/metadata"
)

// holdings counts replicas and preferred leaders by node, of all topics or of one.
func holdings(img *metadata.Image, only string) (replicas, leaders map[int32]int) {
	replicas, leaders = map[int32]int{}, map[int32]int{}
	for id := range img.Nodes {
		replicas[id], leaders[id] = 0, 0
	}
	for _, t := range img.Topics {
		for _, p := range t.Partitions {
			if only != "" && t.Name != only {
				continue
			}
			leaders[p.Replicas[0].Node]++
			for _, r := range p.Replicas {
				replicas[r.Node]++
			}
		}
	}
	return replicas, leaders
}

func spreadOf(m map[int32]int) int {
	lo, hi := -1, 0
	for _, v := range m {
		if lo < 0 || v < lo {
			lo = v
		}
		hi = max(hi, v)
	}
	return hi - lo
}

func TestPlacementIsEven(t *testing.T) {
	for _, nodes := range []int{1, 2, 3, 4, 5, 7} {
		for factor := 1; factor <= min(nodes, 3); factor++ {
			fc := newFakeCluster(t, testImage(nodes), 1)
			c, m := fc.ctl(1), fc.nodes[0].machine
			for i, partitions := range []int32{1, 6, 1, 1, 13, 2, 1, 7, 30} {
				name := fmt.Sprint("t", i)
				mustCreate(t, c, NewTopic{Name: name, Partitions: partitions, ReplicationFactor: int16(factor)})
				reps, leads := holdings(m.Image(), name)
				if spreadOf(reps) > 1 || spreadOf(leads) > 1 {
					t.Errorf("%d nodes, factor %d: topic of %d partitions: replicas %v, leaders %v", nodes, factor, partitions, reps, leads)
				}
				reps, leads = holdings(m.Image(), "")
				if spreadOf(reps) > 2 || spreadOf(leads) > 2 {
					t.Errorf("%d nodes, factor %d, after %d topics: replicas %v, leaders %v", nodes, factor, i+1, reps, leads)
				}
			}
		}
	}
}

// Many topics of one partition, each its own request: auto-creation.
func TestPlacementOfSmallTopicsIsEven(t *testing.T) {
	fc := newFakeCluster(t, testImage(5), 1)
	for i := range 100 {
		mustCreate(t, fc.ctl(1), NewTopic{Name: fmt.Sprint("t", i), Partitions: 1, ReplicationFactor: 3})
	}
	reps, leads := holdings(fc.nodes[0].machine.Image(), "")
	if spreadOf(reps) > 2 || spreadOf(leads) > 1 {
		t.Errorf("replicas %v, leaders %v", reps, leads)
	}
}

func TestPlacementUsesRacks(t *testing.T) {
	img := testImage(6)
	for i, n := range img.Nodes {
		n.Rack = string('a' + rune(i-1)/2) // two nodes in each of three racks
	}
	fc := newFakeCluster(t, img, 1)
	mustCreate(t, fc.ctl(1), NewTopic{Name: "t", Partitions: 30, ReplicationFactor: 3})
	for _, p := range fc.nodes[0].machine.Image().Topics["t"].Partitions {
		racks := map[string]bool{}
		for _, r := range p.Replicas {
			racks[img.Nodes[r.Node].Rack] = true
		}
		if len(racks) != 3 {
			t.Errorf("partition %d lies in racks %v", p.Index, racks)
		}
	}
	if reps, leads := holdings(fc.nodes[0].machine.Image(), ""); spreadOf(reps) > 2 || spreadOf(leads) > 1 {
		t.Errorf("replicas %v, leaders %v", reps, leads)
	}
}

func TestPlacementAvoidsDeadNodes(t *testing.T) {
	live := []int32{1, 2, 3}
	fc := newFakeCluster(t, testImage(4), 1, func(c *Config) { c.Live = func() []int32 { return live } })
	c, m := fc.ctl(1), fc.nodes[0].machine
	mustCreate(t, c, NewTopic{Name: "three", Partitions: 12, ReplicationFactor: 3})
	if reps, _ := holdings(m.Image(), ""); reps[4] != 0 {
		t.Errorf("the dead node has %d replicas", reps[4])
	}
	live = []int32{1, 2}
	mustCreate(t, c, NewTopic{Name: "some", Partitions: 12, ReplicationFactor: 3})
	for _, p := range m.Image().Topics["some"].Partitions {
		nodes := []int32{p.Replicas[0].Node, p.Replicas[1].Node, p.Replicas[2].Node}
		slices.Sort(nodes[:2])
		if nodes[0] != 1 || nodes[1] != 2 {
			t.Errorf("partition %d on %v: live nodes first, and one of them leads", p.Index, nodes)
		}
	}
	live = []int32{1}
	r := c.CreateTopics(testContext(t), []NewTopic{{Name: "none", Partitions: 1, ReplicationFactor: 3}}, false)[0]
	wantErr(t, "no quorum is live", r.Err, ErrInvalidReplicationFactor)
}

// What is assigned by hand must be able to have a leader, too.
func TestAssignmentNeedsAMajorityThatLives(t *testing.T) {
	fc := newFakeCluster(t, testImage(3), 1, func(c *Config) { c.Live = func() []int32 { return []int32{1, 2} } })
	c, m := fc.ctl(1), fc.nodes[0].machine
	assign := func(name string, nodes ...[]int32) error {
		return c.CreateTopics(testContext(t), []NewTopic{{Name: name, Partitions: -1, ReplicationFactor: -1, Assignments: nodes}}, false)[0].Err
	}
	wantErr(t, "the dead one alone", assign("a", []int32{3}), ErrInvalidAssignment)
	wantErr(t, "one of two", assign("a", []int32{3, 1}), ErrInvalidAssignment)
	wantErr(t, "one partition of two", assign("a", []int32{1}, []int32{3}), ErrInvalidAssignment)
	if err := assign("a", []int32{3, 1, 2}); err != nil {
		t.Errorf("two of three: %v", err)
	}
	if err := assign("b", []int32{1}); err != nil {
		t.Errorf("one that lives: %v", err)
	}
	grow := func(nodes ...int32) error {
		return c.CreatePartitions(testContext(t), []NewPartitions{{Name: "b", Count: 2, Assignments: [][]int32{nodes}}}, false)[0].Err
	}
	wantErr(t, "one partition more, on the dead one", grow(3), ErrInvalidAssignment)
	if err := grow(2); err != nil {
		t.Errorf("one partition more: %v", err)
	}
	if n := len(m.Image().Topics["b"].Partitions); n != 2 {
		t.Errorf("%d partitions", n)
	}
}

func TestPlacementIsDeterministic(t *testing.T) {
	place := func(request byte) any {
		fc := newFakeCluster(t, testImage(5), 1)
		r := newRound(fc.ctl(1), fc.nodes[0].machine.Image())
		ps, err := r.placer().spread(uuid.UUID{request}, "topic", 0, 11, 3)
		if err != nil {
			t.Fatal(err)
		}
		var nodes [][]int32
		for _, p := range ps {
			nodes = append(nodes, p.Nodes)
		}
		return nodes
	}
	if !reflect.DeepEqual(place(1), place(1)) {
		t.Error("the same request is placed in two ways")
	}
	starts := map[int32]bool{}
	for i := range byte(40) {
		starts[place(i).([][]int32)[0][0]] = true
	}
	if len(starts) != 5 {
		t.Errorf("first partitions land on %v only", starts)
	}
}
