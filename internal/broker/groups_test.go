package broker

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/group"
	"github.com/chronik-go/chronik/internal/metadata"
)

// fleetLog is a partition of the fleet as a coordinator's log.
type fleetLog struct {
	node *fleetNode
	part *partData
}

func (l *fleetLog) Leading() uint64 {
	if node, epoch := l.node.Leader(l.part.group); node == l.node.id {
		return uint64(epoch)
	}
	return 0
}
func (l *fleetLog) Append(_ uint64, b []byte, done func(int64, error)) {
	(&fakePart{l.node, l.part}).Produce(b, func(r ProduceResult) { done(r.BaseOffset, r.Err) })
}
func (l *fleetLog) Barrier(done func(error)) { done(nil) }
func (l *fleetLog) Read(offset int64, maxBytes int, _ []byte) ([]byte, error) {
	r, err := (&fakePart{l.node, l.part}).Fetch(FetchRequest{Offset: offset, MaxBytes: maxBytes, CurrentLeaderEpoch: -1, LastFetchedEpoch: -1})
	return r.Records, err
}
func (l *fleetLog) Bounds() (int64, int64) { return 0, (&fakePart{l.node, l.part}).HighWatermark() }

// newGroupFleet is a fleet whose nodes coordinate groups.
func newGroupFleet(t testing.TB, n int) *fleet {
	logs := map[int32]map[int32]group.Log{}
	f := newFleet(t, n, func(id int32, c *Config) {
		node := c.Cluster.(*fleetNode)
		logs[id] = map[int32]group.Log{}
		set := group.DefaultSettings()
		set.InitialRebalanceDelay = 20 * time.Millisecond
		ids := 0
		co, err := group.New(group.Config{
			Clock: clock.System{}, Settings: set, NewID: func() string { ids++; return fmt.Sprint("id-", ids) },
			Image: node.Image,
			Partitions: func() int32 {
				if topic := node.Image().Topics[group.Topic]; topic != nil {
					return int32(len(topic.Partitions))
				}
				return 0
			},
			Log: func(p int32) (group.Log, bool) { // under the coordinator's lock
				if l := logs[id][p]; l != nil {
					return l, true
				}
				part := node.f.part(group.Topic, p)
				if part == nil {
					return nil, false
				}
				logs[id][p] = &fleetLog{node, part}
				return logs[id][p], true
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); co.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		c.Groups = co
		c.OffsetsTopic = func() (int32, int16, map[string]string, bool) {
			return 2, int16(n), map[string]string{"cleanup.policy": "compact"}, true
		}
	})
	return f
}

// idOf finds a group that a node of a fleet of two coordinates: partitions go to the nodes in turn.
func idOf(node int32, prefix string) string {
	for i := 0; ; i++ {
		if id := fmt.Sprint(prefix, i); group.PartitionOf(id, 2) == node-1 {
			return id
		}
	}
}

func findCoordinator(c *client, v int16, keys ...string) []kmsg.FindCoordinatorResponseCoordinator {
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorKey, req.CoordinatorKeys = keys[0], keys
	resp := ask[*kmsg.FindCoordinatorResponse](c, v, req)
	if v >= 4 {
		return resp.Coordinators
	}
	return []kmsg.FindCoordinatorResponseCoordinator{{Key: keys[0], NodeID: resp.NodeID, Host: resp.Host, Port: resp.Port, ErrorCode: resp.ErrorCode, ErrorMessage: resp.ErrorMessage}}
}

func TestFindCoordinatorCreatesTheTopicAndNamesItsLeaders(t *testing.T) {
	everyVersion(t, 10, func(t *testing.T, v int16) {
		f := newGroupFleet(t, 2)
		for node := int32(1); node <= 2; node++ {
			got := findCoordinator(f.nodes[1].dial(t), v, idOf(node, "g"))[0]
			if n := f.Node(node); got.ErrorCode != 0 || got.NodeID != node || got.Host != n.KafkaHost || got.Port != n.KafkaPort {
				t.Errorf("%+v", got)
			}
		}
		if f.created() != 1 || f.asked[0].Name != group.Topic || f.asked[0].Configs["cleanup.policy"] != "compact" {
			t.Errorf("%d creations: %+v", f.created(), f.asked)
		}
		if got := findCoordinator(f.nodes[2].dial(t, "one"), v, idOf(1, "g"))[0]; got.NodeID != 2 || got.Host != "lb.example" || got.Port != 9999 {
			t.Errorf("one address: %+v", got)
		}
		// A coordinator that is down is none.
		f.edit(func() { f.dead[2] = true })
		if got := findCoordinator(f.nodes[1].dial(t), v, idOf(2, "g"))[0]; got.ErrorCode != 15 || got.NodeID != -1 || got.Host != "" || got.Port != -1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestFindCoordinatorWaitsForNodesAndLeaders(t *testing.T) {
	f := newGroupFleet(t, 1)
	var ready atomic.Bool
	f.nodes[1].b.cfg.OffsetsTopic = func() (int32, int16, map[string]string, bool) { return 2, 1, nil, ready.Load() }
	c := f.nodes[1].dial(t)
	if got := findCoordinator(c, 4, "g")[0]; got.ErrorCode != 15 || f.created() != 0 {
		t.Errorf("too few nodes: %+v", got)
	}
	ready.Store(true)
	f.edit(func() { f.leaderless = true })
	if got := findCoordinator(c, 4, "g")[0]; got.ErrorCode != 15 || f.created() != 1 {
		t.Errorf("no leader: %+v", got)
	}
}

func (f *fleet) Node(id int32) *metadata.Node { return f.nodes[1].Image().Nodes[id] }

func joinReq(id, member string, v int16) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.MemberID, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.ProtocolType = id, member, 600_000, 600_000, "consumer"
	req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte("sub")}}
	return req
}

// joined is a member of a group of its own, stable.
func joined(c *client, id string) (member string, generation int32) {
	c.t.Helper()
	var r *kmsg.JoinGroupResponse
	until(c.t, "joined", func() bool {
		r = ask[*kmsg.JoinGroupResponse](c, 3, joinReq(id, "", 3))
		return r.ErrorCode != 14
	})
	if r.ErrorCode != 0 {
		c.t.Fatalf("%+v", r)
	}
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID = id, r.Generation, r.MemberID
	sync.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: r.MemberID, MemberAssignment: []byte("yours")}}
	if s := ask[*kmsg.SyncGroupResponse](c, 0, sync); s.ErrorCode != 0 || string(s.MemberAssignment) != "yours" {
		c.t.Fatalf("%+v", s)
	}
	return r.MemberID, r.Generation
}

