package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func groupCommand() *cobra.Command {
	o := &options{}
	cmd := connected(&cobra.Command{Use: "group", Short: "Look at consumer groups and move their offsets"}, o)
	cmd.AddCommand(groupList(o), groupDescribe(o), groupOffsets(o), groupSeek(o), groupDelete(o))
	return cmd
}

type groupRow struct {
	Group        string `json:"group"`
	Type         string `json:"type"`
	State        string `json:"state"`
	ProtocolType string `json:"protocol_type"`
	Coordinator  int32  `json:"coordinator"`
}

func groupList(o *options) *cobra.Command {
	var states, types []string
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List groups", Args: cobra.NoArgs,
		RunE: o.run(func(ctx context.Context, s *session, _ []string) error {
			req := kmsg.NewPtrListGroupsRequest()
			req.StatesFilter, req.TypesFilter = states, types
			rows := []groupRow{}
			var errs []error
			for _, shard := range s.client.RequestSharded(ctx, req) {
				if shard.Err != nil {
					errs = append(errs, fmt.Errorf("broker %d: %w", shard.Meta.NodeID, shard.Err))
					continue
				}
				for _, g := range shard.Resp.(*kmsg.ListGroupsResponse).Groups {
					rows = append(rows, groupRow{g.Group, g.GroupType, g.GroupState, g.ProtocolType, shard.Meta.NodeID})
				}
			}
			sortBy(rows, func(r groupRow) string { return r.Group })
			err := s.print(rows, func() {
				var lines [][]string
				for _, r := range rows {
					lines = append(lines, []string{r.Group, orDash(r.Type), orDash(r.State), orDash(r.ProtocolType), fmt.Sprint(r.Coordinator)})
				}
				s.table("GROUP TYPE STATE PROTOCOL COORDINATOR", lines)
			})
			return errors.Join(append(errs, err)...)
		})}
	cmd.Flags().StringSliceVar(&states, "state", nil, "groups in these states only, such as Stable or Empty")
	cmd.Flags().StringSliceVar(&types, "type", nil, "groups of these types only: classic, consumer")
	return cmd
}

// groupDetail is a group described.
type groupDetail struct {
	Group       string         `json:"group"`
	State       string         `json:"state"`
	Protocol    string         `json:"protocol"`
	Coordinator int32          `json:"coordinator"`
	Members     []memberDetail `json:"members"`
	Partitions  []lagDetail    `json:"partitions"`
	TotalLag    int64          `json:"total_lag"`
}

type memberDetail struct {
	Member   string `json:"member"`
	Instance string `json:"instance,omitempty"`
	Client   string `json:"client"`
	Host     string `json:"host"`
	Assigned int    `json:"assigned"`
}

type lagDetail struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // -1: nothing
	End       int64  `json:"end"`
	Lag       int64  `json:"lag"` // -1: not known
	Member    string `json:"member"`
	Error     string `json:"error,omitempty"`
}

func groupDescribe(o *options) *cobra.Command {
	return &cobra.Command{Use: "describe GROUP...", Short: "Show groups: members, what each reads, how far behind", Args: cobra.MinimumNArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			out, err := s.describeGroups(ctx, names)
			if err != nil {
				return err
			}
			return s.print(out, func() {
				for i, d := range out {
					if i > 0 {
						fmt.Fprintln(s.out)
					}
					s.showGroup(d)
				}
			})
		})}
}

func describedGroup(l kadm.DescribedGroupLag) groupDetail {
	d := groupDetail{Group: l.Group, State: l.State, Protocol: l.Protocol, Coordinator: l.Coordinator.NodeID, TotalLag: l.Lag.Total(),
		Members: []memberDetail{}, Partitions: []lagDetail{}}
	owned := map[string]int{}
	for _, p := range l.Lag.Sorted() {
		row := lagDetail{Topic: p.Topic, Partition: p.Partition, Committed: p.Commit.At, End: p.End.Offset, Lag: p.Lag}
		if p.Member != nil {
			row.Member = p.Member.MemberID
			owned[row.Member]++
		}
		if p.Err != nil {
			row.Error = p.Err.Error()
		}
		d.Partitions = append(d.Partitions, row)
	}
	for _, m := range l.Members {
		row := memberDetail{Member: m.MemberID, Client: m.ClientID, Host: m.ClientHost, Assigned: owned[m.MemberID]}
		if m.InstanceID != nil {
			row.Instance = *m.InstanceID
		}
		d.Members = append(d.Members, row)
	}
	return d
}

func (s *session) showGroup(d groupDetail) {
	fmt.Fprintf(s.out, "group %s: %s, protocol %s, coordinator %d, %d members, lag %d\n", d.Group, d.State, orDash(d.Protocol), d.Coordinator, len(d.Members), d.TotalLag)
	var lines [][]string
	for _, m := range d.Members {
		lines = append(lines, []string{m.Member, orDash(m.Instance), orDash(m.Client), orDash(m.Host), fmt.Sprint(m.Assigned)})
	}
	if len(lines) > 0 {
		s.table("MEMBER INSTANCE CLIENT HOST PARTITIONS", lines)
	}
	lines = nil
	for _, p := range d.Partitions {
		lines = append(lines, []string{p.Topic, fmt.Sprint(p.Partition), number(p.Committed), number(p.End), number(p.Lag), orDash(p.Member), orDash(p.Error)})
	}
	if len(lines) > 0 {
		s.table("TOPIC PARTITION COMMITTED END LAG MEMBER ERROR", lines)
	}
}

type committedRow struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Epoch     int32  `json:"leader_epoch"`
	Metadata  string `json:"metadata"`
}

