package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func reassignCommand() *cobra.Command {
	o := &options{}
	cmd := connected(&cobra.Command{Use: "reassign", Short: "Move partitions between nodes",
		Long: "Move partitions between nodes: plan prints a plan, start carries one out, status shows what is under way, throttle bounds what it costs, cancel goes back."}, o)
	cmd.AddCommand(reassignPlan(o), reassignStart(o), reassignStatus(o), reassignThrottle(o), reassignCancel(o))
	return cmd
}

// plan says where partitions are to be. Its form is that of Kafka's kafka-reassign-partitions, so that either takes the other's.
type plan struct {
	Version    int           `json:"version"`
	Partitions []planElement `json:"partitions"`
}

type planElement struct {
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Replicas  []int32 `json:"replicas"`
}

func reassignPlan(o *options) *cobra.Command {
	var brokers []int32
	var replication int
	cmd := &cobra.Command{Use: "plan TOPIC... [--to 1,2,3]", Short: "Print a plan that spreads topics evenly over nodes", Args: cobra.MinimumNArgs(1),
		Long: "Print a plan (JSON) that spreads topics' partitions evenly over nodes. A replica that may stay where it is stays.",
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			topics, err := s.admin.ListTopicsWithInternal(ctx, names...)
			if err != nil {
				return err
			}
			if len(brokers) == 0 {
				known, err := s.admin.ListBrokers(ctx)
				if err != nil {
					return err
				}
				brokers = known.NodeIDs()
			}
			var parts []kadm.PartitionDetail
			for _, t := range topics.Sorted() {
				if t.Err != nil {
					return fmt.Errorf("%s: %w", t.Topic, t.Err)
				}
				parts = append(parts, t.Partitions.Sorted()...)
			}
			p, err := spread(parts, brokers, replication)
			if err != nil {
				return err
			}
			e := json.NewEncoder(s.out)
			e.SetIndent("", "  ")
			return e.Encode(p)
		})}
	cmd.Flags().Int32SliceVar(&brokers, "to", nil, "the nodes to use; default: all")
	cmd.Flags().IntVarP(&replication, "replication-factor", "r", 0, "how many replicas each partition is to have; default: as many as now")
	return cmd
}

// spread gives each partition its replicas. Those on the given nodes stay at first, and what is missing goes to the nodes that hold
// the fewest; then single replicas move from the fullest node to the emptiest until no two differ by more than one. The preferred
// leaders, the first of each partition's replicas, are levelled likewise.
func spread(parts []kadm.PartitionDetail, brokers []int32, replication int) (plan, error) {
	slices.Sort(brokers)
	brokers = slices.Compact(brokers)
	held := map[int32]int{}
	out := plan{Version: 1, Partitions: []planElement{}}
	for _, p := range parts {
		n := replication
		if n <= 0 {
			n = len(p.Replicas)
		}
		if n > len(brokers) {
			return plan{}, fmt.Errorf("%s-%d: %d replicas on %d nodes do not go: name more nodes (--to) or a lower --replication-factor", p.Topic, p.Partition, n, len(brokers))
		}
		e := planElement{Topic: p.Topic, Partition: p.Partition, Replicas: []int32{}}
		for _, r := range p.Replicas {
			if len(e.Replicas) < n && slices.Contains(brokers, r) {
				e.Replicas = append(e.Replicas, r)
				held[r]++
			}
		}
		for len(e.Replicas) < n {
			b := extreme(brokers, func(a, b int32) bool { return held[a] < held[b] }, e.Replicas)
			e.Replicas = append(e.Replicas, b)
			held[b]++
		}
		out.Partitions = append(out.Partitions, e)
	}
	for level(out.Partitions, brokers, held) {
	}
	led := map[int32]int{}
	for _, e := range out.Partitions {
		led[e.Replicas[0]]++
	}
	for levelLeaders(out.Partitions, led) {
	}
	return out, nil
}

// level moves one replica from a fuller node to an emptier one, and says whether there was one to move.
func level(parts []planElement, brokers []int32, held map[int32]int) bool {
	byLoad := slices.Clone(brokers)
	slices.SortStableFunc(byLoad, func(a, b int32) int { return held[b] - held[a] })
	for _, full := range byLoad {
		for _, empty := range slices.Backward(byLoad) {
			if held[full]-held[empty] < 2 {
				break
			}
			for _, e := range parts {
				if i := slices.Index(e.Replicas, full); i >= 0 && !slices.Contains(e.Replicas, empty) {
					e.Replicas[i] = empty
					held[full]--
					held[empty]++
					return true
				}
			}
		}
	}
	return false
}

// levelLeaders makes a replica the preferred leader in place of one whose node leads two or more partitions more than its own.
func levelLeaders(parts []planElement, led map[int32]int) bool {
	for _, e := range parts {
		i := slices.Index(e.Replicas, extreme(e.Replicas, func(a, b int32) bool { return led[a] < led[b] }, nil))
		if first := e.Replicas[0]; led[first]-led[e.Replicas[i]] >= 2 {
			led[first]--
			led[e.Replicas[i]]++
			e.Replicas[0], e.Replicas[i] = e.Replicas[i], first
			return true
		}
	}
	return false
}

