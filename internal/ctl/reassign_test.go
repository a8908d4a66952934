package ctl

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
)

func TestSpreadIsEvenAndKeepsWhatMayStay(t *testing.T) {
	var parts []kadm.PartitionDetail
	for i := range int32(12) {
		parts = append(parts, kadm.PartitionDetail{Topic: "t", Partition: i, Replicas: []int32{1, 2, 3}})
	}
	p, err := spread(parts, []int32{1, 2, 3, 4}, 0)
	if err != nil {
		t.Fatal(err)
	}
	held, led, moved := map[int32]int{}, map[int32]int{}, 0
	for _, e := range p.Partitions {
		if len(e.Replicas) != 3 || len(slices.Compact(slices.Sorted(slices.Values(e.Replicas)))) != 3 {
			t.Fatalf("%+v", e)
		}
		led[e.Replicas[0]]++
		for _, r := range e.Replicas {
			held[r]++
			if r == 4 {
				moved++
			}
		}
	}
	for b := int32(1); b <= 4; b++ {
		if held[b] != 9 || led[b] != 3 {
			t.Errorf("node %d holds %d and leads %d", b, held[b], led[b])
		}
	}
	if moved != 9 {
		t.Errorf("%d replicas move, 9 are enough", moved)
	}
	if p, err = spread(parts[:1], []int32{2, 3, 1}, 0); err != nil || len(p.Partitions[0].Replicas) != 3 {
		t.Errorf("%+v %v", p, err)
	}
	if _, err := spread(parts, []int32{1, 2}, 0); err == nil {
		t.Error("three replicas on two nodes passed")
	}
	if p, err = spread(parts, []int32{1, 2}, 1); err != nil || len(p.Partitions[0].Replicas) != 1 {
		t.Errorf("%+v %v", p, err)
	}
}

// A string of Kafka's has 32,767 bytes: more replicas than that names are all of the topic's.
func TestManyThrottledReplicasAreAll(t *testing.T) {
	set := map[string]bool{}
	for i := range 10_000 {
		set[fmt.Sprintf("%d:%d", i, i%3)] = true
		if len(set) == 2 {
			if got := joined(set); got != "0:0,1:1" {
				t.Errorf("%q", got)
			}
		}
	}
	if got := joined(set); got != "*" {
		t.Errorf("%d bytes", len(got))
	}
}
