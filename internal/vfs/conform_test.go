package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// errnoOf is what callers can match: two file systems agree on an error if they agree on it.
func errnoOf(err error) string {
	var en syscall.Errno
	switch {
	case err == nil:
		return "nil"
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, fs.ErrClosed):
		return "closed"
	case errors.Is(err, ErrLocked):
		return "locked"
	case errors.Is(err, fs.ErrNotExist):
		return "not exist"
	case errors.As(err, &en):
		return fmt.Sprintf("errno %d", int(en))
	}
	return err.Error()
}

// twin carries out each operation on the operating system's file system and on a Mem, and compares what a caller sees.
type twin struct {
	t       *testing.T
	root    string
	os, mem FS
	files   map[int][2]File
	next    int
	log     []string
}

func (w *twin) check(what string, a, b string) {
	w.t.Helper()
	w.log = append(w.log, what+" -> "+a)
	if a != b {
		w.t.Fatalf("%s: the operating system says %q, Mem says %q\nhistory:\n%s", what, a, b, strings.Join(w.log, "\n"))
	}
}

func (w *twin) both(what string, fn func(fsys FS, root string) string) {
	w.t.Helper()
	w.check(what, fn(w.os, w.root), fn(w.mem, "/"))
}

func (w *twin) open(what, name string, fn func(FS, string) (File, error)) {
	w.t.Helper()
	a, ea := fn(w.os, filepath.Join(w.root, name))
	b, eb := fn(w.mem, name)
	w.check(what+" "+name, errnoOf(ea), errnoOf(eb))
	if ea == nil {
		w.files[w.next] = [2]File{a, b}
		w.next++
	}
}

func (w *twin) file(what string, id int, fn func(File) string) {
	w.t.Helper()
	f := w.files[id]
	w.check(fmt.Sprintf("%s of handle %d", what, id), fn(f[0]), fn(f[1]))
}

// tree describes everything under root.
func tree(t *testing.T, fsys FS, root string) string {
	t.Helper()
	var b strings.Builder
	var walk func(dir, rel string)
	walk = func(dir, rel string) {
		names, err := fsys.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			p := filepath.Join(dir, n)
			fi, err := fsys.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if fi.IsDir {
				fmt.Fprintf(&b, "%s/%s/\n", rel, n)
				walk(p, rel+"/"+n)
				continue
			}
			data, err := ReadFile(fsys, p, 1<<20)
			if err != nil || int64(len(data)) != fi.Size {
				t.Fatalf("read %s: %d bytes of %d, %v", p, len(data), fi.Size, err)
			}
			fmt.Fprintf(&b, "%s/%s %x\n", rel, n, data)
		}
	}
	walk(root, "")
	return b.String()
}

// Without faults and power cuts, Mem is a file system like the machine's own, down to the errors.
func TestMemBehavesLikeTheOperatingSystem(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			w := &twin{t: t, root: t.TempDir(), os: OS{}, mem: NewMem(seed), files: map[int][2]File{}}
			defer func() {
				for _, f := range w.files {
					f[0].Close()
				}
			}()
			for range 500 {
				w.step(r)
			}
			w.check("tree", tree(t, w.os, w.root), tree(t, w.mem, "/"))
		})
	}
}

