package cli

import "syscall"

// childAttr puts a child into a process group of its own, and lets the kernel end it should this process die without a word.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
