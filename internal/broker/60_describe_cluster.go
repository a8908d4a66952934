package broker

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

// DescribeCluster (key 60), 0–2. KIP-700.
//
// v1  endpoint type (KIP-919): 1 asks for brokers; 2, controllers, is for an endpoint that does not exist here
// v2  fenced brokers on request (KIP-1073)
//
// In one-address mode this node is the whole cluster, as in Metadata.

func handleDescribeCluster(b *Broker, _ context.Context, rc *RequestContext, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeClusterRequest)
	resp := req.ResponseKind().(*kmsg.DescribeClusterResponse)
	resp.EndpointType = req.EndpointType
	switch {
	case rc.Version < 1 || req.EndpointType == 1:
		resp.EndpointType = 1
	case req.EndpointType == 2:
		return b.failDescribeCluster(rc, resp, coded(kerr.MismatchedEndpointType, "The request was sent to an endpoint of the wrong type: this one is for brokers, and there is none for controllers."))
	default:
		return b.failDescribeCluster(rc, resp, coded(kerr.UnsupportedEndpointType, "Unsupported endpoint type."))
	}
	img := b.cfg.Cluster.Image()
	resp.ClusterID = img.ClusterID
	resp.ControllerID = b.adminController(img, rc.Mode)
	if req.IncludeClusterAuthorizedOperations {
		resp.ClusterAuthorizedOperations = clusterOperations
	}
	if rc.Mode.OneAddress {
		self := kmsg.NewDescribeClusterResponseBroker()
		self.NodeID, self.Host, self.Port = b.cfg.Cluster.NodeID(), rc.Mode.Host, rc.Mode.Port
		if n := img.Nodes[self.NodeID]; n != nil {
			self.Rack = hintRack(n)
		}
		resp.Brokers = append(resp.Brokers, self)
		return resp, nil
	}
	for _, n := range sortedNodes(img) {
		live := b.cfg.Cluster.Live(n.ID)
		if !live && !req.IncludeFencedBrokers {
			continue
		}
		out := kmsg.NewDescribeClusterResponseBroker()
		out.NodeID, out.Host, out.Port, out.Rack, out.IsFenced = n.ID, n.KafkaHost, n.KafkaPort, hintRack(n), !live
		resp.Brokers = append(resp.Brokers, out)
	}
	return resp, nil
}

func (b *Broker) failDescribeCluster(rc *RequestContext, resp *kmsg.DescribeClusterResponse, err error) (kmsg.Response, error) {
	resp.EndpointType = 1 // whatever was asked, as Kafka
	resp.ErrorCode, resp.ErrorMessage = b.refusal(rc, err)
	return resp, nil
}

// adminController names a live broker for admin requests. Every node takes them, but one less hop is quicker: the leader of the
// metadata group, if it lives; else this node. In one-address mode there is no other than this node.
func (b *Broker) adminController(img *metadata.Image, mode ListenerConfig) int32 {
	if mode.OneAddress {
		return b.cfg.Cluster.NodeID()
	}
	leader, _ := b.cfg.Cluster.Leader(metadata.MetadataGroup)
	if _, ok := img.Nodes[leader]; ok && b.cfg.Cluster.Live(leader) {
		return leader
	}
	if self := b.cfg.Cluster.NodeID(); img.Nodes[self] != nil {
		return self
	}
	return -1
}

// sortedNodes returns the registered nodes by id, so that answers do not shuffle.
func sortedNodes(img *metadata.Image) []*metadata.Node {
	return slices.SortedFunc(maps.Values(img.Nodes), func(a, b *metadata.Node) int { return cmp.Compare(a.ID, b.ID) })
}
