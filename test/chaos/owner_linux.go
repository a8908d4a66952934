package chaos

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// ownerOf tells which of some processes has a loopback connection's other end: the kernel lists each socket with its port and inode, and
// a process's descriptors name the inodes. 0: none of them.
func ownerOf(remote net.Addr, pids map[int]int) int {
	inode := inodeOf(remote.(*net.TCPAddr).Port)
	if inode == "" {
		return 0
	}
	for id, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		names, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, n := range names {
			if to, err := os.Readlink(dir + "/" + n.Name()); err == nil && to == "socket:["+inode+"]" {
				return id
			}
		}
	}
	return 0
}

// inodeOf finds the socket that is bound to a loopback port and connected.
func inodeOf(port int) string {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return ""
	}
	defer f.Close()
	local := fmt.Sprintf("0100007F:%04X", port)
	for in := bufio.NewScanner(f); in.Scan(); {
		fields := strings.Fields(in.Text())
		if len(fields) > 9 && fields[1] == local && fields[9] != "0" {
			if _, err := strconv.ParseUint(fields[9], 10, 64); err == nil {
				return fields[9]
			}
		}
	}
	return ""
}
