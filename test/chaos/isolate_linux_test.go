package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// envIsolated tells the process in the namespaces what it is, and where the server is.
const envIsolated = "CHRONIK_CHAOS_SERVER"

// notIsolated is the exit code of a process that can't set its namespaces up.
const notIsolated = 97

// isolate runs this test binary again in mount, network and process namespaces of its own, and returns its exit code. The disks it
// mounts, the links it lays and the servers it starts are gone when it ends, however it ends.
func isolate(bin string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // Pdeathsig is of the thread
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envIsolated+"="+bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.ExitCode() != notIsolated:
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// enterIsolation sets the namespaces up: nothing mounted here is seen outside, /proc is of these processes, and loopback works.
func enterIsolation() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := syscall.Mount("run", "/run", "tmpfs", 0, ""); err != nil { // ip netns keeps names there
		return fmt.Errorf("mounting /run: %w", err)
	}
	return command("ip", "link", "set", "lo", "up")
}

// command runs a system command.
func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
