package sim

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// Script is a simulated cluster that does what it is told, one command after the other, and nothing else: no faults are drawn, and no
// clients run but those that commands ask for. Text scenarios are played with it. While a Script is open no other run is possible.
type Script struct {
	w       *world
	free    func()
	lines   []string // of the trace, what a scenario shows
	members map[string]*scriptMember
	terms   map[string]uint64 // of each topic's leader, as last seen
}

// NewScript starts a cluster of so many nodes, with small logs so that little data fills them. The seed decides what is left to chance:
// who wins elections, how long things take.
func NewScript(nodes int, seed uint64) *Script {
	s := &Script{free: seedRandom(seed), terms: map[string]uint64{}, members: map[string]*scriptMember{}}
	set := benchSettings()
	set.nodes, set.topics, set.compacted, set.producers, set.syncTime, set.netDelay = nodes, nil, nil, 0, ms, ms
	set.tick, set.segment.RetentionBytes, set.limits.FlushInterval, set.limits.FlushBytes = 20*ms, -1, 100*ms, 8<<10
	set.retention, set.session, set.rebalance = 10*time.Second, scriptSession, scriptRebalance
	set.keptSegment, set.cleaning, set.dirtyRatio, set.tombstones = 400, 500*ms, 0.01, 5*time.Second
	set.walFile, set.walCache, set.offsetParts, set.joinDelay = 64<<10, 96<<10, 1, time.Second
	s.w = newWorldOf(Options{Seed: seed, Trace: s.hear}, set, nil)
	s.w.scripted = true
	for _, n := range s.w.nodes {
		n.boot(-1, vfs.LoseUnsynced())
	}
	return s
}

// Close ends the cluster.
func (s *Script) Close() {
	s.w.stopAll()
	s.free()
}

// told are the lines of the trace that a scenario shows, by a part of them.
var told = []string{"catching up", "snapshot staged", "snapshot installed", "fenced", "must stop", "power cut within a step", "VIOLATION"}

// chance is what a line of the trace owes to how many elections there were, and to how many groups: no scenario is about that.
var chance = regexp.MustCompile(` (index|group|term|epoch|replica)=\d+`)

func (s *Script) hear(line string) {
	for _, t := range told {
		if strings.Contains(line, t) {
			_, text, _ := strings.Cut(strings.TrimLeft(line, " "), " ") // without the time
			if i := strings.Index(text, ": {"); i > 0 {
				text = text[:i] // numbers of sectors are the disk's own business
			}
			s.lines = append(s.lines, chance.ReplaceAllString(text, ""))
		}
	}
}

// Events returns what has been worth telling since the last call.
func (s *Script) Events() []string {
	out := s.lines
	s.lines = nil
	return out
}

// patience bounds every wait of a script, in the cluster's time.
const patience = 30 * time.Second

// Run lets the cluster live for d.
func (s *Script) Run(d time.Duration) error {
	s.w.run(d, nil)
	return s.failure()
}

func (s *Script) failure() error {
	if s.w.failed != nil {
		return errors.New(s.w.failed.text)
	}
	return nil
}

// Until lets the cluster live until cond, in vain for a while.
func (s *Script) until(what string, cond func() bool) error {
	if s.w.run(patience, cond) {
		return s.failure()
	}
	if err := s.failure(); err != nil {
		return err
	}
	return fmt.Errorf("%s: not within %v", what, patience)
}

// AwaitCount waits until something that the simulator counts has happened n times.
func (s *Script) AwaitCount(name string, n int) error {
	return s.until(name, func() bool { return s.w.counts[name] >= n })
}

// client runs f as a client and waits for it.
func (s *Script) client(f func(c *client) string) (string, error) {
	var out string
	done := false
	s.w.newClient("script", func(c *client) { out = f(c); done = true })
	err := s.until("an answer", func() bool { return done })
	return out, err
}

// Topic creates a topic with a cleanup.policy, if one is named, on the nodes named if any, and waits until a leader serves. Most commands are about its first partition.
func (s *Script) Topic(name string, partitions int32, replicas int16, policy string, on ...int32) error {
	var configs []string
	if policy != "" {
		configs = []string{"cleanup.policy", policy}
	}
	_, err := s.client(func(c *client) string {
		for {
			if code, err := c.createWith(name, partitions, replicas, configs, on...); err == nil && (code == nil || code == kerr.TopicAlreadyExists) {
				return ""
			}
			c.sleep(50 * ms)
		}
	})
	if err != nil {
		return err
	}
	_, _, err = s.Leader(name)
	return err
}

// Leader waits until a node that runs leads the topic's partition and serves, and returns it with its term.
func (s *Script) Leader(topic string) (node int32, term uint64, err error) {
	err = s.until("a leader", func() (ok bool) {
		node, term, ok = s.leads(topic)
		return ok
	})
	s.terms[topic] = max(s.terms[topic], term)
	return node, term, err
}

