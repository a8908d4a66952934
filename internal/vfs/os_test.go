package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A vector longer than the kernel takes in one call, with empty buffers in it, arrives whole and in order.
func TestOSWriteVecAtLongerThanIovMax(t *testing.T) {
	f, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bufs [][]byte
	var want []byte
	for i := range 2600 {
		b := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, i%4)
		bufs = append(bufs, b)
		want = append(want, b...)
	}
	n, err := f.WriteVecAt(bufs, 100)
	if err != nil || n != len(want) {
		t.Fatalf("WriteVecAt = %d, %v; want %d, nil", n, err, len(want))
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 100); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read back differs (err %v)", err)
	}
}

// A system call racing Close either happens on the right file or reports fs.ErrClosed: never on a reused descriptor.
func TestOSCloseDuringVectoredWrite(t *testing.T) {
	dir := t.TempDir()
	for range 50 {
		f, err := OS{}.Create(filepath.Join(dir, "a"))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := f.WriteVecAt([][]byte{[]byte("stray")}, 0); err != nil {
					if !errors.Is(err, fs.ErrClosed) {
						t.Errorf("write after close: %v", err)
					}
					return
				}
			}
		})
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		g, err := OS{}.Create(filepath.Join(dir, "b"))
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if n, err := g.Size(); n != 0 || err != nil {
			t.Fatalf("the other file has %d bytes (%v)", n, err)
		}
		g.Close()
	}
}

// A failing device is reported, not swallowed: /dev/full is Linux's full disk.
func TestOSWriteErrorsSurface(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full here")
	}
	f, err := OS{}.OpenReadWrite("/dev/full")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.WriteVecAt([][]byte{[]byte("x")}, 0); err == nil || n != 0 {
		t.Fatalf("WriteVecAt = %d, %v; want an error", n, err)
	}
	if err := f.SyncData(); err == nil {
		t.Fatal("SyncData of a device that cannot sync returned nil")
	}
}
