package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/test/harness"
	"github.com/chronik-go/chronik/test/oracle"
)

// machine is a place for a node: its addresses, its disk, its cable. After a wiped disk another node lives there.
type machine struct {
	name                            string
	kafka, raft, admin              string // where the server listens
	advertisedKafka, advertisedRaft string
	ip                              string   // on cables
	prefix                          []string // runs a command there
	node                            *harness.Node
	mounted                         bool
}

// network is what connects machines.
type network interface {
	attach(m *machine) error
	kinds() []kind
	heal() error
	close()
}

// run is one cluster's time under chaos.
type run struct {
	t        *testing.T
	seed     uint64
	dir      string
	machines []*machine
	network  network
	admin    *kadm.Client
	ledger   *oracle.Ledger
	log      func(format string, args ...any)

	rounds int
	lastID int // the highest node id used so far
	moved  int // replicas that were given to the successor of a node with a wiped disk

	mu      sync.Mutex
	fired   map[string]int // by kind
	drawn   map[string]int
	peakRSS int64
}

// recovers bounds every wait for the cluster to be well again once it is healed: an election, a start, a write on each partition.
const recovers = 3 * time.Minute

// start lays out and starts a cluster. onCables: on a network of the kernel's in place of proxies; disks: each node on a disk of its own.
func (r *run) start(ctx context.Context, machines int, onCables, disks bool) error {
	if onCables {
		var err error
		if r.network, err = newCables(r); err != nil {
			return err
		}
	} else {
		r.network = newLinks(r)
	}
	for i := range machines {
		m := &machine{name: fmt.Sprintf("m%d", i+1)}
		r.machines = append(r.machines, m)
		if err := r.network.attach(m); err != nil {
			return err
		}
		dir := filepath.Join(r.dir, m.name)
		if disks {
			if err := mountDisk(dir); err != nil {
				return err
			}
			m.mounted = true
		}
	}
	for _, m := range r.machines {
		r.lastID++
		m.node = r.newNode(m, r.lastID, r.peers())
	}
	for _, m := range r.machines {
		if err := r.launch(m); err != nil {
			return err
		}
	}
	if err := r.awaitReady(ctx, r.machines...); err != nil {
		return err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...), kgo.MetadataMinAge(50*time.Millisecond), kgo.DialTimeout(2*time.Second))
	if err != nil {
		return err
	}
	r.admin = kadm.NewClient(cl)
	return nil
}

// peers lists the nodes there are, but for the machines given.
func (r *run) peers(except ...*machine) string {
	var out []string
	for i, m := range r.machines {
		id := i + 1 // of a founder
		if m.node != nil {
			id = m.node.ID
		}
		if !slices.Contains(except, m) {
			out = append(out, fmt.Sprintf("%d@%s", id, m.advertisedRaft))
		}
	}
	return strings.Join(out, ",")
}

func (r *run) newNode(m *machine, id int, peers string) *harness.Node {
	return harness.NewNode(harness.Config{Bin: serverBinary, ID: id, Kafka: m.kafka, Raft: m.raft, Admin: m.admin,
		Dir: filepath.Join(r.dir, m.name), LogFile: filepath.Join(r.dir, fmt.Sprintf("node-%d.log", id)), Prefix: m.prefix,
		Flags: []string{"--peers", peers, "--advertised-raft-addr", m.advertisedRaft, "--advertised-kafka-addr", m.advertisedKafka,
			"--wal-file-bytes", "32MiB", "--wal-max-bytes", "96MiB", "--rack", m.name, "--kafka-config", "group.initial.rebalance.delay.ms=0"},
		OnExit: func(err error) { r.t.Errorf("node %d ended by itself: %v", id, err) }})
}

// renew puts another node in a machine's place.
func (r *run) renew(m *machine, id int, peers string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m.node = r.newNode(m, id, peers)
}

// launch starts a machine's node.
func (r *run) launch(m *machine) error { return m.node.Start() }

// launchExpecting starts a node that is expected to end by itself.
func (r *run) launchExpecting(m *machine) error {
	if err := m.node.Start(); err != nil {
		return err
	}
	m.node.Expect()
	return nil
}

// processes names the machines by their processes.
func (r *run) processes() map[int]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[int]string{}
	for _, m := range r.machines {
		if m.node == nil {
			continue // still being laid out
		}
		if pid := m.node.PID(); pid != 0 {
			out[pid] = m.name
		}
	}
	return out
}

