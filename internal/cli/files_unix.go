//go:build unix

package cli

import "golang.org/x/sys/unix"

// raiseFiles raises the soft limit of open descriptors to the hard one, and returns what holds now; 0 if that is not known.
func raiseFiles() int64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	if l.Cur < l.Max {
		raised := l
		raised.Cur = l.Max
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			l = raised
		}
	}
	return int64(min(uint64(l.Cur), 1<<40)) // "unlimited" is a number, too
}