// extreme returns the first of ids that none is before, those in except aside.
func extreme(ids []int32, before func(a, b int32) bool, except []int32) int32 {
	best := int32(-1)
	for _, id := range ids {
		if !slices.Contains(except, id) && (best < 0 || before(id, best)) {
			best = id
		}
	}
	return best
}

func reassignStart(o *options) *cobra.Command {
	var file, topic string
	var partition int32
	var replicas []int32
	var throttle string
	var wait bool
	cmd := &cobra.Command{Use: "start (--plan FILE | --topic T --partition P --replicas 1,2,3)", Short: "Begin to move partitions", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := readPlan(file, topic, partition, replicas)
			if err != nil {
				return err
			}
			s, ctx, done, err := o.open(cmd, wait)
			if err != nil {
				return err
			}
			defer done()
			var req kadm.AlterPartitionAssignmentsReq
			var set kadm.TopicsSet
			for _, e := range p.Partitions {
				req.Assign(e.Topic, e.Partition, e.Replicas)
				set.Add(e.Topic, e.Partition)
			}
			if throttle != "" {
				rate, err := parseRate(throttle)
				if err != nil {
					return err
				}
				rows, err := s.moves(ctx, p)
				if err != nil {
					return err
				}
				if err := s.throttle(ctx, rows, rate); err != nil {
					return err
				}
			}
			if err := s.reassign(ctx, req); err != nil {
				return err
			}
			fmt.Fprintf(s.errs, "%d partitions are to move\n", len(p.Partitions))
			if !wait {
				return nil
			}
			if err := s.awaitReassigned(ctx, set); err != nil || throttle == "" {
				return err
			}
			return s.unthrottle(ctx)
		}}
	f := cmd.Flags()
	f.StringVar(&file, "plan", "", "a plan's file, as plan prints it; - is standard input")
	f.StringVar(&topic, "topic", "", "the topic, without a plan")
	f.Int32Var(&partition, "partition", 0, "its partition")
	f.Int32SliceVar(&replicas, "replicas", nil, "the nodes that are to hold it, the preferred leader first")
	f.BoolVar(&wait, "wait", false, "wait until all have moved, and show the progress; a throttle is taken away then")
	f.StringVar(&throttle, "throttle", "", "the most bytes a second that each node sends and receives for the move: 500000, 10MiB")
	cmd.MarkFlagsMutuallyExclusive("plan", "topic")
	cmd.MarkFlagsOneRequired("plan", "topic")
	cmd.MarkFlagsRequiredTogether("topic", "replicas")
	return cmd
}

func readPlan(file, topic string, partition int32, replicas []int32) (plan, error) {
	if file == "" {
		return plan{Partitions: []planElement{{topic, partition, replicas}}}, nil
	}
	if file == "-" {
		file = "/dev/stdin"
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return plan{}, err
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return plan{}, fmt.Errorf("%s is no plan: %w; chronik reassign plan prints one", file, err)
	}
	if p.Version != 1 || len(p.Partitions) == 0 {
		return plan{}, fmt.Errorf("%s: a plan of version 1 with partitions is wanted; chronik reassign plan prints one", file)
	}
	return p, nil
}

func (s *session) reassign(ctx context.Context, req kadm.AlterPartitionAssignmentsReq) error {
	all, err := s.admin.AlterPartitionAssignments(ctx, req)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all.Sorted() {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("%s-%d: %w", r.Topic, r.Partition, refusal(r.Err, r.ErrMessage)))
		}
	}
	return errors.Join(errs...)
}

type movingRow struct {
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Replicas  []int32 `json:"replicas"`
	Adding    []int32 `json:"adding"`
	Removing  []int32 `json:"removing"`
	// Copied and Bytes are what the new replicas have, and what they are to have; -1: not known.
	Copied int64 `json:"copied_bytes"`
	Bytes  int64 `json:"bytes"`
}

// moving lists the reassignments under way; set nil: all.
func (s *session) moving(ctx context.Context, set kadm.TopicsSet) ([]movingRow, error) {
	req := kmsg.NewPtrListPartitionReassignmentsRequest()
	req.TimeoutMillis = int32(s.timeout / time.Millisecond)
	for _, t := range set.Sorted() { // none: all of them
		r := kmsg.NewListPartitionReassignmentsRequestTopic()
		r.Topic, r.Partitions = t.Topic, t.Partitions
		req.Topics = append(req.Topics, r)
	}
	resp, err := req.RequestWith(ctx, s.client)
	if err == nil {
		err = answer(resp.ErrorCode, resp.ErrorMessage)
	}
	if err != nil {
		return nil, err
	}
	rows := []movingRow{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			rows = append(rows, movingRow{t.Topic, p.Partition, orEmpty(p.Replicas), orEmpty(p.AddingReplicas), orEmpty(p.RemovingReplicas), -1, -1})
		}
	}
	slices.SortFunc(rows, func(a, b movingRow) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return rows, nil
}