// groupNode makes a fleet whose first node coordinates the group, asked directly, and by way of the second.
func eachWay(t *testing.T, f func(t *testing.T, fl *fleet, c *client, id string)) {
	for _, way := range []string{"direct", "one address"} {
		t.Run(way, func(t *testing.T) {
			fl := newGroupFleet(t, 2)
			id := idOf(1, "g")
			c := fl.nodes[1].dial(t)
			findCoordinator(c, 4, id)
			if way != "direct" {
				c = fl.nodes[2].dial(t, "one")
			}
			until(t, "groups are loaded", func() bool {
				req := kmsg.NewPtrListGroupsRequest()
				return ask[*kmsg.ListGroupsResponse](c, 0, req).ErrorCode == 0
			})
			f(t, fl, c, id)
		})
	}
}

func TestJoinAndSyncGroup(t *testing.T) {
	eachWay(t, func(t *testing.T, fl *fleet, c *client, id string) {
		for v := int16(0); v <= 9; v++ {
			t.Run(fmt.Sprint("v", v), func(t *testing.T) {
				id := idOf(1, fmt.Sprint("join", v, "-"))
				r := ask[*kmsg.JoinGroupResponse](c, v, joinReq(id, "", v))
				if v >= 4 {
					if r.ErrorCode != 79 || r.MemberID == "" || r.Generation != -1 || (r.Protocol == nil) != (v >= 7) {
						t.Fatalf("%+v", r)
					}
					r = ask[*kmsg.JoinGroupResponse](c, v, joinReq(id, r.MemberID, v))
				}
				if r.ErrorCode != 0 || r.Generation != 1 || *r.Protocol != "range" || r.LeaderID != r.MemberID || len(r.Members) != 1 ||
					string(r.Members[0].ProtocolMetadata) != "sub" || v >= 7 && *r.ProtocolType != "consumer" {
					t.Fatalf("%+v", r)
				}
				sv := min(v, 5)
				sync := kmsg.NewPtrSyncGroupRequest()
				sync.Group, sync.Generation, sync.MemberID = id, 1, r.MemberID
				sync.ProtocolType, sync.Protocol = kmsg.StringPtr("consumer"), kmsg.StringPtr("range")
				sync.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: r.MemberID, MemberAssignment: []byte("yours")}}
				s := ask[*kmsg.SyncGroupResponse](c, sv, sync)
				if s.ErrorCode != 0 || string(s.MemberAssignment) != "yours" || sv >= 5 && (*s.ProtocolType != "consumer" || *s.Protocol != "range") {
					t.Fatalf("%+v", s)
				}
				sync.Generation = 7
				if s := ask[*kmsg.SyncGroupResponse](c, sv, sync); s.ErrorCode != 22 || s.MemberAssignment == nil {
					t.Errorf("%+v", s)
				}
				// What is wrong with a join.
				for _, bad := range []struct {
					change func(*kmsg.JoinGroupRequest)
					code   int16
				}{
					{func(q *kmsg.JoinGroupRequest) { q.Group = "" }, 24},
					{func(q *kmsg.JoinGroupRequest) { q.SessionTimeoutMillis = 1 }, 26},
					{func(q *kmsg.JoinGroupRequest) { q.SessionTimeoutMillis = 1 << 30 }, 26},
					{func(q *kmsg.JoinGroupRequest) { q.MemberID = "nobody" }, 25},
					{func(q *kmsg.JoinGroupRequest) { q.ProtocolType = "connect" }, 23},
					{func(q *kmsg.JoinGroupRequest) { q.Protocols[0].Name = "other" }, 23},
				} {
					q := joinReq(id, "", v)
					bad.change(q)
					b := ask[*kmsg.JoinGroupResponse](c, v, q)
					// Behind one address a group without a name has a coordinator too: this fleet's other node, say.
					if b.ErrorCode != bad.code || b.Generation != -1 || b.LeaderID != "" || (b.Protocol == nil) != (v >= 7) || b.ProtocolType != nil {
						t.Errorf("%+v, want %d", b, bad.code)
					}
				}
			})
		}
	})
}

