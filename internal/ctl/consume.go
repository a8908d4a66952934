package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

type consuming struct {
	*options
	topics     []string
	group      string
	from       string
	count      int
	untilEnd   bool
	verbose    bool
	partitions []int32
}

func consumeCommand() *cobra.Command {
	c := &consuming{options: &options{}}
	cmd := connected(&cobra.Command{Use: "consume TOPIC...", Short: "Read records and print them", Args: cobra.MinimumNArgs(1),
		Long: "Read records and print their values, a line each, until Ctrl-C, --count or --until-end. With --group offsets are committed and partitions shared with the group's other members. --from places the beginning. " + positionHelp + ".",
		RunE: func(cmd *cobra.Command, args []string) error {
			c.topics = args
			return c.run(cmd)
		}}, c.options)
	f := cmd.Flags()
	f.StringVarP(&c.group, "group", "g", "", "read as a member of this consumer group")
	f.StringVar(&c.from, "from", "", "where to begin: default start; a group begins at its committed offsets, and takes start or end where it has none")
	f.IntVarP(&c.count, "count", "n", 0, "stop after so many records")
	f.BoolVarP(&c.untilEnd, "until-end", "e", false, "stop at what was the end when the command began")
	f.BoolVarP(&c.verbose, "verbose", "v", false, "partition, offset, time, key and headers too")
	f.Int32SliceVarP(&c.partitions, "partition", "p", nil, "these partitions only (not with --group)")
	return cmd
}

func (c *consuming) groupOptions() ([]kgo.Opt, error) {
	if c.group == "" {
		return nil, nil
	}
	switch {
	case len(c.partitions) > 0:
		return nil, errors.New("--partition does not go with --group: the group assigns partitions")
	case c.untilEnd:
		return nil, errors.New("--until-end does not go with --group: other members may read the rest; use --count")
	}
	reset := kgo.NewOffset().AtStart()
	switch c.from {
	case "", "start":
	case "end":
		reset = kgo.NewOffset().AtEnd()
	default:
		return nil, errors.New("with --group, --from is start or end; move the group itself with: chronik group seek")
	}
	return []kgo.Opt{kgo.ConsumerGroup(c.group), kgo.ConsumeTopics(c.topics...), kgo.ConsumeResetOffset(reset), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll()}, nil
}

func (c *consuming) run(cmd *cobra.Command) error {
	opts, err := c.groupOptions()
	if err != nil {
		return err
	}
	s, ctx, done, err := c.open(cmd, true, opts...)
	if err != nil {
		return err
	}
	defer done()
	r := &reader{c: c, s: s, unsaved: map[topicPartition]*kgo.Record{}}
	if c.group == "" {
		if err := r.assign(ctx); err != nil {
			return err
		}
	}
	err = r.loop(ctx)
	if c.group != "" {
		// What was printed is committed, also after Ctrl-C; leaving tells the others at once.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
		defer cancel()
		err = errors.Join(err, r.commit(last))
		s.client.AllowRebalance()
		err = errors.Join(err, s.client.LeaveGroupContext(last))
	}
	return err
}

// reader prints records.
type reader struct {
	c       *consuming
	s       *session
	printed int
	ends    map[topicPartition]int64 // until-end: partitions not read to their end yet
	// unsaved are the last records printed for a group, by partition, that it has not committed.
	unsaved map[topicPartition]*kgo.Record
}

// commit commits, for the group, what was printed since the last time.
func (r *reader) commit(ctx context.Context) error {
	if len(r.unsaved) == 0 {
		return nil
	}
	if err := r.s.client.CommitRecords(ctx, slices.Collect(maps.Values(r.unsaved))...); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	clear(r.unsaved)
	return nil
}

