package harness

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

// FreePorts finds n ports that nobody listens on, below those that the kernel gives to outgoing connections: while a server is
// down its peers and clients dial its port, and one of those dials could otherwise take it. A port belongs to this process
// until it ends: go test runs packages side by side, and a port whose server has been killed for a while is still taken.
func FreePorts(n int) ([]int, error) {
	dir := filepath.Join(os.TempDir(), "chronik-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	claims.mu.Lock()
	defer claims.mu.Unlock()
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		if tries > 1000 {
			return nil, errors.New("no free ports between 12000 and 32000")
		}
		port := 12000 + rand.IntN(20000)
		f, err := claim(filepath.Join(dir, fmt.Sprint(port)))
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		claims.files = append(claims.files, f)
		l, err := net.Listen("tcp", addr(port))
		if err != nil {
			continue
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
