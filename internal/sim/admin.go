package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// admin is a client that makes the topics that stay, then topics that come and go, and configures.
type admin struct {
	*client
	history history
}

// passing is how many names the topics that come and go have: few, so that they are used again and again.
const passing = 3

const passingPrefix = "passing"

// comesAndGoes says whether a topic is one of those: what has its name now may be another than what had it before.
func comesAndGoes(topic string) bool { return strings.HasPrefix(topic, passingPrefix) }

func (w *world) newClients() {
	w.admin = &admin{}
	w.admin.client = w.newClient("admin", func(*client) { w.admin.run() })
	n := 0
	for i, parts := range w.set.topics {
		for k := range parts {
			part := w.model.addPart(i, int32(k))
			for range w.set.consumers {
				w.newConsumer(part)
			}
			if part.kept != nil {
				w.newAuditor(part)
			}
			if w.set.deletes && w.set.compacted[i] != "compact" { // which refuses it
				d := &deleter{part: part}
				d.client = w.newClient("deleter", func(*client) { d.run() })
			}
			n++
		}
	}
	for i := range max(w.set.producers, n) {
		part := w.model.parts[i%n]
		w.newProducer(part, i < n || part.kept != nil || w.rng.Float64() < w.set.idempotent, -1)
	}
	w.newGroups()
	if w.set.admin {
		for range 2 {
			b := &bystander{}
			b.client = w.newClient("bystander", func(*client) { b.run() })
		}
	}
}

func (a *admin) run() {
	for i, parts := range a.w.set.topics {
		for !a.w.made[i] {
			code, err := a.createWith(topicName(i), int32(parts), a.w.set.replication, a.w.topicConfigs(i))
			if err == nil && (code == nil || code == kerr.TopicAlreadyExists) {
				a.w.made[i] = true
				a.w.log("topic %s is made", topicName(i))
				break
			}
			a.sleep(a.between(5*ms, 100*ms))
		}
	}
}

// create asks any node for a topic, with all its replicas on the nodes named, if any. An error means that nobody knows; so does the code for a timeout.
func (c *client) create(name string, partitions int32, replication int16, on ...int32) (*kerr.Error, error) {
	return c.createWith(name, partitions, replication, nil, on...)
}

// createWith is create for a topic with configurations: names and values in turn.
func (c *client) createWith(name string, partitions int32, replication int16, configs []string, on ...int32) (*kerr.Error, error) {
	k := c.anyNode()
	if k == nil {
		return nil, errRefused
	}
	defer k.close(errReset)
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(7)
	req.TimeoutMillis = int32(requestTimeout / time.Millisecond)
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, replication
	for i := 0; i < len(configs); i += 2 {
		tc := kmsg.NewCreateTopicsRequestTopicConfig()
		tc.Name, tc.Value = configs[i], &configs[i+1]
		t.Configs = append(t.Configs, tc)
	}
	if len(on) > 0 {
		t.NumPartitions, t.ReplicationFactor = -1, -1
		for i := range partitions {
			a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
			a.Partition, a.Replicas = i, on
			t.ReplicaAssignment = append(t.ReplicaAssignment, a)
		}
	}
	req.Topics = append(req.Topics, t)
	resp, err := k.ask(req, nil)
	if err != nil {
		return nil, err
	}
	code := typed(resp.(*kmsg.CreateTopicsResponse).Topics[0].ErrorCode)
	c.w.counts["create topic: "+text(code)]++
	return code, nil
}

func typed(code int16) *kerr.Error { return kerr.TypedErrorForCode(code) }

func text(e *kerr.Error) string {
	if e == nil {
		return "done"
	}
	return e.Message
}

func (c *client) remove(name string) (*kerr.Error, error) {
	k := c.anyNode()
	if k == nil {
		return nil, errRefused
	}
	defer k.close(errReset)
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.SetVersion(6)
	req.TimeoutMillis = int32(requestTimeout / time.Millisecond)
	t := kmsg.NewDeleteTopicsRequestTopic()
	t.Topic = &name
	req.Topics = append(req.Topics, t)
	resp, err := k.ask(req, nil)
	if err != nil {
		return nil, err
	}
	code := typed(resp.(*kmsg.DeleteTopicsResponse).Topics[0].ErrorCode)
	c.w.counts["delete topic: "+text(code)]++
	return code, nil
}

// configure sets a topic's retention.ms, which nothing in here acts on.
func (c *client) configure(name string, value int) (*kerr.Error, error) {
	k := c.anyNode()
	if k == nil {
		return nil, errRefused
	}
	defer k.close(errReset)
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.SetVersion(1)
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, name
	v := strconv.Itoa(value)
	rc := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	rc.Name, rc.Value = "retention.ms", &v
	r.Configs = append(r.Configs, rc)
	req.Resources = append(req.Resources, r)
	resp, err := k.ask(req, nil)
	if err != nil {
		return nil, err
	}
	code := typed(resp.(*kmsg.IncrementalAlterConfigsResponse).Resources[0].ErrorCode)
	c.w.counts["alter config: "+text(code)]++
	return code, nil
}

// bystander makes topics, deletes them, and configures them, beside others who do the same.
type bystander struct{ *client }

func (b *bystander) run() {
	w := b.w
	for {
		b.sleep(b.between(50*ms, 800*ms))
		if w.ending {
			return
		}
		name := fmt.Sprintf(passingPrefix+"%d", b.rng.IntN(passing))
		var op *metaOp
		var code *kerr.Error
		var err error
		h := &w.admin.history
		switch b.rng.IntN(5) {
		case 0, 1:
			op = h.begin(name, opCreate, 0)
			code, err = b.create(name, int32(1+b.rng.IntN(2)), min(w.set.replication, 3))
		case 2, 3:
			op = h.begin(name, opDelete, 0)
			code, err = b.remove(name)
		default:
			op = h.begin(name, opConfigure, 1_000_000+b.rng.IntN(1_000_000))
			code, err = b.configure(name, op.value)
		}
		h.end(w, op, code, err)
	}
}

// deleter moves a partition's log start now and then.
type deleter struct {
	*client
	part *partModel
}

func (d *deleter) run() {
	w := d.w
	for {
		d.sleep(d.between(200*ms, 2*time.Second))
		if w.healed {
			return
		}
		if w.made[d.part.topicIndex] && d.part.acked > 0 {
			d.delete(d.rng.Int64N(d.part.acked) + 1)
		}
	}
}

func (d *deleter) delete(to int64) {
	w := d.w
	k := w.dial(d.client, max(d.findLeader(d.part), 1))
	if k == nil {
		return
	}
	defer k.close(errReset)
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.SetVersion(2)
	req.TimeoutMillis = int32(requestTimeout / time.Millisecond)
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = d.part.topic
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = d.part.index, to
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	d.part.asked = max(d.part.asked, to)
	w.log("%s: delete records below %d", d.part, to)
	resp, err := k.ask(req, nil)
	if err != nil {
		return
	}
	r := resp.(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0]
	w.counts["delete records: "+text(typed(r.ErrorCode))]++
	if r.ErrorCode != 0 {
		return
	}
	w.counts["log start moved"]++
	if r.LowWatermark < to {
		w.fail("%s: records below %d deleted, and the log starts at %d", d.part, to, r.LowWatermark)
	}
}
