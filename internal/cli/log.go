package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

func logCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "Look at a data directory's files, without a server; nothing is ever changed"}
	verify := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check every checksum in a data directory: the write-ahead log and all partitions; exit code 1 if anything is damaged",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			warnRunning(args[0], cmd.ErrOrStderr())
			return verifyDir(args[0], cmd.OutOrStdout())
		},
	}
	o := dumpOptions{}
	dump := &cobra.Command{
		Use:   "dump DIR|FILE",
		Short: "Print the records of a partition's directory or .log file (or a compacted one's .swap), or what a write-ahead log or .wal file holds",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.output != "text" && o.output != "json" {
				return fmt.Errorf("-o %s: text or json", o.output)
			}
			warnRunning(args[0], cmd.ErrOrStderr())
			o.out = cmd.OutOrStdout()
			err := o.dump(args[0])
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		},
	}
	f := dump.Flags()
	f.StringVarP(&o.output, "output", "o", "text", "text or json (one object a line)")
	f.Int64Var(&o.from, "from", 0, "the first offset; in a write-ahead log, the first raft index")
	f.IntVar(&o.most, "max", math.MaxInt, "how many lines")
	f.BoolVar(&o.batches, "batches", false, "print batch headers instead of records")
	cmd.AddCommand(verify, dump)
	return cmd
}

// warnRunning tells of a server that uses the directory: what it is writing just now may look torn.
func warnRunning(dir string, out io.Writer) {
	for range 4 {
		if (vfs.OS{}).Locked(filepath.Join(dir, "LOCK")) {
			fmt.Fprintf(out, "a server is running on %s: what it writes or recycles meanwhile may look damaged; stop it to be sure\n", dir)
			return
		}
		dir = filepath.Dir(dir)
	}
}

var errEnough = errors.New("enough")

type dumpOptions struct {
	output  string
	from    int64
	most    int
	batches bool
	out     io.Writer
}