func TestHeartbeatAndLeaveGroup(t *testing.T) {
	eachWay(t, func(t *testing.T, fl *fleet, c *client, id string) {
		member, generation := joined(c, id)
		for v := int16(0); v <= 4; v++ {
			for _, h := range []struct {
				group, member string
				generation    int32
				code          int16
			}{{id, member, generation, 0}, {id, "nobody", generation, 25}, {id, member, 9, 22}, {idOf(1, "none"), member, 1, 25}, {"", member, 1, 24}} {
				req := kmsg.NewPtrHeartbeatRequest()
				req.Group, req.MemberID, req.Generation = h.group, h.member, h.generation
				if r := ask[*kmsg.HeartbeatResponse](c, v, req); r.ErrorCode != h.code {
					t.Errorf("v%d %+v: %d", v, h, r.ErrorCode)
				}
			}
		}
		for v := int16(0); v <= 5; v++ {
			id := idOf(1, fmt.Sprint("leave", v, "-"))
			member, _ := joined(c, id)
			req := kmsg.NewPtrLeaveGroupRequest()
			req.Group, req.MemberID = id, "nobody"
			req.Members = []kmsg.LeaveGroupRequestMember{{MemberID: "nobody"}, {MemberID: member}}
			r := ask[*kmsg.LeaveGroupResponse](c, v, req)
			if v < 3 {
				if r.ErrorCode != 25 {
					t.Errorf("v%d: %+v", v, r)
				}
				req.MemberID = member
				r = ask[*kmsg.LeaveGroupResponse](c, v, req)
			} else if len(r.Members) != 2 || r.Members[0].ErrorCode != 25 || r.Members[1].ErrorCode != 0 || r.Members[1].MemberID != member {
				t.Errorf("v%d: %+v", v, r)
			}
			if r.ErrorCode != 0 {
				t.Errorf("v%d: %+v", v, r)
			}
			beat := kmsg.NewPtrHeartbeatRequest()
			beat.Group, beat.MemberID, beat.Generation = id, member, 1
			if r := ask[*kmsg.HeartbeatResponse](c, 4, beat); r.ErrorCode != 25 {
				t.Errorf("v%d: after leaving: %d", v, r.ErrorCode)
			}
		}
	})
}

