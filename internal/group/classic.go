package group

import (
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/group/consumer"
)

// State is a classic group's, as Kafka names it.
type State uint8

// States of a classic group.
const (
	// Empty: no members; there may be offsets.
	Empty State = iota
	// PreparingRebalance: waiting for the members to join.
	PreparingRebalance
	// CompletingRebalance: waiting for the leader's assignment.
	CompletingRebalance
	// Stable: every member may have its assignment.
	Stable
	// Dead: there is no such group.
	Dead
)

var stateNames = [...]string{"Empty", "PreparingRebalance", "CompletingRebalance", "Stable", "Dead"}

// String returns Kafka's name.
func (s State) String() string { return stateNames[s] }

// consumerProtocol is the protocol type of consumers: their metadata names topics.
const consumerProtocol = "consumer"

// classicGroup is the classic protocol's side of a group.
type classicGroup struct {
	state        State
	since        int64 // ms since 1970 when it got the state; -1: not known
	generation   int32
	protocolType string // "": none yet, or only offsets
	protocol     string // "": none
	leader       string // member id, "": none

	members   map[string]*member
	order     []*member          // in the order they came
	instances map[string]*member // by group.instance.id
	supported map[string]int     // protocol -> members that have it
	bytes     int                // what the members brought along
	joining   int                // members that wait in a join

	// promised are member ids that were handed out (KIP-394).
	promised map[string]*member
	// initial: the rebalance is the first after Empty; newcomers put its end off.
	initial    bool
	newcomers  bool
	initialEnd time.Duration
	join, sync timer

	// unwritten: that the group has become empty is not in the log. Until it is, nothing of it expires.
	unwritten bool
	// recording counts the records of a join that are not committed; answers wait for them.
	recording int
	waiting   []func(error)
	// subscribed are the topics of a consumer group's members while it is stable or completing; nil where they are not known.
	subscribed map[string]bool
}

// Protocol is a protocol that a member can go by, and what it says there; opaque to the coordinator.
type Protocol struct {
	Name     string
	Metadata []byte
}

// member is a member of a classic group.
type member struct {
	staticLife
	instance   *string
	assignment []byte
	written    *staticLife // what the log holds, while another life in its place is being written

	onJoin func(JoinResult, error)
	onSync func(SyncResult, error)
	isNew  bool // joining for the first time: it has no session yet
	synced bool // has asked for this generation's assignment

	deadline time.Duration // of the session
	timer    timer
}

// staticLife is what of a member changes when a process takes the place of another with the same instance id.
type staticLife struct {
	id         string
	clientID   string
	clientHost string
	// Timeouts are in ms.
	sessionTimeout, rebalanceTimeout int32
	protocols                        []Protocol
}

func newClassicGroup(g *group, now int64) *classicGroup {
	c := &classicGroup{state: Empty, since: now}
	c.join = timer{kind: timerJoin, group: g}
	c.sync = timer{kind: timerSync, group: g}
	return c
}

// unused says that nothing is known of the group but offsets, if those.
func (c *classicGroup) unused() bool {
	return c.state == Empty && c.generation == 0 && c.protocolType == "" && len(c.promised) == 0
}

// deletable says that nobody is or comes in.
func (c *classicGroup) deletable() bool { return c.state == Empty && len(c.promised) == 0 }

func (c *classicGroup) become(s State, now int64) { c.state, c.since = s, now }

func (c *classicGroup) add(m *member) {
	if c.members == nil {
		c.members, c.supported, c.instances = map[string]*member{}, map[string]int{}, map[string]*member{}
	}
	c.members[m.id] = m
	c.order = append(c.order, m)
	if m.instance != nil {
		c.instances[*m.instance] = m
	}
	c.count(m.protocols, 1)
}

// remove takes a member out. What it waits for is the caller's to answer.
func (c *classicGroup) remove(m *member) {
	delete(c.members, m.id)
	c.order = slices.DeleteFunc(c.order, func(o *member) bool { return o == m })
	if m.instance != nil && c.instances[*m.instance] == m {
		delete(c.instances, *m.instance)
	}
	c.count(m.protocols, -1)
	if c.leader == m.id {
		c.leader = ""
		if len(c.order) > 0 {
			c.leader = c.order[0].id
		}
	}
}

func (c *classicGroup) count(protocols []Protocol, by int) {
	seen := make(map[string]bool, len(protocols))
	for _, p := range protocols {
		if seen[p.Name] {
			continue
		}
		seen[p.Name] = true
		if c.supported[p.Name] += by; c.supported[p.Name] == 0 {
			delete(c.supported, p.Name)
		}
	}
	c.bytes += by * protocolBytes(protocols)
}

// protocolBytes is about what protocols take in memory.
func protocolBytes(protocols []Protocol) (n int) {
	for _, p := range protocols {
		n += len(p.Name) + len(p.Metadata) + consumer.EntryBytes
	}
	return n
}

