package proxy

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// ByProcess returns a function that names the party that connected from client to server, both on 127.0.0.1: the name of the process
// that owns the socket, or other. processes tells the parties' process ids.
func ByProcess(processes func() map[int]string, other string) func(client, server netip.AddrPort) string {
	return func(client, server netip.AddrPort) string {
		inode, err := socketInode(client, server)
		for range 40 { // the table is read piece by piece, and what moves meanwhile (thousands of closing sockets) is passed over
			if err == nil {
				break
			}
			inode, err = socketInode(client, server)
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

// socketInode looks a connection up in /proc/net/tcp by both its ends: the local one alone may be that of other connections too, to
// other servers, or that one closed a minute ago. Addresses there are in the machine's own byte order, which is little endian
// wherever this runs. The thread's network is asked for: that of the process is its first thread's, which may have gone to another
// and stayed there.
func socketInode(local, remote netip.AddrPort) (string, error) {
	f, err := os.Open("/proc/thread-self/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	from, to := hex(local), hex(remote)
	for s := bufio.NewScanner(f); s.Scan(); {
		if field := strings.Fields(s.Text()); len(field) > 9 && field[1] == from && field[2] == to {
			return field[9], nil
		}
	}
	return "", fmt.Errorf("no connection from %v to %v", local, remote)
}

func hex(addr netip.AddrPort) string {
	ip := addr.Addr().Unmap().As4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], addr.Port())
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
