package sim

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// groupWorld is a model with one group, of two partitions, and its log.
func groupWorld(t *testing.T) (*consumerGroup, *groupLog) {
	t.Helper()
	defer seedRandom(1)()
	set := drawSettings(rand.New(rand.NewPCG(1, 1)))
	set.topics, set.compacted, set.groups, set.keepers = []int{2}, []string{""}, 0, 0
	set.session, set.rebalance, set.retention = time.Second, 2*time.Second, time.Minute
	w := newWorldOf(Options{Seed: 1}, set, nil)
	t.Cleanup(w.stopAll)
	return w.newGroup("g", w.model.parts), w.groupLogs.part(0)
}

// groupEvent is something that happens to the group: a record in its log, at the next offset, or what somebody is told or says.
type groupEvent func(g *consumerGroup, l *groupLog)

func wrote(entries ...groupEntry) groupEvent {
	return func(g *consumerGroup, l *groupLog) {
		b := &groupBatch{base: l.next, end: l.next + int64(len(entries)), stamp: g.w.clk.Now().UnixMilli()}
		for i, e := range entries {
			e.g, e.delta, e.sum = g, int64(i), uint64(l.next)+uint64(i)
			e.what, e.key = "a record", string(rune('a'+e.kind))+e.member
			if e.part != nil {
				e.key += e.part.String()
			}
			b.entries = append(b.entries, e)
		}
		l.saw(b)
	}
}

func epochRecord(n int32) groupEntry {
	return groupEntry{kind: kindEpoch, next: &nextRecord{epoch: n}}
}

func memberRecord(id, instance string) groupEntry {
	return groupEntry{kind: kindMember, member: id, next: &nextRecord{member: &nextMemberRecord{instance: instance}}}
}

func (g *consumerGroup) currentRecord(id string, epoch int32, assigned ...int) groupEntry {
	c := &nextCurrent{epoch: epoch}
	for _, i := range assigned {
		c.assigned = append(c.assigned, g.parts[i])
	}
	return groupEntry{kind: kindCurrent, member: id, next: &nextRecord{epoch: epoch, current: c}}
}

func current(id string, epoch int32, assigned ...int) groupEvent {
	return func(g *consumerGroup, l *groupLog) { wrote(g.currentRecord(id, epoch, assigned...))(g, l) }
}

func gone(kind uint8, id string) groupEntry { return groupEntry{kind: kind, member: id} }

func later(d time.Duration) groupEvent {
	return func(g *consumerGroup, _ *groupLog) { g.w.clk.RunUntil(g.w.clk.Now().Add(d)) }
}

func toldOf(id string, parts ...int) groupEvent {
	return func(g *consumerGroup, _ *groupLog) {
		var list []*partModel
		for _, i := range parts {
			list = append(list, g.parts[i])
		}
		g.hold(id, list)
	}
}

func answered(id string, epoch int32, parts ...int) groupEvent {
	return func(g *consumerGroup, _ *groupLog) {
		var list []*partModel
		for _, i := range parts {
			list = append(list, g.parts[i])
		}
		r := kmsg.NewPtrConsumerGroupHeartbeatResponse()
		r.MemberEpoch, r.Assignment = epoch, &kmsg.ConsumerGroupHeartbeatResponseAssignment{}
		g.toldNext(id, r, list)
	}
}

func committed(member string, epoch int32, offset int64) groupEvent {
	return func(g *consumerGroup, l *groupLog) {
		o := g.begin(g.parts[0], offset, epoch, false)
		o.member = member
		wrote(groupEntry{kind: kindOffset, part: g.parts[0], offset: o, stamp: g.w.clk.Now().UnixMilli()})(g, l)
		g.end(o)
	}
}

func offsetGone(g *consumerGroup, l *groupLog) {
	wrote(groupEntry{kind: kindOffset, part: g.parts[0]})(g, l)
}

func found(offset int64) groupEvent {
	return func(g *consumerGroup, _ *groupLog) {
		metadata := ""
		for _, o := range g.ops {
			if !o.read && !o.removal && o.offset == offset {
				metadata = string(rune('0' + o.id))
			}
		}
		g.found(g.begin(g.parts[0], -1, -1, true), offset, metadata)
	}
}