// dump finds out what it was given.
func (o *dumpOptions) dump(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		switch filepath.Ext(path) {
		case ".log", ".swap", ".cleaned":
			return o.segment(path)
		case ".wal":
			return o.wal(filepath.Dir(path), path)
		}
		return fmt.Errorf("%s is neither a segment (.log) nor a file of the write-ahead log (.wal)", path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	var inner []string
	segments := false
	for _, e := range entries {
		switch name := filepath.Join(path, e.Name()); {
		case e.IsDir():
			inner = append(inner, name)
		case filepath.Ext(name) == ".wal":
			return o.wal(path, "")
		case filepath.Ext(name) == ".log", filepath.Ext(name) == ".swap":
			segments = true
		}
	}
	if segments {
		return o.segments(path)
	}
	if slices.ContainsFunc(inner, func(s string) bool { return filepath.Base(s) == "topics" || filepath.Base(s) == "wal" }) {
		return fmt.Errorf("%s is a whole data directory: name one partition (%s) or the write-ahead log (%s)", path, filepath.Join(path, "topics", "TOPIC", "PARTITION.GROUP"), filepath.Join(path, "wal"))
	}
	if len(inner) == 0 {
		return fmt.Errorf("%s holds neither segments nor a write-ahead log", path)
	}
	for _, name := range inner {
		if err := o.dump(name); err != nil {
			return err
		}
	}
	return nil
}

// segments prints a directory of them, as the next start will have it: a compacted one in the place of those that it was made from.
func (o *dumpOptions) segments(dir string) error {
	y, err := segment.ReadLayout(vfs.OS{}, dir, -1)
	if err != nil {
		return err
	}
	for _, s := range y.Segments {
		if s.End >= 0 && s.End <= o.from {
			continue
		}
		if err := o.segment(s.File); err != nil {
			return err
		}
	}
	return nil
}

// line prints one line, as text or as an object.
func (o *dumpOptions) line(text string, v any) error {
	if o.most <= 0 {
		return errEnough
	}
	o.most--
	if o.output == "json" {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		text = string(b)
	}
	_, err := fmt.Fprintln(o.out, text)
	return err
}

type damagedLine struct {
	File    string `json:"file"`
	Byte    int64  `json:"byte"`
	Damaged string `json:"damaged"`
}

type batchLine struct {
	Base      int64  `json:"baseOffset"`
	Last      int64  `json:"lastOffset"`
	Epoch     int32  `json:"leaderEpoch"`
	Count     int32  `json:"records"`
	Size      int    `json:"bytes"`
	Byte      int64  `json:"byte"`
	CRC       string `json:"crc"`
	Codec     string `json:"compression"`
	Producer  int64  `json:"producerId"`
	PEpoch    int16  `json:"producerEpoch"`
	Sequence  int32  `json:"baseSequence"`
	Timestamp int64  `json:"maxTimestamp"`
	Control   bool   `json:"control,omitempty"`
	Txn       bool   `json:"transactional,omitempty"`
}

type recordLine struct {
	Offset    int64             `json:"offset"`
	Timestamp int64             `json:"timestamp"`
	Key       *string           `json:"key"`
	Value     *string           `json:"value"`
	Headers   map[string]string `json:"headers,omitempty"`
}

// maxDecompressed bounds a batch's records: more than any broker takes.
const maxDecompressed = 1 << 30

func (o *dumpOptions) segment(name string) error {
	return segment.ScanFile(vfs.OS{}, name, -1, math.MaxInt64, nil, func(h record.Header, b []byte, pos int64, bad *segment.DamageError) error {
		if bad != nil {
			return o.line("DAMAGED  "+bad.Error(), damagedLine{bad.File, bad.Offset, bad.Error()})
		}
		if h.LastOffset() < o.from {
			return nil
		}
		if o.batches {
			l := batchLine{h.BaseOffset, h.LastOffset(), h.LeaderEpoch, h.Count, h.Size(), pos, fmt.Sprintf("%08x", h.CRC), h.Codec().String(),
				h.ProducerID, h.ProducerEpoch, h.BaseSequence, h.MaxTimestamp, h.IsControl(), h.IsTransactional()}
			return o.line(fmt.Sprintf("offsets %d-%d  epoch %d  %d records  %d bytes at %d  crc %s  %s  producer %d/%d sequence %d  %s",
				l.Base, l.Last, l.Epoch, l.Count, l.Size, l.Byte, l.CRC, l.Codec, l.Producer, l.PEpoch, l.Sequence, when(l.Timestamp)), l)
		}
		return record.Records(b, maxDecompressed, func(r record.Record) error {
			if h.BaseOffset+int64(r.OffsetDelta) < o.from {
				return nil
			}
			l := recordLine{Offset: h.BaseOffset + int64(r.OffsetDelta), Timestamp: r.Timestamp, Key: text(r.Key), Value: text(r.Value)}
			for _, x := range r.Headers {
				if l.Headers == nil {
					l.Headers = map[string]string{}
				}
				l.Headers[string(x.Key)] = string(x.Value)
			}
			return o.line(fmt.Sprintf("%d  %s  key %s  value %s", l.Offset, when(l.Timestamp), quoted(l.Key), quoted(l.Value)), l)
		})
	})
}

func text(b []byte) *string {
	if b == nil {
		return nil
	}
	s := string(b)
	return &s
}

func quoted(s *string) string {
	if s == nil {
		return "null"
	}
	return strconv.Quote(*s)
}

func when(ms int64) string {
	if ms < 0 {
		return "no time"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

type walLine struct {
	File   string `json:"file"`
	Byte   int64  `json:"byte"`
	Kind   string `json:"kind"`
	Group  uint64 `json:"group"`
	Number uint64 `json:"number"`
	Index  uint64 `json:"index"`
	Term   uint64 `json:"term"`
	Size   int    `json:"bytes"`
	Bad    string `json:"damaged,omitempty"`
}

// wal prints a write-ahead log's records, of one file only if that is set.
func (o *dumpOptions) wal(dir, only string) error {
	return wal.Scan(vfs.OS{}, dir, func(r wal.Record) error {
		if only != "" && filepath.Base(r.File) != filepath.Base(only) || r.Index != 0 && int64(r.Index) < o.from {
			return nil
		}
		l := walLine{r.File, r.Offset, r.Kind.String(), r.Group, r.Seq, r.Index, r.Term, r.Bytes, r.Bad}
		s := fmt.Sprintf("%s:%d  %s  group %d number %d  index %d term %d  %d bytes", filepath.Base(l.File), l.Byte, l.Kind, l.Group, l.Number, l.Index, l.Term, l.Size)
		if r.Hard != nil {
			s += fmt.Sprintf("  (term %d, vote %d, commit %d)", r.Hard.Term, r.Hard.Vote, r.Hard.Commit)
		}
		if r.Bad != "" {
			s += "  DAMAGED: " + r.Bad
		}
		return o.line(s, l)
	})
}

var errDamage = errors.New("damage was found: see above, and docs/operations.md for what to do")

// groupOf takes the group's id from a partition's directory name.
func groupOf(dir string) (partition string, group uint64) {
	partition, g, _ := strings.Cut(filepath.Base(dir), ".")
	group, _ = strconv.ParseUint(g, 10, 64)
	return partition, group
}