// leads returns who serves in the latest term in which anybody does.
func (s *Script) leads(topic string) (node int32, term uint64, ok bool) {
	for _, n := range s.w.nodes {
		if st, ok := s.status(n, topic); ok && st.Ready && st.Term > term {
			node, term = n.id, st.Term
		}
	}
	return node, term, node != 0
}

func (s *Script) status(n *node, topic string) (multiraft.Status, bool) {
	if p := s.replica(n, topic); p != nil {
		return p.Status(), true
	}
	return multiraft.Status{}, false
}

// replica is a running node's replica of a topic's partition.
func (s *Script) replica(n *node, topic string) *partition.Partition {
	if !n.up() || n.proc.core == nil || n.proc.frozen {
		return nil
	}
	p, _ := n.proc.core.Partitions().Lookup(topic, 0)
	return p
}

// Put sends records with keys, key=value each, or key- for a tombstone, in one batch to a node and returns the first's "offset N", or the
// error's name.
func (s *Script) Put(node int32, topic string, records ...string) (string, error) {
	b := record.NewBuilder()
	for _, r := range records {
		if key, value, ok := strings.Cut(r, "="); ok {
			b.Add(epochTime(s), []byte(key), []byte(value))
		} else {
			b.Add(epochTime(s), []byte(strings.TrimSuffix(r, "-")), nil)
		}
	}
	return s.send(node, topic, b)
}

// Produce sends one record to a node and returns "offset N", or the error's name. A producer id below 0 is none.
func (s *Script) Produce(node int32, topic, value string, id int64, epoch int16, seq int32) (string, error) {
	b := record.NewBuilder()
	if id >= 0 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = id, epoch, seq
	}
	b.Add(epochTime(s), nil, []byte(value))
	return s.send(node, topic, b)
}

func (s *Script) send(node int32, topic string, b *record.Builder) (string, error) {
	records, err := b.Build()
	if err != nil {
		return "", err
	}
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = records
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis, req.Topics = -1, int32(requestTimeout/(2*time.Millisecond)), append(req.Topics, t)
	return s.client(func(c *client) string {
		k := c.w.dial(c, node)
		if k == nil {
			return "connection refused"
		}
		defer k.close(errReset)
		resp, err := k.ask(req, nil)
		if err != nil {
			return err.Error()
		}
		r := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		if code := typed(r.ErrorCode); code != nil {
			return code.Message
		}
		return fmt.Sprint("offset ", r.BaseOffset)
	})
}

func epochTime(s *Script) int64 { return s.w.clk.Now().UnixMilli() }

// Read returns what a node's replica holds and has committed, "offset:value" each; of many only the first and the last. Records whose keys
// begin with but are left out, unless that is empty.
func (s *Script) Read(node int32, topic, but string) (string, error) {
	p := s.replica(s.w.nodes[node-1], topic)
	if p == nil {
		return "", fmt.Errorf("node %d has no replica of %s that answers", node, topic)
	}
	raw, err := readReplica(p, p.LogStart(), p.HighWatermark())
	if err != nil {
		return "", err
	}
	var out []string
	for len(raw) > 0 {
		h, err := record.ParseHeader(raw)
		if err != nil {
			return "", err
		}
		err = record.Records(raw[:h.Size()], 1<<20, func(r record.Record) error {
			if but != "" && strings.HasPrefix(string(r.Key), but) {
				return nil
			}
			value := string(r.Value)
			if len(value) > 20 {
				value = fmt.Sprintf("%s... (%d bytes)", value[:10], len(value))
			}
			switch {
			case r.Key != nil && r.Value == nil:
				value = string(r.Key) + "-"
			case r.Key != nil:
				value = string(r.Key) + "=" + value
			}
			out = append(out, fmt.Sprintf("%d:%s", h.BaseOffset+int64(r.OffsetDelta), value))
			return nil
		})
		if err != nil {
			return "", err
		}
		raw = raw[h.Size():]
	}
	if len(out) > 12 {
		return fmt.Sprintf("%s ... %s (%d records)", out[0], out[len(out)-1], len(out)), nil
	}
	return strings.Join(out, " "), nil
}

// Compacted waits until a node's replica of a topic has compacted all that it can: what is left is the last record of each key, but for what
// is in the active segment, the last few records.
func (s *Script) Compacted(node int32, topic string) error {
	return s.until("compaction", func() bool {
		p := s.replica(s.w.nodes[node-1], topic)
		if p == nil || p.HighWatermark() == 0 {
			return false
		}
		st, ok := p.CleanState(s.w.clk.Now())
		return ok && st.Dirty == 0 && st.To >= p.HighWatermark()-8
	})
}

// Elected waits for a leader of a later term than the one in which some node led when a script last asked, by Topic, Leader, Transfer
// or Elected.
func (s *Script) Elected(topic string) error {
	before := s.terms[topic]
	return s.until("an election", func() bool {
		_, term, ok := s.leads(topic)
		if ok && term > before {
			s.terms[topic] = term
		}
		return s.terms[topic] > before
	})
}