// admits says whether the group takes somebody with these protocols.
func (c *classicGroup) admits(protocolType string, protocols []Protocol) bool {
	if c.state == Empty {
		return protocolType != "" && len(protocols) > 0
	}
	return protocolType == c.protocolType && slices.ContainsFunc(protocols, func(p Protocol) bool {
		return c.supported[p.Name] == len(c.members)
	})
}

// elect chooses the protocol: among those that all members have, each votes for the first on its list. Of two with equal votes
// the one wins that was voted for first.
func (c *classicGroup) elect() string {
	votes := map[string]int{}
	best := ""
	var order []string
	for _, m := range c.order {
		for _, p := range m.protocols {
			if c.supported[p.Name] == len(c.members) {
				if votes[p.Name]++; votes[p.Name] == 1 {
					order = append(order, p.Name)
				}
				break
			}
		}
	}
	for _, name := range order {
		if best == "" || votes[name] > votes[best] {
			best = name
		}
	}
	return best
}

// rebalanceTimeout is the longest of the members'.
func (c *classicGroup) rebalanceTimeout() time.Duration {
	most := int32(0)
	for _, m := range c.order {
		most = max(most, m.rebalanceTimeout)
	}
	return time.Duration(most) * time.Millisecond
}

// allJoined says whether nobody else has to be waited for.
func (c *classicGroup) allJoined() bool { return c.joining == len(c.members) && len(c.promised) == 0 }

// metadata is what the member says under a protocol.
func (m *member) metadata(protocol string) []byte {
	for _, p := range m.protocols {
		if p.Name == protocol {
			return p.Metadata
		}
	}
	return nil
}

// same says whether the member would join as it is.
func (m *member) same(protocols []Protocol) bool {
	return slices.EqualFunc(m.protocols, protocols, func(a, b Protocol) bool {
		return a.Name == b.Name && string(a.Metadata) == string(b.Metadata)
	})
}

// find checks who asks (KIP-345): the member, if it is who it says it is.
func (c *classicGroup) find(id string, instance *string) (*member, error) {
	if instance != nil {
		m := c.instances[*instance]
		switch {
		case m == nil:
			return nil, ErrUnknownMember
		case m.id != id:
			return nil, ErrFencedInstance
		}
		return m, nil
	}
	if m := c.members[id]; m != nil {
		return m, nil
	}
	return nil, ErrUnknownMember
}

// learnTopics finds out what a consumer group subscribes to.
func (c *classicGroup) learnTopics() {
	c.subscribed = nil
	if c.protocolType != consumerProtocol || c.protocol == "" || len(c.members) == 0 {
		return
	}
	topics := map[string]bool{}
	for _, m := range c.order {
		_, err := consumer.ReadSubscription(m.metadata(c.protocol), func(name string) {
			if len(topics) <= consumer.MaxTopics && !topics[name] {
				topics[strings.Clone(name)] = true
			}
		}, nil)
		if err != nil || len(topics) > consumer.MaxTopics {
			return // some other scheme under the name "consumer"
		}
	}
	c.subscribed = topics
}

// mayDeleteOffsets says why offsets can't be deleted, whatever topic; nil if they can.
func (c *classicGroup) mayDeleteOffsets() error {
	if c.state != Empty && c.protocolType != consumerProtocol {
		return ErrNonEmptyGroup
	}
	return nil
}

// subscribes says whether a member may want the topic.
func (c *classicGroup) subscribes(topic string) bool {
	if c.state == Empty || c.protocolType != consumerProtocol {
		return false
	}
	return c.subscribed == nil || c.subscribed[topic]
}

// unusedSince says since when (ms since 1970) nobody has had a use for a topic's offset; ok is false while somebody has.
func (c *classicGroup) unusedSince(topic string, o *offset) (since int64, ok bool) {
	switch {
	case c.protocolType == "":
		return o.committed, c.state == Empty
	case c.state == Empty:
		if c.since >= 0 {
			return c.since, true
		}
		return o.committed, true
	case c.state == Stable && c.protocolType == consumerProtocol && c.subscribed != nil:
		return o.committed, !c.subscribed[topic]
	}
	return 0, false
}

// record is the group as it is written: members, and generation.
func (c *classicGroup) record(id string) keyValue {
	v := kmsg.GroupMetadataValue{Version: groupMetadataVersion, ProtocolType: c.protocolType, Generation: c.generation, CurrentStateTimestamp: c.since}
	if c.protocol != "" {
		v.Protocol = &c.protocol
	}
	if c.leader != "" {
		v.Leader = &c.leader
	}
	for _, m := range c.order {
		r := kmsg.NewGroupMetadataValueMember()
		r.MemberID, r.InstanceID, r.ClientID, r.ClientHost = m.id, m.instance, m.clientID, m.clientHost
		r.SessionTimeoutMillis, r.RebalanceTimeoutMillis = m.sessionTimeout, m.rebalanceTimeout
		r.Subscription, r.Assignment = m.metadata(c.protocol), m.assignment
		v.Members = append(v.Members, r)
	}
	return keyValue{groupKey(id), v.AppendTo(nil)}
}
