package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// describeGroups describes groups of both protocols, in order of names. A group that is not one by the consumer protocol (KIP-848) is
// described as a classic one.
func (s *session) describeGroups(ctx context.Context, names []string) ([]groupDetail, error) {
	var out []groupDetail
	classic := names
	// A broker that does not know the consumer protocol has no groups by it.
	if described, err := s.admin.DescribeConsumerGroups(ctx, names...); err == nil {
		classic = nil
		for _, name := range names {
			g, ok := described[name]
			switch {
			case !ok || errors.Is(g.Err, kerr.GroupIDNotFound):
				classic = append(classic, name)
			case g.Err != nil:
				return nil, fmt.Errorf("%s: %w", name, g.Err)
			default:
				d, err := s.describeConsumers(ctx, g)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				out = append(out, d)
			}
		}
	}
	if len(classic) > 0 {
		lags, err := s.admin.Lag(ctx, classic...)
		if err != nil {
			return nil, err
		}
		for _, l := range lags.Sorted() {
			if err := l.Error(); err != nil {
				return nil, fmt.Errorf("%s: %w", l.Group, err)
			}
			out = append(out, describedGroup(l))
		}
	}
	slices.SortFunc(out, func(a, b groupDetail) int { return strings.Compare(a.Group, b.Group) })
	return out, nil
}

// describeConsumers adds to a group by the consumer protocol what it has committed, and how far behind it is.
func (s *session) describeConsumers(ctx context.Context, g kadm.DescribedConsumerGroup) (groupDetail, error) {
	d := groupDetail{Group: g.Group, State: g.State, Protocol: g.AssignorName, Coordinator: g.Coordinator.NodeID, Members: []memberDetail{},
		Partitions: []lagDetail{}}
	committed, err := s.admin.FetchOffsets(ctx, g.Group)
	if err != nil {
		return d, err
	}
	owner := map[string]map[int32]string{}
	all := kadm.TopicsSet{}
	for topic, partitions := range committed {
		for p := range partitions {
			all.Add(topic, p)
		}
	}
	for _, m := range g.Members {
		row := memberDetail{Member: m.MemberID, Client: m.ClientID, Host: m.ClientHost}
		if m.InstanceID != nil {
			row.Instance = *m.InstanceID
		}
		for topic, partitions := range m.Assignment {
			row.Assigned += len(partitions)
			for p := range partitions {
				all.Add(topic, p)
				if owner[topic] == nil {
					owner[topic] = map[int32]string{}
				}
				owner[topic][p] = m.MemberID
			}
		}
		d.Members = append(d.Members, row)
	}
	if len(all) == 0 {
		return d, nil
	}
	ends, err := settled(ctx, leaderWait, func() (kadm.ListedOffsets, error) { return s.admin.ListEndOffsets(ctx, all.Topics()...) })
	if err != nil {
		return d, err
	}
	for _, t := range all.Sorted() {
		for _, p := range t.Partitions {
			row := lagDetail{Topic: t.Topic, Partition: p, Committed: -1, End: -1, Lag: -1, Member: owner[t.Topic][p]}
			if o, ok := committed.Lookup(t.Topic, p); ok {
				row.Committed = o.At
			}
			end, ok := ends.Lookup(t.Topic, p)
			switch {
			case !ok:
				row.Error = kerr.UnknownTopicOrPartition.Error()
			case end.Err != nil:
				row.Error = end.Err.Error()
			default:
				row.End, row.Lag = end.Offset, max(end.Offset-max(row.Committed, 0), 0)
				d.TotalLag += row.Lag
			}
			d.Partitions = append(d.Partitions, row)
		}
	}
	return d, nil
}