func groupOffsets(o *options) *cobra.Command {
	return &cobra.Command{Use: "offsets GROUP", Short: "Show what a group has committed", Args: cobra.ExactArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, args []string) error {
			all, err := s.admin.FetchOffsets(ctx, args[0])
			if err != nil {
				return err
			}
			rows := []committedRow{}
			var errs []error
			for _, r := range all.Sorted() {
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("%s-%d: %w", r.Topic, r.Partition, r.Err))
					continue
				}
				rows = append(rows, committedRow{r.Topic, r.Partition, r.At, r.LeaderEpoch, r.Metadata})
			}
			err = s.print(rows, func() {
				var lines [][]string
				for _, r := range rows {
					lines = append(lines, []string{r.Topic, fmt.Sprint(r.Partition), fmt.Sprint(r.Offset), number(int64(r.Epoch)), orDash(r.Metadata)})
				}
				s.table("TOPIC PARTITION OFFSET EPOCH METADATA", lines)
			})
			return errors.Join(append(errs, err)...)
		})}
}

type seekRow struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from"` // -1: nothing was committed
	To        int64  `json:"to"`
}

func groupSeek(o *options) *cobra.Command {
	var topics []string
	var to string
	var by int64
	var partitions []int32
	var execute bool
	cmd := &cobra.Command{Use: "seek GROUP --to POSITION", Short: "Move a group's committed offsets", Args: cobra.ExactArgs(1),
		Long: "Move a group's committed offsets. The group must have no members. Without --execute it only shows what would change. " + positionHelp +
			". --by moves each offset from where it is.",
		RunE: o.run(func(ctx context.Context, s *session, args []string) error {
			rows, err := s.planSeek(ctx, args[0], topics, partitions, to, by)
			if err != nil {
				return err
			}
			if err := s.print(rows, func() {
				var lines [][]string
				for _, r := range rows {
					lines = append(lines, []string{r.Topic, fmt.Sprint(r.Partition), number(r.From), fmt.Sprint(r.To)})
				}
				s.table("TOPIC PARTITION FROM TO", lines)
			}); err != nil {
				return err
			}
			if !execute {
				fmt.Fprintln(s.errs, "nothing was changed: --execute does it")
				return nil
			}
			return s.seek(ctx, args[0], rows)
		})}
	f := cmd.Flags()
	f.StringSliceVarP(&topics, "topic", "t", nil, "these topics; default: all that the group has committed")
	f.Int32SliceVarP(&partitions, "partition", "p", nil, "these partitions only")
	f.StringVar(&to, "to", "", "the position to move to")
	f.Int64Var(&by, "by", 0, "so many records forward, or back if negative")
	f.BoolVar(&execute, "execute", false, "do it")
	cmd.MarkFlagsMutuallyExclusive("to", "by")
	cmd.MarkFlagsOneRequired("to", "by")
	return cmd
}

// planSeek works out what to commit.
func (s *session) planSeek(ctx context.Context, group string, topics []string, partitions []int32, to string, by int64) ([]seekRow, error) {
	relative := to == ""
	if relative && by == 0 {
		return nil, errors.New("--by 0 moves nothing")
	}
	committed, err := s.admin.FetchOffsets(ctx, group)
	if err != nil {
		return nil, err
	}
	if len(topics) == 0 {
		for _, t := range committed.Sorted() {
			if len(topics) == 0 || topics[len(topics)-1] != t.Topic {
				topics = append(topics, t.Topic)
			}
		}
		if len(topics) == 0 {
			return nil, fmt.Errorf("group %s has committed nothing: name the topics, --topic", group)
		}
	}
	rows := []seekRow{}
	for _, topic := range topics {
		if relative {
			to = "end"
		}
		at, err := s.resolve(ctx, topic, to, partitions)
		if err != nil {
			return nil, err
		}
		starts := at
		if relative {
			if starts, err = s.resolve(ctx, topic, "start", partitions); err != nil {
				return nil, err
			}
		}
		for _, o := range at.Sorted() {
			row := seekRow{Topic: topic, Partition: o.Partition, From: -1, To: o.At}
			if c, ok := committed.Lookup(topic, o.Partition); ok && c.Err == nil {
				row.From = c.At
			}
			if relative {
				if row.From < 0 {
					continue // nothing to move from
				}
				start, _ := starts.Lookup(topic, o.Partition)
				row.To = min(max(row.From+by, start.At), o.At)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func (s *session) seek(ctx context.Context, group string, rows []seekRow) error {
	offsets := kadm.Offsets{}
	for _, r := range rows {
		offsets.AddOffset(r.Topic, r.Partition, r.To, -1)
	}
	all, err := s.admin.CommitOffsets(ctx, group, offsets)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all.Sorted() {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("%s-%d: %w", r.Topic, r.Partition, r.Err))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w\nwhile the group has members its offsets are theirs: stop them first", errors.Join(errs...))
	}
	fmt.Fprintf(s.errs, "%d offsets of group %s moved\n", len(rows), group)
	return nil
}

func groupDelete(o *options) *cobra.Command {
	return &cobra.Command{Use: "delete GROUP...", Short: "Delete groups with their offsets; they must have no members", Args: cobra.MinimumNArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			all, err := s.admin.DeleteGroups(ctx, names...)
			if err != nil {
				return err
			}
			var errs []error
			for _, r := range all.Sorted() {
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", r.Group, r.Err))
					continue
				}
				fmt.Fprintf(s.errs, "%s deleted\n", r.Group)
			}
			return errors.Join(errs...)
		})}
}

func sortBy[T any](rows []T, key func(T) string) {
	slices.SortFunc(rows, func(a, b T) int { return strings.Compare(key(a), key(b)) })
}
