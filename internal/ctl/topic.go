package ctl

import (
	"context"
	"encoding/base64"
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

func topicCommand() *cobra.Command {
	o := &options{}
	cmd := connected(&cobra.Command{Use: "topic", Short: "Create, describe, change and delete topics"}, o)
	cmd.AddCommand(topicList(o), topicCreate(o), topicDescribe(o), topicAlter(o), topicGrow(o), topicTrim(o), topicDelete(o))
	return cmd
}

// kafkaID is a topic's id as Kafka's tools write it.
func kafkaID(id kadm.TopicID) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// topicRow is a topic in a list.
type topicRow struct {
	Name        string `json:"name"`
	ID          string `json:"id"`
	Partitions  int    `json:"partitions"`
	Replication int    `json:"replication"`
	Internal    bool   `json:"internal"`
	Leaderless  int    `json:"leaderless"`
}

func topicList(o *options) *cobra.Command {
	var internal bool
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List topics", Args: cobra.NoArgs,
		RunE: o.run(func(ctx context.Context, s *session, _ []string) error {
			topics, err := s.admin.ListTopicsWithInternal(ctx)
			if err != nil {
				return err
			}
			rows := []topicRow{}
			for _, t := range topics.Sorted() {
				if t.IsInternal && !internal {
					continue
				}
				row := topicRow{Name: t.Topic, ID: kafkaID(t.ID), Partitions: len(t.Partitions), Replication: t.Partitions.NumReplicas(), Internal: t.IsInternal}
				for _, p := range t.Partitions {
					if p.Leader < 0 {
						row.Leaderless++
					}
				}
				rows = append(rows, row)
			}
			return s.print(rows, func() {
				var lines [][]string
				for _, r := range rows {
					lines = append(lines, []string{r.Name, strconv.Itoa(r.Partitions), strconv.Itoa(r.Replication), strconv.Itoa(r.Leaderless)})
				}
				s.table("TOPIC PARTITIONS REPLICATION LEADERLESS", lines)
			})
		})}
	cmd.Flags().BoolVar(&internal, "internal", false, "internal topics too")
	return cmd
}

func topicCreate(o *options) *cobra.Command {
	var partitions int32
	var replication int16
	var configs []string
	var dry bool
	cmd := &cobra.Command{Use: "create TOPIC...", Short: "Create topics", Args: cobra.MinimumNArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			set, err := pairs(configs)
			if err != nil {
				return err
			}
			create := s.admin.CreateTopics
			if dry {
				create = s.admin.ValidateCreateTopics
			}
			all, err := create(ctx, partitions, replication, set, names...)
			if err != nil {
				return err
			}
			s.noteInert(slices.Sorted(maps.Keys(set)))
			var errs []error
			for _, r := range all.Sorted() {
				switch {
				case r.Err != nil:
					errs = append(errs, fmt.Errorf("%s: %w", r.Topic, refusal(r.Err, r.ErrMessage)))
				case dry:
					fmt.Fprintf(s.errs, "%s could be created\n", r.Topic)
				default:
					fmt.Fprintf(s.errs, "%s created: %d partitions, replication factor %d\n", r.Topic, r.NumPartitions, r.ReplicationFactor)
				}
			}
			return errors.Join(errs...)
		})}
	f := cmd.Flags()
	f.Int32VarP(&partitions, "partitions", "p", -1, "how many partitions; -1: the cluster's default")
	f.Int16VarP(&replication, "replication-factor", "r", -1, "how many replicas of each; -1: the cluster's default")
	f.StringArrayVarP(&configs, "config", "c", nil, "a config as name=value; may be repeated")
	f.BoolVar(&dry, "dry-run", false, "only check")
	return cmd
}

// noteInert tells of configs that are kept and change nothing, lest they are taken for done.
func (s *session) noteInert(names []string) {
	for _, name := range names {
		if d, ok := config.Topics.Lookup(name); ok && d.Inert {
			fmt.Fprintf(s.errs, "note: %s: %s\n", name, d.Doc)
		}
	}
}

// pairs parses name=value arguments.
func pairs(args []string) (map[string]*string, error) {
	out := map[string]*string{}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not name=value", a)
		}
		out[name] = &value
	}
	return out, nil
}

// topicDetail is a topic described.
type topicDetail struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Internal   bool              `json:"internal"`
	Partitions []partitionDetail `json:"partitions"`
	Configs    []configDetail    `json:"configs"`
}

type partitionDetail struct {
	Partition   int32   `json:"partition"`
	Leader      int32   `json:"leader"`
	LeaderEpoch int32   `json:"leader_epoch"`
	Replicas    []int32 `json:"replicas"`
	ISR         []int32 `json:"isr"`
	Offline     []int32 `json:"offline"`
	Start       int64   `json:"start_offset"` // -1: not known
	End         int64   `json:"end_offset"`   // -1: not known
	Bytes       int64   `json:"bytes"`        // of the largest replica; -1: not known
}

