package broker

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/group"
)

// What the APIs of groups share: finding the coordinator, and waiting for it.

// OffsetsTopic is how __consumer_offsets is created: with so many partitions and replicas. ok is false while the cluster has
// not got the nodes for them.
type OffsetsTopic func() (partitions int32, replicas int16, configs map[string]string, ok bool)

// wait calls start and waits until it has called done, within bound. Whoever is connected to a node that stops looks for the
// next coordinator.
func wait[T any](b *Broker, ctx context.Context, bound time.Duration, start func(done func(T, error))) (T, error) {
	o := &promise[T]{}
	start(o.keep)
	return o.await(b, ctx, bound)
}

// promise is what a coordinator will say. Most of the time it has said it before somebody waits, and no timer is needed.
type promise[T any] struct {
	mu    sync.Mutex
	kept  bool
	value T
	err   error
	ended chan struct{} // of who waits; nil: nobody
}

func (o *promise[T]) keep(v T, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept, o.value, o.err = true, v, err
	if o.ended != nil {
		close(o.ended)
	}
}

func (o *promise[T]) await(b *Broker, ctx context.Context, bound time.Duration) (T, error) {
	o.mu.Lock()
	if o.kept {
		defer o.mu.Unlock()
		return o.value, o.err
	}
	ended := make(chan struct{})
	o.ended = ended
	o.mu.Unlock()
	expired, stop := clock.After(b.cfg.Clock, bound)
	defer stop()
	var none T
	switch clock.Select(b.cfg.Clock, ended, b.draining.ch, expired, ctx.Done()) {
	case 0:
		return o.value, o.err
	case 1:
		return none, group.ErrNotCoordinator
	}
	return none, group.ErrNotAvailable
}

// coordinator says who answers for a group on behalf of a client: this node (-1), or in one-address mode the node that
// coordinates it.
func (b *Broker) coordinator(rc *RequestContext, id string) (node int32, err error) {
	if b.cfg.Groups == nil {
		return -1, group.ErrNotAvailable
	}
	if !rc.Mode.OneAddress || rc.FromPeer {
		return -1, nil
	}
	img := b.cfg.Cluster.Image()
	t := img.Topics[group.Topic]
	if t == nil || len(t.Partitions) == 0 {
		return -1, group.ErrNotCoordinator
	}
	p := t.Partitions[group.PartitionOf(id, int32(len(t.Partitions)))]
	switch node, _ := b.cfg.Cluster.Leader(p.Group); {
	case node == b.cfg.Cluster.NodeID():
		return -1, nil
	case node < 0:
		return -1, group.ErrNotAvailable
	default:
		return node, nil
	}
}

// maxProxied bounds the requests of groups that wait at other nodes on behalf of this one's clients: joins, most of them.
const maxProxied = 4096

// askCoordinator has another node answer a client's request. err is for the client.
func (b *Broker) askCoordinator(ctx context.Context, rc *RequestContext, node int32, bound time.Duration, req kmsg.Request) (kmsg.Response, error) {
	if b.proxied.Add(1) > maxProxied {
		b.proxied.Add(-1)
		return nil, group.ErrNotAvailable
	}
	defer b.proxied.Add(-1)
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, bound)
	g := clock.Group{Clock: b.cfg.Clock}
	defer func() { cancel(); g.Wait() }()
	resp, err := wait(b, ctx, bound, func(done func(kmsg.Response, error)) {
		g.Go(func() { done(b.askPeerAs(ctx, rc, node, req)) })
	})
	if err != nil {
		b.log.Debug("a group's coordinator did not answer", "node", node, "key", rc.Key, "error", err)
		return nil, group.ErrNotCoordinator // the client asks who is now, and comes again
	}
	return resp, nil
}

// eachGroup calls f for every group of a request, some at a time.
func (b *Broker) eachGroup(ids []string, f func(i int, id string)) {
	var work []func()
	for i, id := range ids {
		work = append(work, func() { f(i, id) })
	}
	inParallel(b.cfg.Clock, work, lookups)
}