func TestOffsetCommitAndFetch(t *testing.T) {
	eachWay(t, func(t *testing.T, fl *fleet, c *client, id string) {
		topic := fl.topic("t", 2)
		for v := int16(2); v <= 10; v++ {
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Group, req.Generation, req.RetentionTimeMillis = id, -1, -1
			part := func(p int32, offset int64) kmsg.OffsetCommitRequestTopicPartition {
				out := kmsg.NewOffsetCommitRequestTopicPartition()
				out.Partition, out.Offset, out.LeaderEpoch = p, offset, 3
				return out
			}
			big := part(1, 1)
			big.Metadata = kmsg.StringPtr(string(make([]byte, 5000)))
			req.Topics = []kmsg.OffsetCommitRequestTopic{
				{Topic: "t", TopicID: topic.ID, Partitions: []kmsg.OffsetCommitRequestTopicPartition{part(0, int64(v)), big, part(7, 1)}},
				{Topic: "none", TopicID: [16]byte{1}, Partitions: []kmsg.OffsetCommitRequestTopicPartition{part(0, 1)}},
			}
			r := ask[*kmsg.OffsetCommitResponse](c, v, req)
			missing := int16(3)
			if v >= 10 {
				missing = 100
			}
			got := []int16{}
			for _, t := range r.Topics {
				for _, p := range t.Partitions {
					got = append(got, p.ErrorCode)
				}
			}
			if !slices.Equal(got, []int16{0, 12, 3, missing}) {
				t.Errorf("v%d: %v", v, got)
			}
			// A member of a group that is not there; as a member of one that has none.
			req.Topics = req.Topics[:1]
			req.Topics[0].Partitions = req.Topics[0].Partitions[:1]
			req.Generation, req.MemberID = 4, "m"
			if code := ask[*kmsg.OffsetCommitResponse](c, v, req).Topics[0].Partitions[0].ErrorCode; code != 25 {
				t.Errorf("v%d: no member: %d", v, code)
			}
			req.Group = idOf(1, "none")
			want := int16(22)
			if v >= 9 {
				want = 69
			}
			if code := ask[*kmsg.OffsetCommitResponse](c, v, req).Topics[0].Partitions[0].ErrorCode; code != want {
				t.Errorf("v%d: no group: %d", v, code)
			}
		}
		for v := int16(1); v <= 10; v++ {
			req := kmsg.NewPtrOffsetFetchRequest()
			req.Group = id
			req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{1, 0}}, {Topic: "none", Partitions: []int32{0}}}
			named := kmsg.NewOffsetFetchRequestGroup()
			named.Group = id
			named.Topics = []kmsg.OffsetFetchRequestGroupTopic{{Topic: "t", TopicID: topic.ID, Partitions: []int32{1, 0}}, {Topic: "none", TopicID: [16]byte{1}, Partitions: []int32{0}}}
			all := kmsg.NewOffsetFetchRequestGroup()
			all.Group = id
			unknown := named
			unknown.Group = idOf(1, "none")
			req.Groups = []kmsg.OffsetFetchRequestGroup{named, all, unknown}
			r := ask[*kmsg.OffsetFetchResponse](c, v, req)
			if v < 8 {
				p := r.Topics[0].Partitions
				if r.ErrorCode != 0 || len(r.Topics) != 2 || p[0].Offset != -1 || p[0].ErrorCode != 0 || *p[0].Metadata != "" || p[1].Offset != 10 || v >= 5 && p[1].LeaderEpoch != 3 {
					t.Errorf("v%d: %+v", v, r)
				}
				if r.Topics[1].Partitions[0].Offset != -1 || r.Topics[1].Partitions[0].ErrorCode != 0 {
					t.Errorf("v%d: %+v", v, r.Topics[1])
				}
				if v >= 2 {
					req.Topics = nil
					if r := ask[*kmsg.OffsetFetchResponse](c, v, req); len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 || r.Topics[0].Partitions[0].Offset != 10 {
						t.Errorf("v%d, all: %+v", v, r)
					}
				}
				continue
			}
			if len(r.Groups) != 3 || r.Groups[0].ErrorCode != 0 || r.Groups[2].ErrorCode != 0 {
				t.Fatalf("v%d: %+v", v, r)
			}
			g := r.Groups[0]
			if g.Topics[0].Partitions[1].Offset != 10 || g.Topics[0].Partitions[1].LeaderEpoch != 3 || v >= 10 && (g.Topics[0].TopicID != topic.ID || g.Topics[1].Partitions[0].ErrorCode != 100) {
				t.Errorf("v%d: %+v", v, g)
			}
			if a := r.Groups[1]; len(a.Topics) != 1 || a.Topics[0].Partitions[0].Offset != 10 || v >= 10 && a.Topics[0].TopicID != topic.ID {
				t.Errorf("v%d, all: %+v", v, a)
			}
			if u := r.Groups[2]; u.Topics[0].Partitions[1].Offset != -1 {
				t.Errorf("v%d, unknown: %+v", v, u)
			}
		}
	})
}