type configDetail struct {
	Name   string  `json:"name"`
	Value  *string `json:"value"`
	Source string  `json:"source"`
}

func topicDescribe(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{Use: "describe TOPIC...", Short: "Show topics with their partitions and configs", Args: cobra.MinimumNArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			details, err := s.describeTopics(ctx, names, all)
			if err != nil {
				return err
			}
			return s.print(details, func() {
				for i, d := range details {
					if i > 0 {
						fmt.Fprintln(s.out)
					}
					s.showTopic(d)
				}
			})
		})}
	cmd.Flags().BoolVar(&all, "all-configs", false, "configs with their default value too")
	return cmd
}

func (s *session) describeTopics(ctx context.Context, names []string, allConfigs bool) ([]topicDetail, error) {
	topics, err := s.admin.ListTopicsWithInternal(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, t := range topics.Sorted() {
		if t.Err != nil {
			return nil, fmt.Errorf("%s: %w", t.Topic, t.Err)
		}
	}
	starts, err := s.admin.ListStartOffsets(ctx, names...)
	if err != nil {
		return nil, err
	}
	ends, err := s.admin.ListEndOffsets(ctx, names...)
	if err != nil {
		return nil, err
	}
	configs, err := s.admin.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil, err
	}
	sizes := s.sizes(ctx, topics)
	var out []topicDetail
	for _, t := range topics.Sorted() {
		d := topicDetail{Name: t.Topic, ID: kafkaID(t.ID), Internal: t.IsInternal, Configs: []configDetail{}}
		for _, p := range t.Partitions.Sorted() {
			row := partitionDetail{Partition: p.Partition, Leader: p.Leader, LeaderEpoch: p.LeaderEpoch, Replicas: orEmpty(p.Replicas), ISR: orEmpty(p.ISR),
				Offline: orEmpty(p.OfflineReplicas), Start: -1, End: -1, Bytes: -1}
			if l, ok := starts.Lookup(t.Topic, p.Partition); ok && l.Err == nil {
				row.Start = l.Offset
			}
			if l, ok := ends.Lookup(t.Topic, p.Partition); ok && l.Err == nil {
				row.End = l.Offset
			}
			if n, ok := sizes[topicPartition{t.Topic, p.Partition}]; ok {
				row.Bytes = n
			}
			d.Partitions = append(d.Partitions, row)
		}
		for _, r := range configs {
			if r.Name != t.Topic {
				continue
			}
			for _, c := range r.Configs {
				if allConfigs || c.Source == kmsg.ConfigSourceDynamicTopicConfig {
					d.Configs = append(d.Configs, configDetail{c.Key, c.Value, c.Source.String()})
				}
			}
		}
		slices.SortFunc(d.Configs, func(a, b configDetail) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, d)
	}
	return out, nil
}

type topicPartition struct {
	topic     string
	partition int32
}

// sizes asks every broker what its replicas take; a broker that does not answer is left out, the rest still tells.
func (s *session) sizes(ctx context.Context, topics kadm.TopicDetails) map[topicPartition]int64 {
	out := map[topicPartition]int64{}
	dirs, err := s.admin.DescribeAllLogDirs(ctx, topics.TopicsSet())
	if err != nil {
		fmt.Fprintf(s.errs, "sizes are not all known: %v\n", err)
	}
	dirs.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
			k := topicPartition{p.Topic, p.Partition}
			out[k] = max(out[k], p.Size)
		})
	})
	return out
}

func (s *session) showTopic(d topicDetail) {
	fmt.Fprintf(s.out, "topic %s, id %s, %d partitions\n", d.Name, d.ID, len(d.Partitions))
	for _, c := range d.Configs {
		value := "(none)"
		if c.Value != nil {
			value = *c.Value
		}
		fmt.Fprintf(s.out, "  %s=%s\n", c.Name, value)
	}
	var lines [][]string
	for _, p := range d.Partitions {
		records := int64(-1)
		if p.Start >= 0 && p.End >= 0 {
			records = p.End - p.Start
		}
		lines = append(lines, []string{fmt.Sprint(p.Partition), number(int64(p.Leader)), fmt.Sprint(p.LeaderEpoch), list(p.Replicas), list(p.ISR), list(p.Offline),
			number(p.Start), number(p.End), number(records), number(p.Bytes)})
	}
	s.table("PARTITION LEADER EPOCH REPLICAS ISR OFFLINE START END RECORDS BYTES", lines)
}

