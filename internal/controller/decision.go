package controller

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// decision is a request on its way to an answer: its items are decided in order, in one round or (if they are many) in
// several. It is used by one thread at a time.
type decision struct {
	id  uuid.UUID
	ask *controllerpb.Ask
	n   int
	// next is the first item not decided; final the first whose outcome does not stand yet.
	next, final int
	ans         *controllerpb.Answer
	dups        map[string]bool // items (by key) that the request names twice
}

func newDecision(a *controllerpb.Ask, maxItems int) (*decision, error) {
	id, err := uuid.FromBytes(a.Id)
	if err != nil || id == uuid.Nil {
		return nil, refuse(ErrInvalidRequest, "request id %x", a.Id)
	}
	d := &decision{id: id, ask: a, ans: &controllerpb.Answer{}, dups: map[string]bool{}}
	switch w := a.What.(type) {
	case *controllerpb.Ask_CreateTopics:
		d.n = len(w.CreateTopics.Topics)
		d.findDups(func(i int) string { return w.CreateTopics.Topics[i].Name })
	case *controllerpb.Ask_DeleteTopics:
		d.n = len(w.DeleteTopics.Topics)
		d.findDups(func(i int) string { return deleteKey(w.DeleteTopics.Topics[i]) })
	case *controllerpb.Ask_CreatePartitions:
		d.n = len(w.CreatePartitions.Topics)
		d.findDups(func(i int) string { return w.CreatePartitions.Topics[i].Name })
	case *controllerpb.Ask_AlterConfigs:
		d.n = len(w.AlterConfigs.Changes)
		d.findDups(func(i int) string { return changeKey(w.AlterConfigs.Changes[i]) })
	case *controllerpb.Ask_Reassign:
		d.n = len(w.Reassign.Partitions)
		d.findDups(func(i int) string {
			p := w.Reassign.Partitions[i]
			return partitionKey(p.Topic, p.Partition)
		})
	case *controllerpb.Ask_ProducerIds, *controllerpb.Ask_RegisterNode, *controllerpb.Ask_Replace, *controllerpb.Ask_EndChange,
		*controllerpb.Ask_RemoveNode:
		d.n = 1
	case *controllerpb.Ask_Barrier:
	default:
		return nil, refuse(ErrInvalidRequest, "the leader (an older version of Chronik?) does not know this kind of request")
	}
	if d.n > maxItems {
		return nil, refuse(ErrPolicy, "%d items in one request, at most %d are taken", d.n, maxItems)
	}
	d.ans.Items = make([]*controllerpb.Item, d.n)
	return d, nil
}

func (d *decision) findDups(key func(i int) string) {
	seen := make(map[string]bool, d.n)
	for i := range d.n {
		k := key(i)
		if seen[k] {
			d.dups[k] = true
		}
		seen[k] = true
	}
}

// rollback forgets what was decided since the last commit.
func (d *decision) rollback() {
	clear(d.ans.Items[d.final:d.next])
	d.next = d.final
}

// commit makes what was decided stand: it is visible in the image of index. It reports whether nothing is left to decide.
func (d *decision) commit(index uint64) bool {
	d.final = d.next
	d.ans.Index = index
	return d.final == d.n
}

func (d *decision) answer() *controllerpb.Answer { return d.ans }

// round is one pass of deciding: from one image, into one batch. Its builder has what the round decided so far, carried out
// by the same code that applies it later, so that each request is decided after those before it.
type round struct {
	c     *Controller
	b     *metadata.Builder
	batch *controllerpb.Batch
	bytes int
	// Made when first needed.
	places     *placer
	folded     map[string]string // names as collisions are judged -> name
	partitions int
}

func newRound(c *Controller, img *metadata.Image) *round {
	return &round{c: c, b: metadata.NewBuilder(img), batch: &controllerpb.Batch{BaseIndex: img.Index}, partitions: len(img.Groups)}
}

// full says that the batch has all it should carry.
func (r *round) full() bool { return r.bytes >= r.c.cfg.Limits.CommandBytes }