func (w *twin) step(r *rand.Rand) {
	w.t.Helper()
	paths := []string{"a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "g", "g/a", "g/d", "x/y/z"}
	name, other := paths[r.IntN(len(paths))], paths[r.IntN(len(paths))]
	at := func(fn func(FS, string) error) func(FS, string) string {
		return func(fsys FS, root string) string { return errnoOf(fn(fsys, filepath.Join(root, name))) }
	}
	switch r.IntN(14) {
	case 0, 1:
		if len(w.files) < 100 {
			w.open("create", name, FS.Create)
		}
	case 2:
		if fi, err := w.os.Stat(filepath.Join(w.root, name)); err != nil || !fi.IsDir { // OS lets a directory be opened
			w.open("open", name, FS.Open)
		}
	case 3:
		w.open("open rw", name, FS.OpenReadWrite)
	case 4:
		w.both("remove "+name, at(FS.Remove))
	case 5:
		if r.IntN(3) == 0 {
			w.both("remove all "+name, at(FS.RemoveAll))
		}
	case 6, 7:
		w.both("rename "+name+" "+other, func(fsys FS, root string) string {
			return errnoOf(fsys.Rename(filepath.Join(root, name), filepath.Join(root, other)))
		})
	case 8:
		w.both("mkdir "+name, at(FS.MkdirAll))
	case 9:
		w.both("sync dir "+name, func(fsys FS, root string) string {
			if fi, err := fsys.Stat(filepath.Join(root, name)); err == nil && !fi.IsDir {
				return "a file" // OS would sync the file
			}
			return errnoOf(fsys.SyncDir(filepath.Join(root, name)))
		})
	case 10:
		w.both("list", func(fsys FS, root string) string {
			names, err := fsys.List(filepath.Join(root, name))
			return fmt.Sprint(names, errnoOf(err))
		})
	default:
		if w.next > 0 {
			w.fileStep(r, r.IntN(w.next))
		}
	}
}

func (w *twin) fileStep(r *rand.Rand, id int) {
	w.t.Helper()
	off, n := int64(r.IntN(9000)), r.IntN(6000)
	switch r.IntN(9) {
	case 0, 1, 2:
		b := make([]byte, n)
		if r.IntN(3) > 0 {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		w.file(fmt.Sprintf("write %d at %d", n, off), id, func(f File) string {
			n, err := f.WriteAt(b, off)
			return fmt.Sprint(n, errnoOf(err))
		})
	case 3:
		parts := [][]byte{bytes.Repeat([]byte{1}, n/3), nil, bytes.Repeat([]byte{2}, n/2), {3}}
		w.file("writev", id, func(f File) string {
			bufs := slices.Clone(parts)
			n, err := f.WriteVecAt(bufs, off)
			return fmt.Sprint(n, errnoOf(err), bufs) // what becomes of bufs, too: nobody may rely on it with one of them
		})
	case 4:
		w.file("truncate", id, func(f File) string { return errnoOf(f.Truncate(off)) })
	case 5:
		w.file("sync", id, func(f File) string { return errnoOf(f.Sync()) + errnoOf(f.SyncData()) })
	case 6:
		w.file("writeback", id, func(f File) string { return errnoOf(f.StartWriteback(off, int64(n))) })
	case 7:
		if r.IntN(4) == 0 {
			w.file("close", id, func(f File) string { return errnoOf(f.Close()) })
		}
	case 8:
		w.file("read", id, func(f File) string {
			b := make([]byte, n)
			n, err := f.ReadAt(b, off)
			size, serr := f.Size()
			return fmt.Sprintf("%x %s %d %s", b[:n], errnoOf(err), size, errnoOf(serr))
		})
	}
}

// What both promise beyond the random walk.
func TestFileSystemsConform(t *testing.T) {
	for _, c := range []struct {
		name string
		fsys FS
		root string
	}{{"os", OS{}, t.TempDir()}, {"mem", NewMem(1), "/"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Run("lock", func(t *testing.T) { conformLock(t, c.fsys, c.root) })
			t.Run("handles", func(t *testing.T) { conformHandles(t, c.fsys, c.root) })
			t.Run("free space", func(t *testing.T) {
				if n, err := c.fsys.FreeSpace(c.root); err != nil || n == 0 {
					t.Errorf("FreeSpace = %d, %v", n, err)
				}
				free, _ := c.fsys.FreeSpace(c.root)
				if total, err := c.fsys.TotalSpace(c.root); err != nil || total < free {
					t.Errorf("TotalSpace = %d, %v with %d free", total, err, free)
				}
				if _, err := c.fsys.TotalSpace(filepath.Join(c.root, "none")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("TotalSpace of a missing directory: %v", err)
				}
				if _, err := c.fsys.FreeSpace(filepath.Join(c.root, "none")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("FreeSpace of a missing directory: %v", err)
				}
			})
		})
	}
}

func conformLock(t *testing.T, fsys FS, root string) {
	name := filepath.Join(root, "LOCK")
	l, err := fsys.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Lock(name); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second Lock: %v, want ErrLocked", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l2, err := fsys.Lock(name)
	if err != nil {
		t.Fatalf("Lock after release: %v", err)
	}
	if err := l.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Close: %v, want fs.ErrClosed", err)
	}
	if _, err := fsys.Lock(name); !errors.Is(err, ErrLocked) {
		t.Errorf("closing a released lock twice released another's: %v", err)
	}
	if err := l2.Close(); err != nil {
		t.Error(err)
	}
	if _, err := fsys.Lock(filepath.Join(root, "none", "LOCK")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lock in a missing directory: %v", err)
	}
}

func conformHandles(t *testing.T, fsys FS, root string) {
	name := filepath.Join(root, "f")
	w, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := r.WriteAt([]byte("no"), 0); err == nil || n != 0 {
		t.Errorf("write through a read-only handle: %d, %v", n, err)
	}
	if _, err := r.WriteVecAt([][]byte{[]byte("no")}, 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("vectored write through a read-only handle: %v", err)
	}
	if err := r.Truncate(0); err == nil {
		t.Error("truncated through a read-only handle")
	}
	if _, err := w.WriteAt([]byte("x"), -1); err == nil {
		t.Error("write at a negative offset")
	}
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("read at a negative offset")
	}
	if err := fsys.Remove(name); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 9)
	if n, err := r.ReadAt(b, 0); string(b[:n]) != "kept" || !errors.Is(err, io.EOF) {
		t.Errorf("a removed file reads %q, %v through its handle", b[:n], err)
	}
	if r.Name() != name {
		t.Errorf("Name = %q, want %q", r.Name(), name)
	}
	for _, f := range []File{w, r} {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		_, rerr := f.ReadAt(b, 0)
		_, werr := f.WriteAt(b, 0)
		_, verr := f.WriteVecAt([][]byte{b}, 0)
		_, serr := f.Size()
		for i, err := range []error{rerr, werr, verr, serr, f.Sync(), f.SyncData(), f.Truncate(0), f.StartWriteback(0, 1), f.Close()} {
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("operation %d on a closed file: %v, want fs.ErrClosed", i, err)
			}
		}
	}
}
