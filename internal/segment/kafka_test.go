package segment

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/internal/vfs"
)

// testdata/kafka-4.3.1 is a partition's directory as Apache Kafka 4.3.1 left it when it was stopped: index.interval.bytes 512,
// 300 batches of franz-go, codecs in turn, timestamps not in order.
const kafkaDir = "testdata/kafka-4.3.1"

// TestAppendingKafkasBatchesMakesKafkasFiles: the same batches give the same log and the same indexes, byte for byte.
func TestAppendingKafkasBatchesMakesKafkasFiles(t *testing.T) {
	want := content(t, vfs.OS{}, kafkaDir, logExt)[fileName(0, logExt)]
	o := opener{t: t, fs: vfs.NewMem(1), dir: "/data/kafka-0", cfg: Config{IndexIntervalBytes: 512}, start: -1}
	l := o.open()
	batches := 0
	if err := record.Each(want, func(_ record.Header, b []byte) error { batches++; return l.Append(b) }); err != nil || batches != 300 {
		t.Fatal(batches, err)
	}
	l.segs[0].x.addTime() // Kafka does so when it stops, and we when the segment ends
	closeLog(t, l)
	for _, ext := range []string{logExt, indexExt, timeExt} {
		if err := same(content(t, o.fs, o.dir, ext), content(t, vfs.OS{}, kafkaDir, ext)); err != nil {
			t.Error(err)
		}
	}
	if got, want := mustRead(t, o.fs, filepath.Join(o.dir, epochFile)), mustRead(t, vfs.OS{}, filepath.Join(kafkaDir, epochFile)); !bytes.Equal(got, want) {
		t.Errorf("epochs %q, Kafka's %q", got, want)
	}
}

func TestKafkasDirectoryOpens(t *testing.T) {
	mem := vfs.NewMem(1)
	if err := mem.MkdirAll("/data/kafka-0"); err != nil {
		t.Fatal(err)
	}
	for _, ext := range []string{logExt, indexExt, timeExt, ""} {
		for name, b := range content(t, vfs.OS{}, kafkaDir, ext) {
			restore(t, mem, filepath.Join("/data/kafka-0", name), b)
		}
	}
	o := opener{t: t, fs: mem, dir: "/data/kafka-0", cfg: Config{IndexIntervalBytes: 512}, start: -1}
	l := o.open()
	defer closeLog(t, l)
	want := content(t, vfs.OS{}, kafkaDir, logExt)[fileName(0, logExt)]
	if got := readAll(t, l, 0, l.EndOffset(), 2000); l.Damage() != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), l.Damage())
	}
	recs := recordsOf(t, want)
	if int64(len(recs)) != l.EndOffset() {
		t.Fatalf("%d records, the log ends at %d", len(recs), l.EndOffset())
	}
}

func TestKafkasProducerSnapshotIsRead(t *testing.T) {
	name := filepath.Join(kafkaDir, fileName(759, snapshotExt))
	entries, err := ReadProducerSnapshot(vfs.OS{}, name)
	if err != nil || len(entries) != 5 {
		t.Fatal(entries, err)
	}
	var last int64
	for _, e := range entries {
		last = max(last, e.LastOffset)
		if e.TxnFirstOffset != -1 || e.CoordinatorEpoch != -1 || e.LastSequence < 100 || e.Timestamp < t0 {
			t.Errorf("%+v", e)
		}
	}
	if last != 758 {
		t.Errorf("last offset %d", last)
	}
	mem := vfs.NewMem(1)
	if err := WriteProducerSnapshot(mem, "/s", entries); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mustRead(t, mem, "/s"), mustRead(t, vfs.OS{}, name)) {
		t.Error("written again it has other bytes")
	}
}
