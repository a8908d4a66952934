// Package freeport gives tests ports to run servers on.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// claims holds the lock files of the ports that this process has been given, until it ends.
var claims struct {
	mu    sync.Mutex
	files []*os.File
}

// Ports finds n ports that nobody listens on, below those that the kernel gives to outgoing connections: while a server is
// down its peers and clients dial its port, and one of those dials could otherwise take it. A port belongs to this process
// until it ends: go test runs packages side by side, and a port whose server has been killed for a while is still taken.
func Ports(n int) ([]int, error) {
	var ports []int
	for len(ports) < n {
		run, err := Run(1)
		if err != nil {
			return nil, err
		}
		ports = append(ports, run...)
	}
	return ports, nil
}

// Run is Ports with n ports in a row.
func Run(n int) ([]int, error) {
	dir := filepath.Join(os.TempDir(), "chronik-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	claims.mu.Lock()
	defer claims.mu.Unlock()
	for range 1000 {
		ports, err := claimRun(dir, 12000+rand.IntN(20000-n), n)
		if err != nil || ports != nil {
			return ports, err
		}
	}
	return nil, fmt.Errorf("no %d free ports in a row between 12000 and 32000", n)
}

// claimRun claims n ports from base on; nil if one of them is taken. What it has claimed until then stays claimed: it is not
// worth giving back.
func claimRun(dir string, base, n int) ([]int, error) {
	var ports []int
	for port := base; port < base+n; port++ {
		f, err := claim(filepath.Join(dir, fmt.Sprint(port)))
		if f == nil {
			return nil, err
		}
		claims.files = append(claims.files, f)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return nil, nil
		}
		l.Close()
		ports = append(ports, port)
	}
	return ports, nil
}

// claim locks a port's file; nil: another process, or this one, has it. The kernel lets go of the lock when the process ends,
// however it does.
func claim(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	return f, nil
}