func TestDescribeListAndDeleteGroups(t *testing.T) {
	eachWay(t, func(t *testing.T, fl *fleet, c *client, id string) {
		member, _ := joined(c, id)
		none := idOf(1, "none")
		for v := int16(0); v <= 6; v++ {
			req := kmsg.NewPtrDescribeGroupsRequest()
			req.Groups, req.IncludeAuthorizedOperations = []string{id, none}, v%2 == 1
			r := ask[*kmsg.DescribeGroupsResponse](c, v, req)
			g, n := r.Groups[0], r.Groups[1]
			if g.ErrorCode != 0 || g.State != "Stable" || g.ProtocolType != "consumer" || g.Protocol != "range" || len(g.Members) != 1 ||
				g.Members[0].MemberID != member || g.Members[0].ClientID != "test" || g.Members[0].ClientHost != "/127.0.0.1" ||
				string(g.Members[0].ProtocolMetadata) != "sub" || string(g.Members[0].MemberAssignment) != "yours" {
				t.Errorf("v%d: %+v", v, g)
			}
			if v >= 3 && (g.AuthorizedOperations == operationsNotAsked) == req.IncludeAuthorizedOperations {
				t.Errorf("v%d: operations %d", v, g.AuthorizedOperations)
			}
			if n.State != "Dead" || (n.ErrorCode == 69) != (v >= 6) || v < 6 && n.ErrorCode != 0 || v >= 6 && n.ErrorMessage == nil {
				t.Errorf("v%d: %+v", v, n)
			}
		}
		for v := int16(0); v <= 5; v++ {
			for _, f := range []struct {
				states, types []string
				found         bool
			}{{nil, nil, true}, {[]string{"stable"}, nil, true}, {[]string{"Empty"}, nil, v < 4}, {nil, []string{"classic"}, true}, {nil, []string{"consumer"}, v < 5}} {
				req := kmsg.NewPtrListGroupsRequest()
				req.StatesFilter, req.TypesFilter = f.states, f.types
				r := ask[*kmsg.ListGroupsResponse](c, v, req)
				if r.ErrorCode != 0 || (len(r.Groups) == 1) != f.found || f.found && (r.Groups[0].Group != id || r.Groups[0].ProtocolType != "consumer") {
					t.Errorf("v%d %+v: %+v", v, f, r)
				}
				if f.found && (v >= 4 && r.Groups[0].GroupState != "Stable" || v >= 5 && r.Groups[0].GroupType != "classic") {
					t.Errorf("v%d: %+v", v, r.Groups[0])
				}
			}
		}
		for v := int16(0); v <= 2; v++ {
			req := kmsg.NewPtrDeleteGroupsRequest()
			req.Groups = []string{id, none}
			r := ask[*kmsg.DeleteGroupsResponse](c, v, req)
			if r.Groups[0].ErrorCode != 68 || r.Groups[1].ErrorCode != 69 {
				t.Errorf("v%d: %+v", v, r)
			}
		}
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group, leave.MemberID = id, member
		ask[*kmsg.LeaveGroupResponse](c, 0, leave)
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = []string{id}
		if r := ask[*kmsg.DeleteGroupsResponse](c, 2, req); r.Groups[0].ErrorCode != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestOffsetDelete(t *testing.T) {
	eachWay(t, func(t *testing.T, fl *fleet, c *client, id string) {
		fl.topic("t", 1)
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = id
		req.Topics = []kmsg.OffsetDeleteRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetDeleteRequestTopicPartition{{Partition: 0}, {Partition: 5}}}}
		if r := ask[*kmsg.OffsetDeleteResponse](c, 0, req); r.ErrorCode != 69 || len(r.Topics) != 0 {
			t.Errorf("%+v", r)
		}
		joined(c, id)
		r := ask[*kmsg.OffsetDeleteResponse](c, 0, req)
		// The member's subscription is no consumer's: it may be to anything.
		if r.ErrorCode != 0 || r.Topics[0].Partitions[0].ErrorCode != 86 || r.Topics[0].Partitions[1].ErrorCode != 3 {
			t.Errorf("%+v", r)
		}
	})
}

func TestAnotherNodesGroupIsNotCoordinatedHere(t *testing.T) {
	fl := newGroupFleet(t, 2)
	topic := fl.topic("t", 1)
	c := fl.nodes[1].dial(t)
	id := idOf(2, "g")
	findCoordinator(c, 4, id)
	if r := ask[*kmsg.JoinGroupResponse](c, 9, joinReq(id, "m", 9)); r.ErrorCode != 16 || r.MemberID != "" {
		t.Errorf("%+v", r)
	}
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group, commit.Generation = id, -1
	commit.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "t", TopicID: topic.ID, Partitions: []kmsg.OffsetCommitRequestTopicPartition{{}}}}
	if r := ask[*kmsg.OffsetCommitResponse](c, 8, commit); r.Topics[0].Partitions[0].ErrorCode != 16 {
		t.Errorf("%+v", r)
	}
	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Group = id
	fetch.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0}}}
	if r := ask[*kmsg.OffsetFetchResponse](c, 1, fetch); r.Topics[0].Partitions[0].ErrorCode != 16 {
		t.Errorf("v1: %+v", r)
	}
	if r := ask[*kmsg.OffsetFetchResponse](c, 7, fetch); r.ErrorCode != 16 || len(r.Topics) != 0 {
		t.Errorf("v7: %+v", r)
	}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{id}
	if r := ask[*kmsg.DescribeGroupsResponse](c, 6, describe); r.Groups[0].ErrorCode != 16 || r.Groups[0].ErrorMessage != nil || r.Groups[0].State != "" {
		t.Errorf("%+v", r)
	}
}

