package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// IncrementalAlterConfigs (key 44), 0–1. KIP-339.
//
// v1  flexible
//
// Each resource is changed whole or not at all. SET to null is a bad request (42), APPEND or SUBTRACT of what is no list a bad
// config (40). The answer comes when every live node shows the change, or
// shortly after.

func handleIncrementalAlterConfigs(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.IncrementalAlterConfigsRequest)
	resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	changes := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		in := &req.Resources[i]
		a := &changes[i]
		a.kind, a.name = in.ResourceType, in.ResourceName
		for _, c := range in.Configs {
			a.edits = append(a.edits, controller.ConfigEdit{Op: controller.ConfigOp(c.Op), Key: c.Name, Value: c.Value})
		}
	}
	errs := b.alterConfigs(ctx, changes, req.ValidateOnly)
	for i, err := range errs {
		out := kmsg.NewIncrementalAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = changes[i].kind, changes[i].name
		out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}

// alteration is one resource's share of a request that alters configs, incremental or legacy.
type alteration struct {
	kind    kmsg.ConfigResourceType
	name    string
	edits   []controller.ConfigEdit
	replace bool
}

// alterConfigs carries alterations out and returns an error, or nil, for each.
func (b *Broker) alterConfigs(ctx context.Context, changes []alteration, validateOnly bool) []error {
	ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, b.cfg.RequestTimeout)
	defer cancel()
	type resource struct {
		kind kmsg.ConfigResourceType
		name string
	}
	count := make(map[resource]int, len(changes))
	for _, a := range changes {
		count[resource{a.kind, a.name}]++
	}
	img := b.cfg.Cluster.Image()
	errs := make([]error, len(changes))
	var ask []controller.ConfigChange
	var at []int
	for i, a := range changes {
		if count[resource{a.kind, a.name}] > 1 {
			errs[i] = coded(kerr.InvalidRequest, "Each resource must appear at most once.")
			continue
		}
		if errs[i] = b.checkAlteration(img, a); errs[i] != nil {
			continue
		}
		ask = append(ask, controller.ConfigChange{Resource: controller.Resource{Type: controller.ResourceType(a.kind), Name: a.name}, Edits: a.edits, Replace: a.replace})
		at = append(at, i)
	}
	if len(ask) == 0 {
		return errs
	}
	results := b.cfg.Controller.AlterConfigs(ctx, ask, validateOnly)
	var index uint64
	for i, slot := range at {
		if i >= len(results) {
			errs[slot] = errShortResult
			continue
		}
		if errs[slot] = results[i].Err; errs[slot] == nil {
			index = max(index, results[i].Index)
		}
	}
	if !validateOnly && index > 0 {
		ctx, cancel := clock.WithTimeout(ctx, b.cfg.Clock, configsVisible)
		defer cancel()
		b.awaitImages(ctx, index)
	}
	return errs
}

// checkAlteration refuses what can't be right, with the error that Kafka gives. It decides from this node's image, which may trail: what it can't know (a topic made a moment ago elsewhere) is left to
// the controller, which checks everything again.
func (b *Broker) checkAlteration(img *metadata.Image, a alteration) error {
	keys := make(map[string]bool, len(a.edits))
	ops := make([]config.Op, len(a.edits))
	for i, e := range a.edits {
		if keys[e.Key] {
			return coded(kerr.InvalidRequest, "Error due to duplicate config keys")
		}
		keys[e.Key] = true
		ops[i] = config.Op{Kind: config.OpKind(e.Op), Name: e.Key, Value: e.Value}
	}
	layers := b.configLayers(img)
	var err error
	switch a.kind {
	case kmsg.ConfigResourceTypeTopic:
		if a.name == "" {
			return coded(kerr.InvalidRequest, "The topic's name must not be empty.")
		}
		if a.name == metadata.MetadataTopic {
			return coded(kerr.UnknownTopicOrPartition, "")
		}
		_, err = config.AlterTopic(a.base(currentConfigs(img, a)), ops, layers)
	case kmsg.ConfigResourceTypeBroker:
		if a.name != "" {
			id, e := strconv.ParseInt(a.name, 10, 32)
			if e != nil || id < 0 {
				return coded(kerr.InvalidRequest, fmt.Sprintf("Broker id must be an integer, but it is: %.64q", a.name))
			}
			if img.Nodes[int32(id)] == nil {
				return coded(kerr.InvalidRequest, fmt.Sprintf("There is no broker %d in the cluster", id))
			}
		}
		_, err = config.AlterBroker(a.base(currentConfigs(img, a)), ops, layers)
		if errors.Is(err, config.ErrInvalidValue) {
			return coded(kerr.InvalidRequest, err.Error()) // Kafka's code for a broker; a topic's is INVALID_CONFIG
		}
	case kmsg.ConfigResourceTypeGroupConfig:
		if a.name == "" {
			return errGroupWithoutName
		}
		_, err = config.AlterGroup(a.base(currentConfigs(img, a)), ops, layers)
	default:
		return unsupportedResource(a.kind)
	}
	return configError(err)
}

// base is what edits start from.
func (a alteration) base(now map[string]string) map[string]string {
	if a.replace {
		return nil
	}
	return now
}

// currentConfigs returns what is set on a resource, as the image has it; nil if it has nothing or is not known.
func currentConfigs(img *metadata.Image, a alteration) map[string]string {
	if a.kind == kmsg.ConfigResourceTypeTopic {
		if t := img.Topics[a.name]; t != nil {
			return t.Configs
		}
		return nil
	}
	if a.kind == kmsg.ConfigResourceTypeGroupConfig {
		return img.GroupConfigs[a.name]
	}
	id := int64(-1)
	if a.name != "" {
		id, _ = strconv.ParseInt(a.name, 10, 32) // was checked
	}
	return img.BrokerConfigs[int32(id)]
}

// configsVisible bounds the wait for a change to show on every live node. It is carried out by then, and the request says
// nothing of how long its client waits.
const configsVisible = 5 * time.Second
