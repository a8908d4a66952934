package ctl

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
)

// A throttle is Kafka's (KIP-73): two rates on each broker, and on each topic the replicas they are for. So kafka-reassign-partitions
// can take away what this has set, and the other way round.

const (
	leaderReplicas   = "leader.replication.throttled.replicas"
	followerReplicas = "follower.replication.throttled.replicas"
)

func reassignThrottle(o *options) *cobra.Command {
	return &cobra.Command{Use: "throttle RATE|none", Short: "Bound what moving costs, or do so no longer", Args: cobra.ExactArgs(1),
		Long: "Bound the bytes a second that each node sends to partitions which move, and receives of them: 500000, 10MiB, 1GiB. It takes effect " +
			"at once. none takes every throttle of replication in the cluster away.",
		Example: "  chronik reassign throttle 20MiB\n  chronik reassign throttle none",
		RunE: o.run(func(ctx context.Context, s *session, args []string) error {
			if args[0] == "none" {
				return s.unthrottle(ctx)
			}
			rate, err := parseRate(args[0])
			if err != nil {
				return err
			}
			rows, err := s.moving(ctx, nil)
			if err != nil {
				return err
			}
			if len(rows) == 0 {
				return errors.New("nothing is moving: chronik reassign start --throttle throttles what it begins")
			}
			return s.throttle(ctx, rows, rate)
		})}
}

func parseRate(text string) (int64, error) {
	rate, err := config.ParseBytes(text)
	if err == nil && rate == 0 {
		err = errors.New("0 would stop the move: give a rate above it, or cancel the move (chronik reassign cancel)")
	}
	if err != nil {
		return 0, fmt.Errorf("the throttle, in bytes a second: %w", err)
	}
	return rate, nil
}

// throttle bounds moves, those of rows and what moves already, on all brokers.
func (s *session) throttle(ctx context.Context, rows []movingRow, rate int64) error {
	before, err := s.moving(ctx, nil)
	if err != nil {
		return err
	}
	pairs := map[string]*[2]map[string]bool{} // by topic: those that send, those that receive
	for _, r := range slices.Concat(before, rows) {
		p := pairs[r.Topic]
		if p == nil {
			p = &[2]map[string]bool{{}, {}}
			pairs[r.Topic] = p
		}
		for _, id := range r.Replicas {
			if !slices.Contains(r.Adding, id) {
				p[0][fmt.Sprintf("%d:%d", r.Partition, id)] = true
			}
		}
		for _, id := range r.Adding {
			p[1][fmt.Sprintf("%d:%d", r.Partition, id)] = true
		}
	}
	brokers, err := s.admin.ListBrokers(ctx)
	if err != nil {
		return err
	}
	value := strconv.FormatInt(rate, 10)
	// The rates first: with the replicas alone nothing would be bounded for a moment.
	err = s.alter(ctx, kmsg.ConfigResourceTypeBroker, brokerNames(brokers), setting(config.LeaderThrottledRate, value), setting(config.FollowerThrottledRate, value))
	for _, topic := range slices.Sorted(maps.Keys(pairs)) {
		if err != nil {
			break
		}
		p := pairs[topic]
		err = s.alter(ctx, kmsg.ConfigResourceTypeTopic, []string{topic}, setting(leaderReplicas, joined(p[0])), setting(followerReplicas, joined(p[1])))
	}
	if err == nil {
		fmt.Fprintf(s.errs, "throttled to %s a second on each node; chronik reassign throttle none ends that\n", config.FormatBytes(rate))
	}
	return err
}

// maxValue is how many bytes a config's value has at most: it is a string of Kafka's.
const maxValue = 1<<15 - 1

// joined lists replicas; more than a config holds are all of the topic's.
func joined(set map[string]bool) string {
	list := strings.Join(slices.Sorted(maps.Keys(set)), ",")
	if len(list) > maxValue {
		return "*"
	}
	return list
}

func setting(name, value string) kadm.AlterConfig {
	return kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value}
}

func brokerNames(brokers kadm.BrokerDetails) (names []string) {
	for _, id := range brokers.NodeIDs() {
		names = append(names, strconv.Itoa(int(id)))
	}
	return names
}

// unthrottle takes all throttles away.
func (s *session) unthrottle(ctx context.Context) error {
	topics, err := s.admin.ListTopicsWithInternal(ctx)
	if err != nil {
		return err
	}
	brokers, err := s.admin.ListBrokers(ctx)
	if err != nil {
		return err
	}
	// Brokers first: what is throttled is let go at once.
	none := func(name string) kadm.AlterConfig { return kadm.AlterConfig{Op: kadm.DeleteConfig, Name: name} }
	rates := []kadm.AlterConfig{none(config.LeaderThrottledRate), none(config.FollowerThrottledRate)}
	if err := s.alter(ctx, kmsg.ConfigResourceTypeBroker, append(brokerNames(brokers), ""), rates...); err != nil {
		return err
	}
	set, err := s.admin.DescribeTopicConfigs(ctx, topics.Names()...)
	if err != nil {
		return err
	}
	var throttled []string
	for _, t := range set {
		if t.Err == nil && slices.ContainsFunc(t.Configs, func(c kadm.Config) bool {
			return (c.Key == leaderReplicas || c.Key == followerReplicas) && c.Source == kmsg.ConfigSourceDynamicTopicConfig
		}) {
			throttled = append(throttled, t.Name)
		}
	}
	if len(throttled) > 0 {
		if err := s.alter(ctx, kmsg.ConfigResourceTypeTopic, throttled, none(leaderReplicas), none(followerReplicas)); err != nil {
			return err
		}
	}
	fmt.Fprintln(s.errs, "replication is not throttled")
	return nil
}

// alter changes configs of brokers ("": the default of all) or topics.
func (s *session) alter(ctx context.Context, kind kmsg.ConfigResourceType, names []string, ops ...kadm.AlterConfig) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	for _, name := range names {
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = kind, name
		for _, op := range ops {
			c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			c.Name, c.Op, c.Value = op.Name, kmsg.IncrementalAlterConfigOp(op.Op), op.Value
			r.Configs = append(r.Configs, c)
		}
		req.Resources = append(req.Resources, r)
	}
	var errs []error
	for _, shard := range s.client.RequestSharded(ctx, req) {
		if shard.Err != nil {
			errs = append(errs, shard.Err)
			continue
		}
		for _, r := range shard.Resp.(*kmsg.IncrementalAlterConfigsResponse).Resources {
			if err := answer(r.ErrorCode, r.ErrorMessage); err != nil {
				errs = append(errs, fmt.Errorf("configs of %s %s: %w", strings.ToLower(kind.String()), orDash(r.ResourceName), err))
			}
		}
	}
	return errors.Join(errs...)
}