func (r *run) awaitReady(ctx context.Context, machines ...*machine) error {
	ctx, cancel := context.WithTimeout(ctx, recovers)
	defer cancel()
	for _, m := range machines {
		if err := m.node.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) brokers() []string {
	var out []string
	for _, m := range r.machines {
		out = append(out, m.advertisedKafka)
	}
	return out
}

// leader finds the machine that leads a partition drawn; if nobody does just now, any.
func (r *run) leader(ctx context.Context, s shot) *machine {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if details, err := r.admin.Metadata(ctx, topics[0]); err == nil {
		led := details.Topics[topics[0]].Partitions[int32(s.bits%partitions)].Leader
		for _, m := range r.machines {
			if m.node.ID == int(led) && m.node.Running() {
				return m
			}
		}
	}
	return r.machines[s.a]
}

// replace gives every replica of a node that is lost for good to another, and removes the lost one.
func (r *run) replace(ctx context.Context, old, to int32) error {
	ctx, cancel := context.WithTimeout(ctx, 2*recovers)
	defer cancel()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"moving its replicas", func(ctx context.Context) error { return r.reassign(ctx, old, to) }},
		{"removing it", func(ctx context.Context) error { return r.unregister(ctx, old) }},
		{"giving its vote away", func(ctx context.Context) error { return r.mayNotVote(ctx, old) }},
	} {
		for {
			one, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := step.do(one)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("node %d takes the place of node %d: %s: %w", to, old, step.what, err)
			}
			rest(ctx, 200*time.Millisecond)
		}
	}
	return nil
}

// reassign asks for what is not under way yet. It fails as long as a partition still names the old node or is being moved.
func (r *run) reassign(ctx context.Context, old, to int32) error {
	details, err := r.admin.ListTopicsWithInternal(ctx)
	if err != nil {
		return err
	}
	moving, err := r.admin.ListPartitionReassignments(ctx, details.TopicsSet())
	if err != nil {
		return err
	}
	left := 0
	req := kadm.AlterPartitionAssignmentsReq{}
	details.EachPartition(func(p kadm.PartitionDetail) {
		if _, ok := moving[p.Topic][p.Partition]; ok {
			left++
			return
		}
		if i := slices.Index(p.Replicas, old); i >= 0 {
			left++
			replicas := slices.Clone(p.Replicas)
			replicas[i] = to
			req.Assign(p.Topic, p.Partition, replicas)
		}
	})
	if left == 0 {
		return nil
	}
	if len(req) > 0 {
		res, err := r.admin.AlterPartitionAssignments(ctx, req)
		if err != nil {
			return err
		}
		for _, parts := range res {
			for _, p := range parts {
				if p.Err != nil { // of a topic that is being deleted, perhaps: the next look tells
					err = fmt.Errorf("%s-%d: %w", p.Topic, p.Partition, p.Err)
					continue
				}
				r.moved++
			}
		}
		return errors.Join(fmt.Errorf("%d partitions are still to be moved", left), err)
	}
	return fmt.Errorf("%d partitions are still being moved", left)
}

// unregister takes a node out of the cluster for good.
func (r *run) unregister(ctx context.Context, id int32) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...), kgo.DialTimeout(2*time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()
	req := kmsg.NewPtrUnregisterBrokerRequest()
	req.BrokerID = id
	res, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(res.ErrorCode); err != nil && !errors.Is(err, kerr.BrokerIDNotRegistered) { // an answer was lost
		return fmt.Errorf("%w: %s", err, deref(res.ErrorMessage))
	}
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// mayNotVote fails as long as a node is a voter on the metadata.
func (r *run) mayNotVote(ctx context.Context, id int32) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...), kgo.DialTimeout(2*time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()
	req := kmsg.NewPtrDescribeQuorumRequest()
	part := kmsg.NewDescribeQuorumRequestTopicPartition()
	topic := kmsg.NewDescribeQuorumRequestTopic()
	topic.Topic, topic.Partitions = "__cluster_metadata", append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	if res.ErrorCode != 0 || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 || res.Topics[0].Partitions[0].ErrorCode != 0 {
		return fmt.Errorf("the quorum can't be described: %+v", res)
	}
	voters := res.Topics[0].Partitions[0].CurrentVoters
	for _, v := range voters {
		if v.ReplicaID == id {
			return fmt.Errorf("node %d still votes on the metadata: %v", id, voters)
		}
	}
	return nil
}

// topicDirs names, for each partition, the disks of all its replicas that are not lost.
func (r *run) topicDirs(ctx context.Context) (map[oracle.TP][]string, error) {
	details, err := r.admin.ListTopics(ctx, topics...)
	if err != nil {
		return nil, err
	}
	out := map[oracle.TP][]string{}
	details.EachPartition(func(p kadm.PartitionDetail) {
		for _, id := range p.Replicas {
			for _, m := range r.machines {
				if m.node.ID == int(id) {
					tp := oracle.TP{Topic: p.Topic, Partition: p.Partition}
					out[tp] = append(out[tp], m.node.Dir)
				}
			}
		}
	})
	for tp, dirs := range out {
		if len(dirs) != 3 {
			return nil, fmt.Errorf("%v has %d copies, not 3", tp, len(dirs))
		}
	}
	if len(out) != len(topics)*partitions {
		return nil, fmt.Errorf("%d partitions, not %d", len(out), len(topics)*partitions)
	}
	return out, nil
}

