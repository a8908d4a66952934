//go:build !linux

package chaos

import "net"

// ownerOf can't be told here: cuts are then of all the connections to a node.
func ownerOf(net.Addr, map[int]int) int { return 0 }
