package segment

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/chronik-go/chronik/internal/vfs"
)

func TestProducerSnapshotsRoundTripAndAreChecked(t *testing.T) {
	fsys := vfs.OS{}
	name := t.TempDir() + "/" + ProducerSnapshotName(42)
	want := []ProducerEntry{{1, 2, 3, 4, 5, 6, 7, 8}, {1 << 40, -1, -1, -1, 0, t0, -1, -1}}
	for _, entries := range [][]ProducerEntry{want, {}} {
		if err := WriteProducerSnapshot(fsys, name, entries); err != nil {
			t.Fatal(err)
		}
		got, err := ReadProducerSnapshot(fsys, name)
		if err != nil || len(got) != len(entries) {
			t.Fatal(got, err)
		}
		for i := range got {
			if got[i] != entries[i] {
				t.Fatalf("%+v", got[i])
			}
		}
	}
	if err := WriteProducerSnapshot(fsys, name, want); err != nil {
		t.Fatal(err)
	}
	raw := mustRead(t, fsys, name)
	var damaged *DamageError
	for i := range raw {
		bad := append([]byte{}, raw...)
		bad[i] ^= 1
		overwrite(t, fsys, name, 0, bad)
		if _, err := ReadProducerSnapshot(fsys, name); !errors.As(err, &damaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	if _, err := ReadProducerSnapshot(fsys, name+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