// A node that stops answers those who wait in a join, so that they find the next coordinator.
func TestDrainEndsParkedJoins(t *testing.T) {
	fl := newGroupFleet(t, 2)
	id := idOf(1, "g")
	c := fl.nodes[1].dial(t)
	findCoordinator(c, 4, id)
	joined(c, id)
	req := joinReq(id, "", 3) // the first does not come: it waits
	corr := c.send(3, req)
	until(t, "a rebalance", func() bool {
		describe := kmsg.NewPtrDescribeGroupsRequest()
		describe.Groups = []string{id}
		return ask[*kmsg.DescribeGroupsResponse](fl.nodes[1].dial(t), 0, describe).Groups[0].State == "PreparingRebalance"
	})
	fl.nodes[1].b.Drain()
	if r := recv[*kmsg.JoinGroupResponse](c, corr, req); r.ErrorCode != 16 {
		t.Errorf("%+v", r)
	}
}

func TestInternalTopicsAreNotDeleted(t *testing.T) {
	everyVersion(t, 20, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.edit(func(img *metadata.Image) { c.addTopic(img, group.Topic, 1, 1).Internal = true })
		resp := callAdmin[*kmsg.DeleteTopicsResponse](t, c.broker(t), v, deleteRequest(v, group.Topic))
		if resp.Topics[0].ErrorCode != 17 || len(c.deletes) != 0 {
			t.Errorf("%+v", resp.Topics[0])
		}
	})
}

// BenchmarkHeartbeatRequests is a heartbeat over a socket, the client's side included; cores is what 10,000 members at one
// every 3 s would take of both.
func BenchmarkHeartbeatRequests(b *testing.B) {
	fl := newGroupFleet(b, 1)
	c := fl.nodes[1].dial(b)
	findCoordinator(c, 4, "g")
	member, generation := joined(c, "g")
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation = "g", member, generation
	b.ResetTimer()
	for range b.N {
		if r := ask[*kmsg.HeartbeatResponse](c, 4, req); r.ErrorCode != 0 {
			b.Fatal(r.ErrorCode)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)*10_000/3, "cores")
}