// take decides as many items of d as the batch has room for, at least one.
func (r *round) take(d *decision) {
	var cmd *controllerpb.Command
	mark, _ := r.b.Request(d.id)
	done := make([]byte, (d.n+7)/8)
	switch w := d.ask.What.(type) {
	case *controllerpb.Ask_CreateTopics:
		cmd = r.createTopics(d, w.CreateTopics.Topics, mark, done)
	case *controllerpb.Ask_DeleteTopics:
		cmd = r.deleteTopics(d, w.DeleteTopics.Topics, mark, done)
	case *controllerpb.Ask_CreatePartitions:
		cmd = r.createPartitions(d, w.CreatePartitions.Topics, mark, done)
	case *controllerpb.Ask_AlterConfigs:
		cmd = r.alterConfigs(d, w.AlterConfigs.Changes, mark, done)
	case *controllerpb.Ask_ProducerIds:
		cmd = r.producerIDs(d, w.ProducerIds.Count)
	case *controllerpb.Ask_RegisterNode:
		cmd = r.registerNode(d, w.RegisterNode)
	case *controllerpb.Ask_Reassign:
		cmd = r.reassign(d, w.Reassign, mark, done)
	case *controllerpb.Ask_Replace:
		cmd = r.replace(d, w.Replace)
	case *controllerpb.Ask_EndChange:
		cmd = r.endChange(d, w.EndChange)
	case *controllerpb.Ask_RemoveNode:
		cmd = r.removeNode(d, w.RemoveNode.Node)
	case *controllerpb.Ask_Barrier:
	}
	if cmd == nil || d.ask.ValidateOnly {
		return
	}
	if slices.ContainsFunc(done, func(b byte) bool { return b != 0 }) {
		cmd.Request, cmd.Done = d.id[:], done
	}
	refusal, damage := applyCommand(r.b, cmd)
	if refusal != nil || damage != nil {
		// The command would be refused by every replica as well: deciding and applying disagree, which is a defect. Nothing
		// is proposed of it.
		r.c.log.Error("a decided metadata command does not apply", "refusal", refusal, "error", damage)
		e := refuse(ErrInvalidRequest, "the request was decided and does not apply: %v", firstError(refusal, damage))
		for i := d.final; i < d.next; i++ {
			if d.ans.Items[i].Error == nil {
				d.ans.Items[i].Error = e.proto()
			}
		}
		return
	}
	r.batch.Commands = append(r.batch.Commands, cmd)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// each decides d's items in order until the batch is full. fn returns the item's answer, and whether a change of so many
// bytes is put into the command for it.
func (r *round) each(d *decision, mark metadata.RequestMark, done []byte, fn func(i int, already bool) (item *controllerpb.Item, bytes int, err *Error)) {
	for first := true; d.next < d.n && (first || !r.full()); first = false {
		i := d.next
		item, bytes, err := fn(i, mark.Has(i))
		if item == nil {
			item = &controllerpb.Item{}
		}
		item.Error = err.proto()
		d.ans.Items[i] = item
		if bytes > 0 {
			r.bytes += bytes
			done[i/8] |= 1 << (i % 8)
		}
		d.next++
	}
}

func (r *round) producerIDs(d *decision, n int64) *controllerpb.Command {
	d.next = 1
	item := &controllerpb.Item{}
	d.ans.Items[0] = item
	first := r.b.NextProducerID()
	switch {
	case n <= 0 || n > 1<<20:
		item.Error = refuse(ErrInvalidRequest, "%d producer ids asked for, 1 to %d are handed out at a time", n, 1<<20).proto()
		return nil
	case first > math.MaxInt64-n:
		item.Error = refuse(ErrPolicy, "no producer ids are left").proto()
		return nil
	}
	d.ans.FirstProducerId = first
	r.bytes += 32
	return &controllerpb.Command{Op: &controllerpb.Command_AllocateProducerIds{
		AllocateProducerIds: &controllerpb.AllocateProducerIDs{First: first, Count: n}}}
}

func (r *round) registerNode(d *decision, pn *controllerpb.Node) *controllerpb.Command {
	d.next = 1
	item := &controllerpb.Item{}
	d.ans.Items[0] = item
	n, err := nodeFromProto(pn)
	if err != nil {
		item.Error = refuse(ErrInvalidRequest, "%v", err).proto()
		return nil
	}
	if e := checkNode(n); e != nil {
		item.Error = e.proto()
		return nil
	}
	old := r.b.Node(n.ID)
	if old != nil {
		if e, ok := sameIdentity(old, n).(*Error); ok {
			item.Error = e.proto()
			return nil
		}
		n.MetadataReplica, n.Voter = old.MetadataReplica, old.Voter
	} else {
		if e, ok := notRetired(r.b, n).(*Error); ok {
			item.Error = e.proto()
			return nil
		}
		n.MetadataReplica, n.Voter = r.b.NextReplica(), false
	}
	d.ans.Node, d.ans.ClusterId = nodeProto(n), r.b.ClusterID()
	members := map[int32]*metadata.Node{n.ID: n}
	r.b.EachNode(func(m *metadata.Node) {
		if m.ID != n.ID {
			members[m.ID] = m
		}
	})
	d.ans.Members = nil
	for _, id := range slices.Sorted(maps.Keys(members)) {
		d.ans.Members = append(d.ans.Members, nodeProto(members[id]))
	}
	if old != nil && *old == *n {
		return nil
	}
	cmd := &controllerpb.Command{Op: &controllerpb.Command_RegisterNode{RegisterNode: &controllerpb.RegisterNode{Node: d.ans.Node}}}
	r.bytes += proto.Size(cmd)
	r.places = nil // it counts the nodes
	return cmd
}

func checkNode(n *metadata.Node) *Error {
	switch {
	case n.KafkaHost == "" || len(n.KafkaHost) > 253:
		return refuse(ErrInvalidRequest, "node %d: %q is no host for clients to connect to", n.ID, n.KafkaHost)
	case n.KafkaPort < 1 || n.KafkaPort > 65535:
		return refuse(ErrInvalidRequest, "node %d: %d is no port for clients to connect to", n.ID, n.KafkaPort)
	case len(n.RaftAddr) > 300 || len(n.Rack) > 255:
		return refuse(ErrInvalidRequest, "node %d: address or rack too long", n.ID)
	}
	return nil
}

// derivedID makes a topic's id out of the request that creates it: the same request asked again comes to the same id.
func derivedID(request uuid.UUID, topic string) uuid.UUID {
	return uuid.NewSHA1(request, []byte(topic))
}

func describe(t *metadata.Topic) *controllerpb.Item {
	return &controllerpb.Item{Name: t.Name, Id: t.ID[:], Partitions: int32(len(t.Partitions)), ReplicationFactor: int32(len(t.Partitions[0].Target()))}
}

func itemf(name string) *controllerpb.Item { return &controllerpb.Item{Name: name} }

func deleteKey(k *controllerpb.AskDeleteTopics_Key) string {
	if len(k.Id) > 0 {
		return fmt.Sprintf("%x", k.Id)
	}
	return "/" + k.Name
}

func changeKey(c *controllerpb.AskAlterConfigs_Change) string {
	return fmt.Sprintf("%d/%s", c.Type, c.Resource)
}
