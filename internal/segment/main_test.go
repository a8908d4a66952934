package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/leaktest"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

const t0 = int64(1_700_000_000_000)

// small makes segments and index intervals that a test fills quickly.
var small = Config{SegmentBytes: 8 << 10, IndexIntervalBytes: 300}

type opener struct {
	t     testing.TB
	fs    vfs.FS
	dir   string
	cfg   Config
	start int64
}

func onDisk(t testing.TB, cfg Config) opener {
	return opener{t: t, fs: vfs.OS{}, dir: filepath.Join(t.TempDir(), "topic-0"), cfg: cfg, start: -1}
}

func (o opener) open() *Log {
	o.t.Helper()
	l, err := Open(NewFiles(o.fs, 64), clock.System{}, o.dir, o.cfg, o.start, quiet)
	if err != nil {
		o.t.Fatal(err)
	}
	return l
}

// built holds the batches that batchAt made: tests with many seeds ask for the same ones, and compressors are slow to make.
var built sync.Map // of batchKey to []byte

type batchKey struct {
	base    int64
	epoch   int32
	n, size int
	codec   record.Codec
}

// batchAt builds a batch of n records of about size bytes in all. Timestamps grow with the offset, but not steadily. The
// result is the caller's.
func batchAt(t testing.TB, base int64, epoch int32, n, size int, codec record.Codec) []byte {
	t.Helper()
	key := batchKey{base, epoch, n, size, codec}
	b, ok := built.Load(key)
	if !ok {
		b, _ = built.LoadOrStore(key, buildAt(t, base, epoch, n, size, codec))
	}
	return bytes.Clone(b.([]byte))
}

func buildAt(t testing.TB, base int64, epoch int32, n, size int, codec record.Codec) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(base), 7))
	b := record.NewBuilder()
	b.BaseOffset, b.LeaderEpoch, b.Codec = base, epoch, codec
	for i := range n {
		v := make([]byte, max(1, size/n-10))
		for j := range v {
			v[j] = byte(rng.Uint32())
		}
		b.Add(t0+10*(base+int64(i))+int64(rng.IntN(25)), fmt.Appendf(nil, "k%d", base+int64(i)), v)
	}
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fill appends count batches of varying size, one to four records each, and returns all their bytes.
func fill(t testing.TB, l *Log, count int, epoch int32) []byte {
	t.Helper()
	var all []byte
	for i := range count {
		end := l.EndOffset()
		b := batchAt(t, end, epoch, 1+int(end+int64(i))%4, 80+int(end*37)%300, record.Codec(end%5))
		if err := l.Append(b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

// readAll reads [from, limit) as a consumer does.
func readAll(t testing.TB, l *Log, from, limit int64, maxBytes int) []byte {
	t.Helper()
	var all []byte
	for from < limit {
		b, err := l.ReadChecked(from, limit, maxBytes, nil)
		if err != nil {
			t.Fatalf("read at %d: %v", from, err)
		}
		if len(b) == 0 {
			break
		}
		if err := record.Each(b, func(h record.Header, _ []byte) error {
			if h.BaseOffset > from {
				return fmt.Errorf("batch at %d, wanted %d", h.BaseOffset, from)
			}
			from = h.LastOffset() + 1
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func flush(t testing.TB, l *Log) int64 {
	t.Helper()
	end, err := l.Flush()
	if err != nil {
		t.Fatal(err)
	}
	return end
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// content returns the bytes of every file of one kind, by name.
func content(t testing.TB, fsys vfs.FS, dir, ext string) map[string][]byte {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		if filepath.Ext(name) != ext {
			continue
		}
		if out[name], err = readFile(fsys, filepath.Join(dir, name), 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func same(a, b map[string][]byte) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d files and %d", len(a), len(b))
	}
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			return fmt.Errorf("%s differs: %d and %d bytes", name, len(a[name]), len(b[name]))
		}
	}
	return nil
}

func wantOffsetError(t *testing.T, err error, start, end int64) {
	t.Helper()
	var oe *OffsetError
	if !errors.As(err, &oe) || oe.Start != start || oe.End != end {
		t.Fatalf("%v, want outside [%d, %d)", err, start, end)
	}
}

// latestEpoch returns the leader epoch of the last batch, -1 in a log that never had one.
func (l *Log) latestEpoch() int32 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.epochs) == 0 {
		return -1
	}
	return l.epochs[len(l.epochs)-1].epoch
}
