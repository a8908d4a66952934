package proxy

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// ByProcess returns a function that names the party behind a local TCP address on 127.0.0.1: the name of the process that owns the
// socket, or other. processes tells the parties' process ids.
func ByProcess(processes func() map[int]string, other string) func(netip.AddrPort) string {
	return func(addr netip.AddrPort) string {
		inode, err := socketInode(addr)
		for range 40 { // the table is read piece by piece, and what moves meanwhile (thousands of closing sockets) is passed over
			if err == nil {
				break
			}
			inode, err = socketInode(addr)
		}
		if err != nil {
			return other
		}
		for pid, name := range processes() {
			if owns(pid, inode) {
				return name
			}
		}
		return other
	}
}

// socketInode looks a local address up in /proc/net/tcp. Addresses there are in the machine's own byte order, which is little
// endian wherever this runs. The thread's network is asked for: that of the process is its first thread's, which may have gone to
// another and stayed there.
func socketInode(addr netip.AddrPort) (string, error) {
	f, err := os.Open("/proc/thread-self/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	ip := addr.Addr().Unmap().As4()
	want := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], addr.Port())
	for s := bufio.NewScanner(f); s.Scan(); {
		if field := strings.Fields(s.Text()); len(field) > 9 && field[1] == want {
			return field[9], nil
		}
	}
	return "", fmt.Errorf("no socket %v", addr)
}

func owns(pid int, inode string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended
	}
	for _, fd := range fds {
		if link, err := os.Readlink(dir + "/" + fd.Name()); err == nil && link == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
