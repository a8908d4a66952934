package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// scriptMember is a member of a group that beats and joins again by itself, and commits when it is told to.
type scriptMember struct {
	*groupMember
	hangs, gone bool
	// work is what it is told to do next.
	work func()
}

// Session and rebalance timeouts of a script's members: long against an election.
const (
	scriptSession   = 6 * time.Second
	scriptRebalance = 8 * time.Second
)

// Member starts a member of a group that subscribes to a topic, by the classic protocol or the consumer protocol (KIP-848). There it may
// subscribe by a regular expression, and be static.
func (s *Script) Member(name, groupName, topic, protocol, instance string, regex bool) error {
	if s.members[name] != nil {
		return fmt.Errorf("there is a member %s already", name)
	}
	g, err := s.group(groupName, topic)
	if err != nil {
		return err
	}
	m := &scriptMember{groupMember: g.newMember(name, scriptSession, scriptRebalance)}
	if m.instance = instance; protocol == "consumer" {
		m.next, m.version, m.id, m.regex = true, 1, name, regex
	}
	s.members[name] = m
	m.client = s.w.newClient(name, func(*client) { m.run() })
	return nil
}

// group finds a group, or enters one that is about a topic.
func (s *Script) group(groupName, topic string) (*consumerGroup, error) {
	g := s.w.groupLogs.named(groupName)
	if g == nil {
		var parts []*partModel
		for i := range s.partitions(topic) {
			parts = append(parts, &partModel{topic: topic, index: int32(i), stored: map[int64]storedBatch{}})
		}
		if len(parts) == 0 {
			return nil, fmt.Errorf("there is no topic %s", topic)
		}
		g = s.w.newGroup(groupName, parts)
	}
	return g, nil
}

// Keep commits an offset of a topic's partitions for a group, as somebody who is not a member of it.
func (s *Script) Keep(groupName, topic string, offset int64) (string, error) {
	g, err := s.group(groupName, topic)
	if err != nil {
		return "", err
	}
	return s.client(func(c *client) string {
		m := &groupMember{client: c, g: g, name: "script", generation: -1}
		for _, p := range g.parts {
			m.owned = append(m.owned, &ownedPart{consumer: &consumer{part: p, at: offset}, committed: -1, placed: true})
		}
		return m.insist(m.commit)
	})
}

// insist tries something at the group's coordinator, wherever that is by now, until there is an answer that is final.
func (m *groupMember) insist(try func() (*kerr.Error, error)) string {
	defer m.hangUp()
	for {
		if m.conn == nil || m.conn.broken {
			m.conn = nil
			m.find()
			continue
		}
		switch code, err := try(); {
		case err == nil && code == nil:
			return "done"
		case err == nil && code != kerr.NotCoordinator && code != kerr.CoordinatorNotAvailable && code != kerr.CoordinatorLoadInProgress:
			return code.Message
		}
		m.sleep(20 * ms)
	}
}

// DeleteGroup has a group deleted, or, where a topic is named, the group's offset of its first partition.
func (s *Script) DeleteGroup(groupName, topic string) (string, error) {
	g := s.w.groupLogs.named(groupName)
	if g == nil {
		return "", fmt.Errorf("there is no group %s", groupName)
	}
	return s.client(func(c *client) string {
		k := &keeper{groupMember: &groupMember{client: c, g: g, name: "script", generation: -1}}
		return k.insist(func() (*kerr.Error, error) {
			if topic != "" {
				return k.removeOffset(g, g.parts[0])
			}
			return k.removeGroup(g)
		})
	})
}

// Forgotten waits until a group has no committed offsets left.
func (s *Script) Forgotten(groupName string) error {
	g := s.w.groupLogs.named(groupName)
	if g == nil {
		return fmt.Errorf("there is no group %s", groupName)
	}
	return s.until("expiry", func() bool {
		for _, p := range g.parts {
			if o := g.state[p]; o != nil && !o.removal {
				return false
			}
		}
		return true
	})
}

func (s *Script) partitions(topic string) int {
	for _, n := range s.w.nodes {
		if n.up() && n.proc.core != nil {
			if t := image(n).Topics[topic]; t != nil {
				return len(t.Partitions)
			}
		}
	}
	return 0
}

func (m *scriptMember) run() {
	for !m.gone {
		if m.work != nil {
			m.work()
			m.work = nil
			continue
		}
		if m.hangs {
			m.wait(time.Second)
			continue
		}
		if m.conn == nil || m.conn.broken {
			m.conn = nil
			m.find()
			continue
		}
		switch {
		case m.fenced:
			m.wait(time.Second)
		case !m.joined && m.next:
			m.joinNext()
		case !m.joined:
			m.join()
		case !m.placed:
			m.place()
		case m.changed, m.w.clk.Now().Sub(m.beaten) >= m.session/8:
			m.beat()
		default:
			m.wait(100 * ms)
		}
	}
	m.forget()
}

// tell has a member do something, and waits until it is done.
func (s *Script) tell(name string, f func(m *scriptMember) string) (string, error) {
	m := s.members[name]
	if m == nil {
		return "", fmt.Errorf("there is no member %s", name)
	}
	answer, done := "", false
	m.work = func() { answer, done = f(m), true }
	m.poke()
	err := s.until("an answer to "+name, func() bool { return done })
	return answer, err
}