// moves says what a plan moves, as moving would once it is under way.
func (s *session) moves(ctx context.Context, p plan) ([]movingRow, error) {
	var rows []movingRow
	for _, e := range p.Partitions {
		topics, err := s.admin.ListTopicsWithInternal(ctx, e.Topic)
		if err != nil {
			return nil, err
		}
		t := topics[e.Topic]
		if t.Err != nil {
			return nil, fmt.Errorf("%s: %w", e.Topic, t.Err)
		}
		now, ok := t.Partitions[e.Partition]
		if !ok {
			return nil, fmt.Errorf("%s has no partition %d", e.Topic, e.Partition)
		}
		row := movingRow{Topic: e.Topic, Partition: e.Partition, Replicas: slices.Clone(now.Replicas)}
		for _, id := range e.Replicas {
			if !slices.Contains(now.Replicas, id) {
				row.Adding = append(row.Adding, id)
			}
		}
		row.Replicas = append(row.Replicas, row.Adding...)
		rows = append(rows, row)
	}
	return rows, nil
}

// measure adds how far rows have come. Who does not answer is left out.
func (s *session) measure(ctx context.Context, rows []movingRow) {
	var set kadm.TopicsSet
	for _, r := range rows {
		set.Add(r.Topic, r.Partition)
	}
	dirs, err := s.admin.DescribeAllLogDirs(ctx, set)
	if err != nil && len(dirs) == 0 {
		return
	}
	for i := range rows {
		r := &rows[i]
		var copied, whole int64
		dirs.Each(func(d kadm.DescribedLogDir) {
			d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
				switch {
				case p.Topic != r.Topic || p.Partition != r.Partition:
				case slices.Contains(r.Adding, p.Broker):
					copied += p.Size
				default:
					whole = max(whole, p.Size)
				}
			})
		})
		// Compaction, retention and segments that roll elsewhere make replicas of the same records differ a little.
		r.Bytes = whole * int64(len(r.Adding))
		r.Copied = min(copied, r.Bytes)
	}
}

func (r movingRow) progress() string {
	switch {
	case r.Bytes < 0:
		return "-"
	case r.Bytes == 0:
		return "100%"
	}
	return fmt.Sprintf("%d%% of %s", r.Copied*100/r.Bytes, size(r.Bytes))
}

func reassignStatus(o *options) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show the partitions that are moving, and how far they are", Args: cobra.NoArgs,
		RunE: o.run(func(ctx context.Context, s *session, _ []string) error {
			rows, err := s.moving(ctx, nil)
			if err != nil {
				return err
			}
			if len(rows) > 0 {
				s.measure(ctx, rows)
			}
			return s.print(rows, func() {
				var lines [][]string
				for _, r := range rows {
					lines = append(lines, []string{r.Topic, fmt.Sprint(r.Partition), list(r.Replicas), list(r.Adding), list(r.Removing), r.progress()})
				}
				s.table("TOPIC PARTITION REPLICAS ADDING REMOVING COPIED", lines)
			})
		})}
}

// awaitReassigned waits until none of set moves any more, and says how far they are.
func (s *session) awaitReassigned(ctx context.Context, set kadm.TopicsSet) error {
	said := ""
	for {
		rows, err := s.moving(ctx, set)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			s.measure(ctx, rows)
		}
		var copied, bytes int64
		for _, r := range rows {
			copied, bytes = copied+max(0, r.Copied), bytes+max(0, r.Bytes)
		}
		say := fmt.Sprintf("%d still moving", len(rows))
		if bytes > 0 {
			say += fmt.Sprintf(", %d%% of %s copied", copied*100/bytes, size(bytes))
		}
		if say != said {
			said = say
			fmt.Fprintln(s.errs, say)
		}
		if len(rows) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d partitions still move; they go on without this command (chronik reassign status)", len(rows))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func reassignCancel(o *options) *cobra.Command {
	var topics []string
	cmd := &cobra.Command{Use: "cancel", Short: "Stop moving partitions; each goes back to the replicas it had", Args: cobra.NoArgs,
		RunE: o.run(func(ctx context.Context, s *session, _ []string) error {
			rows, err := s.moving(ctx, nil)
			if err != nil {
				return err
			}
			var req kadm.AlterPartitionAssignmentsReq
			n := 0
			for _, r := range rows {
				if len(topics) == 0 || slices.Contains(topics, r.Topic) {
					req.CancelAssign(r.Topic, r.Partition)
					n++
				}
			}
			if n == 0 {
				fmt.Fprintln(s.errs, "nothing is moving")
				return nil
			}
			if err := s.reassign(ctx, req); err != nil {
				return err
			}
			fmt.Fprintf(s.errs, "%d reassignments cancelled\n", n)
			return nil
		})}
	cmd.Flags().StringSliceVarP(&topics, "topic", "t", nil, "these topics only; default: everything that moves")
	return cmd
}