// namedOnce lists ids, each once however often it is named: there is one answer for what is asked twice.
func namedOnce(ids []string) []string {
	seen := make(map[string]bool, len(ids))
	out := make([]string, 0, len(ids))
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}

// fromCoordinator has a group's coordinator answer for it, if that is another node: ask is a request for this group alone, and groups
// takes the answer apart. answered is false where the group is for this node to answer for, unless there is an error.
func fromCoordinator[G any](b *Broker, ctx context.Context, rc *RequestContext, id string, ask kmsg.Request, groups func(kmsg.Response) []G) (out G, answered bool, err error) {
	node, err := b.coordinator(rc, id)
	if err != nil || node < 0 {
		return out, false, err
	}
	ask.SetVersion(rc.Version)
	answer, err := b.askCoordinator(ctx, rc, node, b.cfg.RequestTimeout, ask)
	if err != nil {
		return out, false, err
	}
	got := groups(answer)
	if len(got) != 1 {
		return out, false, kerr.UnknownServerError
	}
	return got[0], true, nil
}

// undescribed is what a description of a group says of an error.
func (b *Broker) undescribed(rc *RequestContext, err error) (code int16, message *string) {
	if code, message = b.refusal(rc, err); code != kerr.GroupIDNotFound.Code {
		message = nil // that is the only error that has one, as in Kafka
	}
	return code, message
}

// askPeerAs is askPeer, and tells the node who the client is.
func (b *Broker) askPeerAs(ctx context.Context, rc *RequestContext, node int32, req kmsg.Request) (kmsg.Response, error) {
	body := appendText(nil, clientID(rc))
	body = appendText(body, clientHost(rc))
	return b.call(ctx, node, MethodRequestAs, body, req)
}

// takeClient is what askPeerAs put before the request.
func takeClient(rc *RequestContext, body []byte) ([]byte, error) {
	id, body, err := takeText(body)
	if err != nil {
		return nil, err
	}
	rc.ClientID = &id
	rc.client, body, err = takeText(body)
	return body, err
}

func clientID(rc *RequestContext) string {
	if rc.ClientID == nil {
		return ""
	}
	return *rc.ClientID
}

// clientHost is the client's address as Kafka tells it.
func clientHost(rc *RequestContext) string {
	if rc.client != "" || rc.Remote == nil {
		return rc.client
	}
	host, _, err := net.SplitHostPort(rc.Remote.String())
	if err != nil {
		host = rc.Remote.String()
	}
	return "/" + host
}

// ensureOffsetsTopic creates __consumer_offsets if it is missing.
func (b *Broker) ensureOffsetsTopic(ctx context.Context) error {
	if b.cfg.Groups == nil || b.cfg.OffsetsTopic == nil {
		return coded(kerr.CoordinatorNotAvailable, "this node serves no groups")
	}
	if b.cfg.Cluster.Image().Topics[group.Topic] != nil {
		return nil
	}
	partitions, replicas, configs, ok := b.cfg.OffsetsTopic()
	if !ok {
		return coded(kerr.CoordinatorNotAvailable, "the cluster has not got the nodes for "+group.Topic+" yet")
	}
	ask := []controller.NewTopic{{Name: group.Topic, Partitions: partitions, ReplicationFactor: replicas, Configs: configs}}
	_, err := resultAt(b.cfg.Controller.CreateTopics(ctx, ask, false), 0)
	if err != nil && ErrorOf(err) != kerr.TopicAlreadyExists {
		b.log.Warn("the topic of groups could not be created; clients are told to try again", "topic", group.Topic, "error", err)
		return coded(kerr.CoordinatorNotAvailable, err.Error())
	}
	_ = b.cfg.Cluster.Await(ctx, func() bool { return b.cfg.Cluster.Image().Topics[group.Topic] != nil })
	return nil
}

// nullSince is a string's nullable form for versions that have null; below them it is empty.
func nullSince(rc *RequestContext, since int16, s string) *string {
	if rc.Version >= since && s == "" {
		return nil
	}
	return &s
}

// groupOperations are all that can be done to a group, as authorized_operations has it.
const groupOperations = 1<<3 | 1<<6 | 1<<8 | 1<<10 | 1<<11 // read, delete, describe, describe and alter configs
