package cli

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/ctl"
)

func TestConsumerGroupsFromTheCommandLine(t *testing.T) {
	single(t)
	must(t, "", "topic", "create", "a", "-p", "2")
	must(t, "one\ntwo\nthree\n", "produce", "a", "-p", "1")
	c, err := kgo.NewClient(kgo.SeedBrokers(os.Getenv(ctl.BrokersVariable)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	join := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	join.Group, join.MemberID, join.RebalanceTimeoutMillis, join.SubscribedTopicNames = "app", "me", 10_000, []string{"a"}
	join.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	eventually(t, func() error { // its coordinator may have to load first, and then says so (14)
		resp, err := join.RequestWith(ctx, c)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	if out := must(t, "", "group", "list", "--type", "consumer"); !strings.Contains(out, "app") || !strings.Contains(out, "Stable") {
		t.Errorf("group list:\n%s", out)
	}
	var described []struct {
		State, Protocol string
		Members         []struct{ Assigned int }
		Partitions      []struct {
			Partition, Committed, Lag int64
			Member                    string
		}
		TotalLag int64 `json:"total_lag"`
	}
	if err := json.Unmarshal([]byte(must(t, "", "group", "describe", "app", "-o", "json")), &described); err != nil {
		t.Fatal(err)
	}
	if d := described[0]; d.State != "Stable" || d.Protocol != "uniform" || len(d.Members) != 1 || d.Members[0].Assigned != 2 || d.TotalLag != 3 ||
		len(d.Partitions) != 2 || d.Partitions[1].Lag != 3 || d.Partitions[1].Committed != -1 || d.Partitions[1].Member != "me" {
		t.Errorf("%+v", d)
	}
	if code, _, errs := chronik(t, "", "group", "describe", "none"); code == 0 || !strings.Contains(errs, "GROUP_ID_NOT_FOUND") {
		t.Errorf("code %d: %s", code, errs)
	}
}