// Status tells of every node's replica of a topic's partition. Numbers of terms are chance: what counts is who follows whom.
func (s *Script) Status(topic string) []string {
	var out []string
	_, latest, _ := s.leads(topic)
	for _, n := range s.w.nodes {
		switch p := s.replica(n, topic); {
		case !n.up():
			out = append(out, fmt.Sprintf("node %d: down", n.id))
		case n.proc.frozen:
			out = append(out, fmt.Sprintf("node %d: paused", n.id))
		case p == nil:
			out = append(out, fmt.Sprintf("node %d: no replica", n.id))
		default:
			st := p.Status()
			what := fmt.Sprintf("follows node %d", st.LeaderNode)
			switch {
			case st.IsLeader:
				what = "leads"
			case st.LeaderNode <= 0:
				what = "knows no leader"
			}
			if st.Term < latest {
				what += " in an old term"
			}
			out = append(out, fmt.Sprintf("node %d: %s, high watermark %d", n.id, what, p.HighWatermark()))
		}
	}
	return out
}

// Equal waits until all replicas of a topic's partition have committed the same number of records.
func (s *Script) Equal(topic string) error {
	return s.until("equal replicas", func() bool {
		hw, n := int64(-1), 0
		for _, node := range s.w.nodes {
			p := s.replica(node, topic)
			switch {
			case p == nil:
				continue
			case hw < 0:
				hw = p.HighWatermark()
			case p.HighWatermark() != hw:
				return false
			}
			n++
		}
		return n == s.replicas(topic)
	})
}

func (s *Script) replicas(topic string) int {
	for _, n := range s.w.nodes {
		if !n.up() || n.proc.core == nil {
			continue
		}
		if t := image(n).Topics[topic]; t != nil {
			return len(t.Partitions[0].Replicas)
		}
	}
	return 0
}

func image(n *node) *metadata.Image { return n.proc.core.Metadata().Image() }

// Cut cuts the links between two nodes in both directions, or heals them.
func (s *Script) Cut(a, b int32, cut bool) {
	s.w.cut(s.w.links.link(a, b), cut)
	s.w.cut(s.w.links.link(b, a), cut)
}

// Isolate cuts a node off from all others, or heals its links.
func (s *Script) Isolate(node int32, cut bool) {
	for _, n := range s.w.nodes {
		if n.id != node {
			s.Cut(node, n.id, cut)
		}
	}
}

// Kill ends a node's process as kill -9 does.
func (s *Script) Kill(node int32) { s.w.nodes[node-1].killNow() }

// Power takes the power from a node: what was not synced is gone.
func (s *Script) Power(node int32) { s.w.nodes[node-1].powerCut() }

// PowerIn takes the power from a node at the disk operation so many from now; it comes back by itself.
func (s *Script) PowerIn(node int32, operations int) error {
	n := s.w.nodes[node-1]
	if !n.up() {
		return fmt.Errorf("node %d does not run", node)
	}
	n.proc.cut, n.proc.cutKeep = operations, vfs.LoseUnsynced()
	return nil
}

// Start starts a node's process, and does not wait for it to serve.
func (s *Script) Start(node int32) error {
	n := s.w.nodes[node-1]
	if n.up() {
		return fmt.Errorf("node %d runs", node)
	}
	n.boot(-1, vfs.LoseUnsynced())
	return nil
}

// Pause stops a node's process as SIGSTOP does, or lets it go on.
func (s *Script) Pause(node int32, stop bool) {
	p := s.w.nodes[node-1].proc
	if stop {
		p.frozen = true
		return
	}
	p.thaw()
}

// Transfer asks whoever leads a topic's partition to hand it to a node, as often as it takes, and waits until that leads and the
// other nodes that run know it.
func (s *Script) Transfer(topic string, to int32) error {
	asked := time.Time{}
	return s.until("the transfer", func() bool {
		from, term, ok := s.leads(topic)
		switch {
		case !ok:
			return false
		case from == to:
			s.terms[topic] = max(s.terms[topic], term)
			return s.known(topic, to, term)
		case s.w.clk.Now().Sub(asked) < time.Second:
			return false
		}
		asked = s.w.clk.Now()
		n := s.w.nodes[from-1]
		for _, r := range n.proc.core.Groups().Replicas() {
			if r.Topic() == topic {
				r.TransferLeadership(to)
			}
		}
		s.w.touch(n.proc)
		return false
	})
}

// known says whether every replica that runs and is not cut off follows that leader.
func (s *Script) known(topic string, leader int32, term uint64) bool {
	for _, n := range s.w.nodes {
		st, ok := s.status(n, topic)
		cut := n.id != leader && s.w.links.link(leader, n.id).cut
		if ok && !cut && (st.Term != term || st.LeaderNode != leader) {
			return false
		}
	}
	return true
}