// Commit has a member commit an offset of all that it believes to own, at the coordinator, wherever that is by now.
func (s *Script) Commit(member string, offset int64) (string, error) {
	return s.tell(member, func(m *scriptMember) string {
		return m.insist(func() (*kerr.Error, error) {
			if len(m.owned) == 0 {
				return &kerr.Error{Message: "it owns nothing"}, nil
			}
			for _, o := range m.owned {
				o.at, o.committed, o.placed = offset, -1, true
			}
			return m.commit()
		})
	})
}

// Leave has a member leave its group.
func (s *Script) Leave(member string) error {
	m := s.members[member]
	_, err := s.tell(member, func(m *scriptMember) string {
		m.leave()
		m.gone = true
		return ""
	})
	if err == nil {
		s.remove(m)
	}
	return err
}

func (s *Script) remove(m *scriptMember) {
	for i, o := range m.g.members {
		if o == m.groupMember {
			m.g.members = append(m.g.members[:i], m.g.members[i+1:]...)
		}
	}
}

// Restart ends a static member's process without a word, and begins it anew.
func (s *Script) Restart(member string) error {
	_, err := s.tell(member, func(m *scriptMember) string {
		m.restart()
		return ""
	})
	return err
}

// Hang stops a member from beating, or lets it go on.
func (s *Script) Hang(member string, hang bool) error {
	m := s.members[member]
	if m == nil {
		return fmt.Errorf("there is no member %s", member)
	}
	if m.hangs = hang; !hang {
		m.poke()
	}
	return nil
}

// Group waits until a group has a generation with so many members, all of which know it, and tells what they own. Members that hang do
// not know it.
func (s *Script) Group(name string, members int) (string, error) {
	g := s.w.groupLogs.named(name)
	if g == nil {
		return "", fmt.Errorf("there is no group %s", name)
	}
	var out []string
	if s.isNext(g) {
		return s.nextGroup(g, members)
	}
	err := s.until("a generation of so many members", func() bool {
		out = out[:0]
		gen := g.generations[g.generation]
		if gen == nil || len(gen.members) != members {
			return false
		}
		for _, m := range g.members {
			if !m.placed || m.generation != g.generation || !slices.Contains(gen.members, m.id) {
				continue
			}
			out = append(out, m.tells())
		}
		return len(out) == members
	})
	return fmt.Sprintf("generation %d: %s", g.generation, strings.Join(out, ", ")), err
}

// tells says what a member owns.
func (m *groupMember) tells() string {
	owns := namesOf(m.has())
	if owns == "" {
		owns = "nothing"
	}
	return fmt.Sprintf("%s has %s", m.name, owns)
}

// isNext says whether a group has members by the consumer protocol, which makes it a consumer group.
func (s *Script) isNext(g *consumerGroup) bool {
	return slices.ContainsFunc(g.members, func(m *groupMember) bool { return m.next && !m.fenced })
}

// nextGroup is Group for a consumer group: it has come to rest with so many members.
func (s *Script) nextGroup(g *consumerGroup, members int) (string, error) {
	var out []string
	why := ""
	err := s.until("a consumer group of so many members", func() bool {
		out = out[:0]
		owners := 0
		for _, m := range g.members {
			c := g.next.current[m.id]
			if c == nil || !m.placed || m.generation != c.epoch || c.epoch != g.next.epoch || c.state != 0 || namesOf(m.has()) != namesOf(c.assigned) {
				continue
			}
			owners += len(m.owned)
			out = append(out, m.tells())
		}
		return len(out) == members && len(g.next.members) == members && owners == len(g.parts)
	})
	if err != nil {
		_, why = "", fmt.Sprint(out)
	}
	return "consumer group: " + strings.Join(out, ", ") + why, err
}

// ResumeAsked has a paused node go on, with a request for a group's offsets that has come while it was paused. It answers what the node
// answers.
func (s *Script) ResumeAsked(node int32, name string) (string, error) {
	g := s.w.groupLogs.named(name)
	if g == nil || !s.w.nodes[node-1].up() {
		return "", fmt.Errorf("there is no group %s, or node %d does not run", name, node)
	}
	s.w.after(100*ms, func() { s.Pause(node, false) })
	return s.client(func(c *client) string {
		m := &groupMember{client: c, g: g, generation: -1, conn: c.w.dial(c, node)}
		if m.look(g.parts) {
			return "it tells offsets"
		}
		if m.refusal == nil {
			return "no answer"
		}
		return m.refusal.Message
	})
}

// Offsets fetches what a group has committed, as somebody who is not a member.
func (s *Script) Offsets(name string) (string, error) {
	g := s.w.groupLogs.named(name)
	if g == nil {
		return "", fmt.Errorf("there is no group %s", name)
	}
	return s.client(func(c *client) string {
		m := &groupMember{client: c, g: g, generation: -1}
		for _, p := range g.parts {
			m.owned = append(m.owned, &ownedPart{consumer: &consumer{client: c, part: p}})
		}
		for !m.look(g.parts) {
			c.sleep(50 * ms)
		}
		m.hangUp()
		var out []string
		for _, o := range m.owned {
			if at := fmt.Sprint(o.at); o.none {
				out = append(out, fmt.Sprintf("%s: none", o.part))
			} else {
				out = append(out, fmt.Sprintf("%s: %s", o.part, at))
			}
		}
		return strings.Join(out, ", ")
	})
}
