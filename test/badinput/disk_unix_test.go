//go:build unix

package badinput

import (
	"syscall"
	"testing"
)

// freeOn is what is free on a disk, in MiB.
func freeOn(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * int64(st.Bsize) >> 20
}