// assign begins to read partitions where --from says.
func (r *reader) assign(ctx context.Context) error {
	c, s := r.c, r.s
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	from := c.from
	if from == "" {
		from = "start"
	}
	r.ends = map[topicPartition]int64{}
	assigned := map[string]map[int32]kgo.Offset{}
	for _, topic := range c.topics {
		at, err := s.resolve(limited, topic, from, c.partitions)
		if err != nil {
			return err
		}
		end, err := s.resolve(limited, topic, "end", c.partitions)
		if err != nil {
			return err
		}
		assigned[topic] = map[int32]kgo.Offset{}
		at.Each(func(o kadm.Offset) {
			assigned[topic][o.Partition] = kgo.NewOffset().At(o.At)
			if e, ok := end.Lookup(topic, o.Partition); ok && e.At > o.At {
				r.ends[topicPartition{topic, o.Partition}] = e.At
			}
		})
	}
	s.client.AddConsumePartitions(assigned)
	return nil
}

func (r *reader) loop(ctx context.Context) error {
	for !r.finished() {
		fetches := r.s.client.PollRecords(ctx, 10_000)
		if ctx.Err() != nil {
			return nil // Ctrl-C
		}
		for _, e := range fetches.Errors() {
			return fmt.Errorf("%s-%d: %w", e.Topic, e.Partition, e.Err)
		}
		for it := fetches.RecordIter(); !it.Done() && !r.finished(); {
			rec := it.Next()
			if err := r.print(rec); err != nil {
				return err
			}
			if r.c.group != "" {
				r.unsaved[topicPartition{rec.Topic, rec.Partition}] = rec
			}
		}
		if r.c.group != "" {
			if err := r.commit(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			r.s.client.AllowRebalance()
		}
	}
	return nil
}

func (r *reader) finished() bool {
	return r.c.count > 0 && r.printed >= r.c.count || r.c.untilEnd && len(r.ends) == 0
}

// recordJSON is a record for programs. Bytes that are no UTF-8 are in base64 beside a null text.
type recordJSON struct {
	Topic     string       `json:"topic"`
	Partition int32        `json:"partition"`
	Offset    int64        `json:"offset"`
	Timestamp time.Time    `json:"timestamp"`
	Key       *string      `json:"key"`
	KeyBytes  []byte       `json:"key_base64,omitempty"`
	Value     *string      `json:"value"`
	Bytes     []byte       `json:"value_base64,omitempty"`
	Headers   []headerJSON `json:"headers,omitempty"`
}

type headerJSON struct {
	Name  string  `json:"name"`
	Value *string `json:"value"`
	Bytes []byte  `json:"value_base64,omitempty"`
}

func text(b []byte) (*string, []byte) {
	switch {
	case b == nil:
		return nil, nil
	case utf8.Valid(b):
		s := string(b)
		return &s, nil
	}
	return nil, b
}

func (r *reader) print(rec *kgo.Record) error {
	if end, ok := r.ends[topicPartition{rec.Topic, rec.Partition}]; ok && rec.Offset >= end-1 {
		delete(r.ends, topicPartition{rec.Topic, rec.Partition})
		if rec.Offset >= end && r.c.untilEnd {
			return nil
		}
	} else if !ok && r.c.untilEnd {
		return nil // written since the command began
	}
	r.printed++
	switch {
	case r.s.output == "json":
		j := recordJSON{Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Timestamp: rec.Timestamp.UTC()}
		j.Key, j.KeyBytes = text(rec.Key)
		j.Value, j.Bytes = text(rec.Value)
		for _, h := range rec.Headers {
			hj := headerJSON{Name: h.Key}
			hj.Value, hj.Bytes = text(h.Value)
			j.Headers = append(j.Headers, hj)
		}
		return json.NewEncoder(r.s.out).Encode(j)
	case r.c.verbose:
		var headers []string
		for _, h := range rec.Headers {
			headers = append(headers, fmt.Sprintf("%s=%s", h.Key, h.Value))
		}
		_, err := fmt.Fprintf(r.s.out, "%s-%d@%d\t%s\t%s\t%s\t%s\n", rec.Topic, rec.Partition, rec.Offset, rec.Timestamp.UTC().Format(time.RFC3339Nano),
			orDash(string(rec.Key)), orDash(strings.Join(headers, ",")), rec.Value)
		return err
	}
	_, err := r.s.out.Write(append(rec.Value, '\n'))
	return err
}
