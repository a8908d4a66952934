package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
)

// DescribeConfigs (key 32), 1–4. KIP-133, KIP-226, KIP-569.
//
// v1  sources and synonyms
// v3  types and documentation
// v4  flexible
//
// A broker's configs are answered by that broker alone; the broker named "" has what was set for all at run time. A null or
// empty list of names means all; names that do not exist are left out. A group has configs whether or not it exists.

// describedBytes is what the configs of one resource take in an answer, with synonyms and documentation.
const describedBytes = 16 << 10

func handleDescribeConfigs(b *Broker, ctx context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeConfigsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	img := b.cfg.Cluster.Image()
	if err := b.reserve(ctx, rc, min(int64(len(req.Resources))*describedBytes, int64(b.cfg.MaxAnswerBytes))); err != nil {
		return nil, err
	}
	size := int64(0)
	for i := range req.Resources {
		in := &req.Resources[i]
		out := kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = in.ResourceType, in.ResourceName
		entries, err := b.describeConfigs(img, in)
		if err != nil {
			out.ErrorCode, out.ErrorMessage = b.refusal(rc, err)
		} else {
			out.ErrorMessage = kmsg.StringPtr("") // not null, as Kafka's
		}
		for _, e := range entries {
			c := describedConfig(e, in.ResourceType, req)
			out.Configs, size = append(out.Configs, c), size+configBytes(&c)
		}
		if err := b.mayAnswer(rc, size); err != nil {
			return nil, err
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}

// configBytes is about what a config takes in an answer, decoded and encoded.
func configBytes(c *kmsg.DescribeConfigsResponseResourceConfig) int64 {
	n := 200 + len(c.Name)
	for _, s := range []*string{c.Value, c.Documentation} {
		if s != nil {
			n += len(*s)
		}
	}
	for i := range c.ConfigSynonyms {
		n += 120 + len(c.ConfigSynonyms[i].Name)
		if v := c.ConfigSynonyms[i].Value; v != nil {
			n += len(*v)
		}
	}
	return int64(n)
}

func (b *Broker) describeConfigs(img *metadata.Image, in *kmsg.DescribeConfigsRequestResource) ([]config.Entry, error) {
	layers := b.configLayers(img)
	names := in.ConfigNames
	if len(names) == 0 {
		names = nil
	}
	switch in.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		if err := controller.CheckTopicName(in.ResourceName); err != nil {
			return nil, err
		}
		t := img.Topics[in.ResourceName]
		if t == nil || in.ResourceName == metadata.MetadataTopic {
			return nil, coded(kerr.UnknownTopicOrPartition, "")
		}
		return layers.DescribeTopic(t.Configs, names), nil
	case kmsg.ConfigResourceTypeBroker:
		if in.ResourceName == "" {
			return layers.DescribeClusterDefault(names), nil
		}
		id, err := strconv.ParseInt(in.ResourceName, 10, 32)
		if err != nil {
			return nil, coded(kerr.InvalidRequest, fmt.Sprintf("Broker id must be an integer, but it is: %.64q", in.ResourceName))
		}
		if self := b.cfg.Cluster.NodeID(); int32(id) != self {
			return nil, coded(kerr.InvalidRequest, fmt.Sprintf("Unexpected broker id, expected %d or empty string, but received %d", self, id))
		}
		return layers.DescribeBroker(names), nil
	case kmsg.ConfigResourceTypeGroupConfig:
		if in.ResourceName == "" {
			return nil, errGroupWithoutName
		}
		return layers.DescribeGroup(img.GroupConfigs[in.ResourceName], names), nil
	}
	return nil, unsupportedResource(in.ResourceType)
}

var errGroupWithoutName = coded(kerr.InvalidRequest, "The group's name must not be empty.")

func unsupportedResource(t kmsg.ConfigResourceType) error {
	return coded(kerr.InvalidRequest, fmt.Sprintf("Configs of resource type %d (%s) are not supported; there are those of topics, brokers and groups", int8(t), t))
}

func describedConfig(e config.Entry, t kmsg.ConfigResourceType, req *kmsg.DescribeConfigsRequest) kmsg.DescribeConfigsResponseResourceConfig {
	out := kmsg.NewDescribeConfigsResponseResourceConfig()
	out.Name, out.Value = e.Def.Name, entryValue(e)
	out.ReadOnly = t == kmsg.ConfigResourceTypeBroker && e.Def.ReadOnly
	out.Source = kmsg.ConfigSource(e.Source)
	out.ConfigType = kmsg.ConfigType(e.Def.Type)
	if req.IncludeSynonyms {
		for _, c := range e.Synonyms {
			if c.Source == config.SourceDefault && !shownDefault(e, t, c.Name) {
				continue
			}
			s := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
			s.Name, s.Source = c.Name, kmsg.ConfigSource(c.Source)
			s.Value = &c.Value
			out.ConfigSynonyms = append(out.ConfigSynonyms, s)
		}
	}
	if req.IncludeDocumentation {
		out.Documentation = &e.Def.Doc
	}
	return out
}

// shownDefault says whether a built-in default is listed as a synonym. Kafka lists none of a topic config that no broker config stands
// behind, and that of any but the first broker config behind one only where the first is set.
func shownDefault(e config.Entry, t kmsg.ConfigResourceType, name string) bool {
	if len(e.Def.Synonyms) == 0 {
		return t != kmsg.ConfigResourceTypeTopic
	}
	first := e.Def.Synonyms[0].Name
	return name == first || t == kmsg.ConfigResourceTypeTopic && slices.ContainsFunc(e.Synonyms, func(c config.Candidate) bool { return c.Name == first })
}

func entryValue(e config.Entry) *string {
	if e.Null {
		return nil
	}
	v := e.Value
	return &v
}

// staticConfigs is what a Cluster has that knows this node's own settings, by Kafka's broker config names
// (config.Node.Static). Without it nothing has SourceStatic.
type staticConfigs interface{ StaticConfigs() map[string]string }

// configLayers is what lies between a topic's own configs and the built-in defaults on this node.
func (b *Broker) configLayers(img *metadata.Image) config.Layers {
	l := config.Layers{Broker: img.BrokerConfigs[b.cfg.Cluster.NodeID()], Cluster: img.BrokerConfigs[-1]}
	if s, ok := b.cfg.Cluster.(staticConfigs); ok {
		l.Static = s.StaticConfigs()
	}
	return l
}

// configError gives an error of package config its Kafka code: 42 for what is no sensible request, 40 for a bad config.
func configError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, config.ErrNullValue), errors.Is(err, config.ErrReadOnly):
		return coded(kerr.InvalidRequest, err.Error())
	default:
		return coded(kerr.InvalidConfig, err.Error())
	}
}
