package broker

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/metadata"
)

func TestDescribeCluster(t *testing.T) {
	everyVersion(t, 60, func(t *testing.T, v int16) {
		c := newAdminCluster()
		c.dead[3] = true
		req := kmsg.NewPtrDescribeClusterRequest()
		req.IncludeFencedBrokers = true
		resp := callAdmin[*kmsg.DescribeClusterResponse](t, c.broker(t), v, req)
		if resp.ErrorCode != 0 || resp.ErrorMessage != nil || resp.ClusterID != c.img.ClusterID || resp.EndpointType != 1 || resp.ControllerID != 2 {
			t.Errorf("%+v", resp)
		}
		if resp.ClusterAuthorizedOperations != -2147483648 {
			t.Errorf("authorized operations %d without being asked", resp.ClusterAuthorizedOperations)
		}
		want := 2
		if v >= 2 {
			want = 3
		}
		if len(resp.Brokers) != want {
			t.Fatalf("%d brokers, want %d", len(resp.Brokers), want)
		}
		for i, b := range resp.Brokers {
			id := int32(i + 1)
			n := c.img.Nodes[id]
			if b.NodeID != id || b.Host != n.KafkaHost || b.Port != n.KafkaPort || b.IsFenced != (id == 3) || (b.Rack != nil) != (id == 2) {
				t.Errorf("broker %d: %+v", id, b)
			}
		}
		req.IncludeClusterAuthorizedOperations, req.IncludeFencedBrokers = true, false
		resp = callAdmin[*kmsg.DescribeClusterResponse](t, c.broker(t), v, req)
		if resp.ClusterAuthorizedOperations != 8096 || len(resp.Brokers) != 2 {
			t.Errorf("authorized operations %d, %d brokers", resp.ClusterAuthorizedOperations, len(resp.Brokers))
		}
	})
}

func TestDescribeClusterEndpointTypes(t *testing.T) {
	for v := int16(1); v <= 2; v++ {
		for typ, want := range map[int8]int16{1: 0, 2: 114, 0: 115, 3: 115, -1: 115} {
			req := kmsg.NewPtrDescribeClusterRequest()
			req.EndpointType = typ
			resp := callAdmin[*kmsg.DescribeClusterResponse](t, newAdminCluster().broker(t), v, req)
			if resp.ErrorCode != want || (resp.ErrorMessage == nil) != (want == 0) || (len(resp.Brokers) == 0) != (want != 0) {
				t.Errorf("v%d endpoint type %d: code %d, %d brokers, want %d", v, typ, resp.ErrorCode, len(resp.Brokers), want)
			}
		}
	}
}

func TestDescribeClusterControllerIsALiveBroker(t *testing.T) {
	for name, change := range map[string]func(c *adminCluster){
		"leader dead":           func(c *adminCluster) { c.dead[2] = true },
		"leader unknown":        func(c *adminCluster) { delete(c.leaders, metadata.MetadataGroup) },
		"leader not registered": func(c *adminCluster) { c.leaders[metadata.MetadataGroup] = 7 },
	} {
		c := newAdminCluster()
		change(c)
		if got := callAdmin[*kmsg.DescribeClusterResponse](t, c.broker(t), 2, kmsg.NewPtrDescribeClusterRequest()).ControllerID; got != 1 {
			t.Errorf("%s: controller %d, want this node", name, got)
		}
	}
}

func TestDescribeClusterOneAddressMode(t *testing.T) {
	resp := callAdmin[*kmsg.DescribeClusterResponse](t, newAdminCluster().broker(t), 2, kmsg.NewPtrDescribeClusterRequest(), ListenerConfig{OneAddress: true, Host: "lb", Port: 9})
	if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 1 || resp.Brokers[0].Host != "lb" || resp.Brokers[0].Port != 9 || resp.ControllerID != 1 {
		t.Errorf("%+v", resp)
	}
}