// watchMemory samples the processes' memory until ctx ends.
func (r *run) watchMemory(ctx context.Context) {
	for ctx.Err() == nil {
		for pid := range r.processes() {
			if u, err := harness.UsageOf(pid); err == nil { // else it has just ended
				r.mu.Lock()
				r.peakRSS = max(r.peakRSS, u.PeakRSS)
				r.mu.Unlock()
			}
		}
		rest(ctx, 300*time.Millisecond)
	}
}

// awaitMetric waits for a line of a node's metrics.
func (r *run) awaitMetric(ctx context.Context, m *machine, line string) error {
	ctx, cancel := context.WithTimeout(ctx, recovers)
	defer cancel()
	for {
		text, err := metrics(ctx, m)
		if err == nil && strings.Contains(text, "\n"+line+"\n") {
			return nil
		}
		if ctx.Err() != nil || !m.node.Running() {
			return fmt.Errorf("node %d: no metric %q: %w\n%s", m.node.ID, line, errors.Join(err, ctx.Err()), m.node.Tail())
		}
		rest(ctx, 100*time.Millisecond)
	}
}

func metrics(ctx context.Context, m *machine) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.admin+"/metrics", nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// stop ends everything that start has begun.
func (r *run) stop() {
	for _, m := range r.machines {
		if m.node != nil {
			m.node.Kill()
		}
	}
	if r.admin != nil {
		r.admin.Close()
	}
	if r.network != nil {
		r.network.close()
	}
	for _, m := range r.machines {
		if m.mounted && !r.t.Failed() {
			if err := unmountDisk(filepath.Join(r.dir, m.name)); err != nil {
				r.t.Error(err)
			}
		}
	}
}

// side makes topics and deletes them while things go wrong; every third stays. It returns what must be there in the end and what must not.
// Each is asked for once, and counts if that was answered: of two requests one may arrive when the topic has been deleted, and make it anew.
func (r *run) side(ctx context.Context) (stays, gone []string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...), kgo.MetadataMinAge(50*time.Millisecond), kgo.DialTimeout(2*time.Second), kgo.RequestRetries(0))
	if err != nil {
		r.t.Error(err)
		return nil, nil
	}
	defer cl.Close()
	admin := kadm.NewClient(cl)
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("side-%d", i)
		one, cancel := context.WithTimeout(ctx, 20*time.Second)
		res, err := admin.CreateTopic(one, 3, 3, nil, name)
		cancel()
		made := errors.Join(err, res.Err) == nil
		switch {
		case made && i%3 == 0:
			stays = append(stays, name)
		case made && r.ask(ctx, func(ctx context.Context) error {
			res, err := r.admin.DeleteTopic(ctx, name)
			return errors.Join(err, res.Err)
		}, kerr.UnknownTopicOrPartition):
			gone = append(gone, name)
		}
		rest(ctx, time.Second)
	}
	return stays, gone
}

// ask asks once more if the first answer was lost: then already counts as done, the error that says so.
func (r *run) ask(ctx context.Context, f func(context.Context) error, already error) bool {
	for range 3 {
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := f(one)
		cancel()
		if err == nil || errors.Is(err, already) {
			return true
		}
		rest(ctx, 200*time.Millisecond)
	}
	return false
}

// checkSide holds the topics made and deleted on the side to what was answered.
func (r *run) checkSide(ctx context.Context, stays, gone []string) error {
	details, err := r.admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	var bad []error
	for _, name := range stays {
		if !details.Has(name) || len(details[name].Partitions) != 3 {
			bad = append(bad, fmt.Errorf("topic %s was made, and is not there: %v", name, slices.Collect(maps.Keys(details))))
		}
	}
	for _, name := range gone {
		if details.Has(name) {
			bad = append(bad, fmt.Errorf("topic %s was deleted, and is there", name))
		}
	}
	for len(bad) == 0 {
		var left []string
		for _, m := range r.machines {
			for _, name := range gone {
				if path := filepath.Join(m.node.Dir, "topics", name); exists(path) {
					left = append(left, path)
				}
			}
		}
		if len(left) == 0 {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("files of deleted topics: %v", left)
		}
		rest(ctx, 100*time.Millisecond)
	}
	return errors.Join(bad...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
