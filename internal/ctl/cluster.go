package ctl

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func clusterCommand() *cobra.Command {
	o := &options{}
	cmd := connected(&cobra.Command{Use: "cluster", Short: "Change the cluster itself, or run one on this machine",
		Long: "Change the cluster itself: remove takes a node out for good, elect gives leaderships back to the preferred leaders. up runs a cluster on this machine."}, o)
	cmd.AddCommand(clusterRemove(o), clusterElect(o))
	return cmd
}

func clusterRemove(o *options) *cobra.Command {
	return &cobra.Command{Use: "remove NODE", Short: "Remove a stopped node from the cluster for good", Args: cobra.ExactArgs(1),
		Long: "Remove a stopped node from the cluster for good. It may hold no partitions: move those to other nodes first (chronik reassign). " +
			"Its data directory is refused from then on; its node id may be used again, with an empty directory.",
		RunE: o.run(func(ctx context.Context, s *session, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 32)
			if err != nil || id < 0 {
				return fmt.Errorf("%q is no node id: a number is wanted", args[0])
			}
			req := kmsg.NewPtrUnregisterBrokerRequest()
			req.BrokerID = int32(id)
			resp, err := req.RequestWith(ctx, s.client)
			if err != nil {
				return err
			}
			message := ""
			if resp.ErrorMessage != nil {
				message = *resp.ErrorMessage
			}
			if err := refusal(kerr.ErrorForCode(resp.ErrorCode), message); err != nil {
				return err
			}
			fmt.Fprintf(s.errs, "node %d is no longer one of the cluster\n", id)
			return nil
		})}
}

func clusterElect(o *options) *cobra.Command {
	return &cobra.Command{Use: "elect [TOPIC...]", Short: "Give leaderships back to the preferred leaders",
		Long: "Give the leadership of partitions to the first of their replicas, the preferred leader; without topics: of all.",
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			var set kadm.TopicsSet
			if len(names) > 0 {
				topics, err := s.admin.ListTopicsWithInternal(ctx, names...)
				if err != nil {
					return err
				}
				set = kadm.TopicsSet{}
				for _, t := range topics.Sorted() {
					if t.Err != nil {
						return fmt.Errorf("%s: %w", t.Topic, t.Err)
					}
					set.Add(t.Topic, t.Partitions.Numbers()...)
				}
			}
			all, err := s.admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, set)
			if err != nil {
				return err
			}
			moved := 0
			var errs []error
			for topic, parts := range all {
				for p, r := range parts {
					switch {
					case r.Err == nil:
						moved++
					case !errors.Is(r.Err, kerr.ElectionNotNeeded):
						errs = append(errs, fmt.Errorf("%s-%d: %w", topic, p, refusal(r.Err, r.ErrMessage)))
					}
				}
			}
			fmt.Fprintf(s.errs, "%d leaderships moved\n", moved)
			return errors.Join(errs...)
		})}
}
