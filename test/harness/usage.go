package harness

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what processes have used so far.
type Usage struct {
	CPU     time.Duration
	RSS     int64 // bytes now
	PeakRSS int64
}

// UsageOf adds up the processes, from /proc (Linux).
func UsageOf(pids ...int) (Usage, error) {
	var u Usage
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return u, err
		}
		// The command's name may hold blanks: fields are counted after its closing parenthesis.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{11, 12} { // utime, stime
			ticks, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return u, err
			}
			u.CPU += time.Duration(ticks) * (time.Second / 100)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return u, err
		}
		for _, line := range strings.Split(string(status), "\n") {
			name, value, _ := strings.Cut(line, ":")
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				continue
			}
			switch name {
			case "VmRSS":
				u.RSS += kb << 10
			case "VmHWM":
				u.PeakRSS += kb << 10
			}
		}
	}
	return u, nil
}
