package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// diskBytes is the size of a machine's disk: what the server keeps free, its reserve, a small log and a run's records.
const diskBytes = 1 << 30

// mountDisk gives a machine a disk of its own at dir: ext4 in a file.
func mountDisk(dir string) error {
	image := dir + ".ext4"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	err = f.Truncate(diskBytes)
	if err := errors.Join(err, f.Close(), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	if err := command("mkfs.ext4", "-q", "-m", "0", image); err != nil {
		return err
	}
	return command("mount", "-o", "loop", image, dir)
}

// unmountDisk waits for the kernel to have closed what processes held open that have just been killed.
func unmountDisk(dir string) error {
	err := command("umount", dir)
	for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); err = command("umount", dir) {
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(err, os.Remove(dir+".ext4"))
}

var fullDisk = kind{name: "full disk", alone: true, do: func(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	var st unix.Statfs_t
	if err := unix.Statfs(m.node.Dir, &st); err != nil {
		return false, err
	}
	free := int64(st.Bavail) * st.Bsize
	left := int64(40+s.bits%160) << 20 // below what the server keeps free
	if left > free {
		return false, fmt.Errorf("node %d's disk has %d MiB free before it is filled", m.node.ID, free>>20)
	}
	hog := filepath.Join(m.node.Dir, "lost+found", "hog")
	f, err := os.Create(hog)
	if err != nil {
		return false, err
	}
	err = syscall.Fallocate(int(f.Fd()), 0, 0, free-left)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	noticed := r.awaitMetric(ctx, m, "chronik_disk_writable 0")
	rest(ctx, s.wait)
	if s.bits>>32&1 == 1 { // dies on the full disk, and has to come up on it
		m.node.Kill()
		if err := r.launch(m); err != nil {
			return true, err
		}
		if err := r.awaitReady(ctx, m); err != nil {
			return true, fmt.Errorf("on a full disk: %w", err)
		}
	}
	if err := os.Remove(hog); err != nil {
		return true, err
	}
	if noticed != nil {
		return true, fmt.Errorf("node %d does not refuse writes with %d MiB left: %w", m.node.ID, left>>20, noticed)
	}
	if err := r.awaitMetric(ctx, m, "chronik_disk_writable 1"); err != nil {
		return true, fmt.Errorf("node %d does not take writes again: %w", m.node.ID, err)
	}
	return true, nil
}}

// traces says why strace can't be used here, nil if it can.
func traces() error {
	return command("strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1", "true")
}

// failedSync lets syncs of a running node fail, one on each thread. The node must end with a code and say why; what it had
// acknowledged is on the disk.
var failedSync = kind{name: "failed fsync", alone: true, do: func(ctx context.Context, r *run, s shot) (bool, error) {
	m := r.machines[s.a]
	seen := filepath.Join(r.dir, fmt.Sprintf("strace-%d", m.node.PID()))
	m.node.Expect()
	cmd := exec.Command("strace", "-f", "-qq", "-o", seen, "-e", "trace=fsync,fdatasync", "-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", 1+s.bits%4),
		"-p", fmt.Sprint(m.node.PID()))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return false, err
	}
	end, cancel := context.WithTimeout(ctx, recovers)
	defer cancel()
	err := m.node.Ended(end)
	if end.Err() != nil {
		_ = cmd.Process.Signal(syscall.SIGINT) // it lets go of the node
	}
	_ = cmd.Wait() // its exit code is the node's, or tells of the signal
	log, readErr := os.ReadFile(seen)
	if readErr != nil {
		return false, fmt.Errorf("%w: strace says %q", readErr, said.String())
	}
	if !bytes.Contains(log, []byte("(INJECTED)")) {
		m.node.Kill()
		return false, errors.Join(err, r.launch(m))
	}
	if end.Err() != nil {
		m.node.Kill()
		return true, fmt.Errorf("node %d goes on after a failed fsync:\n%s", m.node.ID, m.node.Tail())
	}
	lines := strings.Split(strings.TrimSpace(m.node.Tail()), "\n")
	if last := lines[len(lines)-1]; m.node.ExitCode() != 1 || !strings.Contains(last, "input/output error") || !strings.Contains(last, "can't go on") {
		return true, fmt.Errorf("node %d ended with code %d after a failed fsync, and its last line is %q", m.node.ID, m.node.ExitCode(), last)
	}
	rest(ctx, s.wait/2)
	return true, r.launch(m)
}}