func topicAlter(o *options) *cobra.Command {
	var set, unset, add, remove []string
	var dry bool
	cmd := &cobra.Command{Use: "alter TOPIC...", Short: "Change topics' configs", Args: cobra.MinimumNArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			var edits []kadm.AlterConfig
			var changed []string
			for _, group := range []struct {
				args []string
				op   kadm.IncrementalOp
			}{{set, kadm.SetConfig}, {add, kadm.AppendConfig}, {remove, kadm.SubtractConfig}} {
				values, err := pairs(group.args)
				if err != nil {
					return err
				}
				for _, name := range slices.Sorted(maps.Keys(values)) {
					changed = append(changed, name)
					edits = append(edits, kadm.AlterConfig{Op: group.op, Name: name, Value: values[name]})
				}
			}
			for _, name := range unset {
				edits = append(edits, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: name})
			}
			if len(edits) == 0 {
				return errors.New("nothing to change: give --set, --unset, --append or --subtract")
			}
			alter := s.admin.AlterTopicConfigs
			if dry {
				alter = s.admin.ValidateAlterTopicConfigs
			}
			all, err := alter(ctx, edits, names...)
			if err != nil {
				return err
			}
			s.noteInert(changed)
			var errs []error
			for _, r := range all {
				switch {
				case r.Err != nil:
					errs = append(errs, fmt.Errorf("%s: %w", r.Name, refusal(r.Err, r.ErrMessage)))
				case dry:
					fmt.Fprintf(s.errs, "%s could be altered\n", r.Name)
				default:
					fmt.Fprintf(s.errs, "%s altered\n", r.Name)
				}
			}
			return errors.Join(errs...)
		})}
	f := cmd.Flags()
	f.StringArrayVar(&set, "set", nil, "set a config, name=value; may be repeated")
	f.StringArrayVar(&unset, "unset", nil, "give a config its default again; may be repeated")
	f.StringArrayVar(&add, "append", nil, "add to a list, name=value; may be repeated")
	f.StringArrayVar(&remove, "subtract", nil, "take from a list, name=value; may be repeated")
	f.BoolVar(&dry, "dry-run", false, "only check")
	return cmd
}

func topicGrow(o *options) *cobra.Command {
	var to int
	var dry bool
	cmd := &cobra.Command{Use: "grow TOPIC... --partitions N", Short: "Give topics more partitions", Args: cobra.MinimumNArgs(1),
		Long: "Give topics more partitions. Keys then map to other partitions: the order of a key's records across the change is not kept.",
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			if to < 1 {
				return errors.New("--partitions says how many there are to be")
			}
			grow := s.admin.UpdatePartitions
			if dry {
				grow = s.admin.ValidateUpdatePartitions
			}
			all, err := grow(ctx, to, names...)
			if err != nil {
				return err
			}
			var errs []error
			for _, r := range all.Sorted() {
				switch {
				case r.Err != nil:
					errs = append(errs, fmt.Errorf("%s: %w", r.Topic, refusal(r.Err, r.ErrMessage)))
				case dry:
					fmt.Fprintf(s.errs, "%s could have %d partitions\n", r.Topic, to)
				default:
					fmt.Fprintf(s.errs, "%s has %d partitions\n", r.Topic, to)
				}
			}
			return errors.Join(errs...)
		})}
	cmd.Flags().IntVarP(&to, "partitions", "p", 0, "how many partitions the topic is to have")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only check")
	return cmd
}

func topicTrim(o *options) *cobra.Command {
	var before string
	var partitions []int32
	cmd := &cobra.Command{Use: "trim TOPIC --before POSITION", Short: "Delete a topic's oldest records", Args: cobra.ExactArgs(1), Long: "Delete a topic's oldest records, up to a position in each partition. " + positionHelp + ".",
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			if before == "" {
				return errors.New("--before says up to where")
			}
			at, err := s.resolve(ctx, names[0], before, partitions)
			if err != nil {
				return err
			}
			deleted, err := s.admin.DeleteRecords(ctx, at)
			if err != nil {
				return err
			}
			var errs []error
			var lines [][]string
			for _, r := range deleted.Sorted() {
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("%s-%d: %w", r.Topic, r.Partition, r.Err))
					continue
				}
				lines = append(lines, []string{fmt.Sprint(r.Partition), fmt.Sprint(r.LowWatermark)})
			}
			s.table("PARTITION START", lines)
			return errors.Join(errs...)
		})}
	cmd.Flags().StringVar(&before, "before", "", "records before this position go")
	cmd.Flags().Int32SliceVar(&partitions, "partition", nil, "these partitions only")
	return cmd
}

func topicDelete(o *options) *cobra.Command {
	return &cobra.Command{Use: "delete TOPIC...", Short: "Delete topics with all their records", Args: cobra.MinimumNArgs(1),
		RunE: o.run(func(ctx context.Context, s *session, names []string) error {
			all, err := s.admin.DeleteTopics(ctx, names...)
			if err != nil {
				return err
			}
			var errs []error
			for _, r := range all.Sorted() {
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", r.Topic, refusal(r.Err, r.ErrMessage)))
					continue
				}
				fmt.Fprintf(s.errs, "%s deleted\n", r.Topic)
			}
			return errors.Join(errs...)
		})}
}