func TestTheModelOfGroupsFindsWhatMustNotHappen(t *testing.T) {
	two := []groupEvent{wrote(memberRecord("a", ""), memberRecord("b", ""), epochRecord(5)), current("a", 5, 0), current("b", 5, 1)}
	for _, c := range []struct {
		name   string
		events []groupEvent
		want   string
	}{
		{"a handover", append(two[:3:3], toldOf("a", 0), toldOf("b", 1), current("a", 5),
			func(g *consumerGroup, _ *groupLog) { g.release("a", nil) }, current("b", 5, 0, 1), toldOf("b", 0, 1)), ""},
		{"given before it is given back", append(two[:3:3], current("b", 5, 0, 1)), "and a has it"},
		{"told before its owner has said that it gave it back", append(two[:3:3], toldOf("a", 0), current("a", 5), current("b", 5, 0, 1), toldOf("b", 0, 1)),
			"which a uses and has not given back"},
		{"its owner is fenced", append(two[:3:3], toldOf("a", 0), later(2*time.Second), wrote(gone(kindCurrent, "a"), gone(kindMember, "a")), current("b", 5, 0, 1),
			toldOf("b", 0, 1)), ""},
		{"a member that lives is taken out", append(two[:3:3], later(500*ms), wrote(gone(kindCurrent, "a"), gone(kindMember, "a"))), "it has been silent for 500ms"},
		{"a member that does not give back is taken out", append(two[:3:3], wrote(memberRecord("a", "")), func(g *consumerGroup, l *groupLog) {
			e := g.currentRecord("a", 5)
			e.next.current.revoking = g.parts[:1]
			wrote(e)(g, l)
			g.next.beaten["a"] = beat{at: g.w.clk.Now().Add(time.Hour)}
		}, later(2*time.Second), wrote(gone(kindCurrent, "a"), gone(kindMember, "a"))), ""},
		{"a static member is replaced", []groupEvent{wrote(memberRecord("a", "i"), epochRecord(5)), wrote(gone(kindMember, "a"), memberRecord("c", "i"))}, ""},
		{"an epoch goes back", append(two[:3:3], current("a", 4, 0)), "goes back from 5 to 4"},
		{"the group's epoch goes back", append(two[:3:3], wrote(epochRecord(4))), "epoch 4 is written"},
		{"a member is ahead of its group", append(two[:3:3], current("a", 6, 0)), "and the group in 5"},
		{"told what is written", append(two[:3:3], answered("a", 5, 0)), ""},
		{"told of another epoch", append(two[:3:3], answered("a", 6, 0)), "epoch 6, which is not in the log"},
		{"told of another assignment", append(two[:3:3], answered("a", 5, 1)), "which is not in the log"},
		{"the group ends with members", append(two[:3:3], wrote(gone(kindEpoch, ""))), "with members"},
		{"a commit of its epoch", append(two[:3:3], committed("a", 5, 7), found(7)), ""},
		{"a commit of an old epoch, of what it had by then", append(two[:3:3], wrote(epochRecord(6)), current("a", 6, 0), committed("a", 5, 7)), ""},
		{"a commit of an old epoch, of what it had not", append(two[:3:3], wrote(epochRecord(6)), current("a", 6), current("b", 6, 0), committed("b", 5, 7)), "has the partition since 6"},
		{"a commit of nobody's", append(two[:3:3], committed("x", 5, 7)), "it is no member"},
		{"a commit without membership", append(two[:3:3], committed("", -1, 7)), "and the group has members"},
		{"an offset goes back", []groupEvent{committed("", -1, 7), committed("", -1, 6)}, "goes back from 7 to 6"},
		{"an offset vanishes", []groupEvent{committed("", -1, 7), found(-1)}, "no offset of t0-0 is found"},
		{"an offset expires", []groupEvent{committed("", -1, 7), later(time.Minute), offsetGone, found(-1)}, ""},
		{"an offset expires early", []groupEvent{committed("", -1, 7), later(59 * time.Second), offsetGone}, "its time is not up"},
		{"an offset that is used expires", append(two[:3:3], committed("a", 5, 7), later(time.Hour), offsetGone), "its time is not up"},
		{"an offset comes back", []groupEvent{committed("", -1, 7), later(time.Minute), offsetGone, found(7)}, "is found, the 1th, after there were 2"},
		{"an offset is deleted", []groupEvent{committed("", -1, 7), func(g *consumerGroup, l *groupLog) {
			r := g.beginRemoval(nil)
			offsetGone(g, l)
			g.carriedOut(r)
		}, found(-1), committed("", -1, 3), found(3)}, ""},
		{"a deletion is only said", []groupEvent{committed("", -1, 7), func(g *consumerGroup, _ *groupLog) { g.carriedOut(g.beginRemoval(nil)) }}, "was removed, it is said"},
		{"compaction loses an offset", []groupEvent{committed("", -1, 7), func(_ *consumerGroup, l *groupLog) { l.loadedWhole(map[string]int64{}) }}, "is gone"},
		{"compaction loses what nobody has seen go", []groupEvent{committed("", -1, 7), func(_ *consumerGroup, l *groupLog) {
			l.ragged = true
			l.loadedWhole(map[string]int64{})
		}, found(-1)}, ""},
	} {
		g, l := groupWorld(t)
		for _, e := range c.events {
			e(g, l)
		}
		switch failed := g.w.failed; {
		case c.want == "" && failed != nil:
			t.Errorf("%s: %s", c.name, failed.text)
		case c.want != "" && (failed == nil || !strings.Contains(failed.text, c.want)):
			t.Errorf("%s: %+v", c.name, failed)
		}
	}
}
