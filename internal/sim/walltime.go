package sim

import (
	"time"
	"unsafe"
)

// reading makes a time.Time as time.Now returns it: with a wall clock that may have jumped, and a monotonic one that has not. What
// the code under test compares and subtracts goes by the one, what it writes down by the other, as in production; package time
// offers no way to make such a value, so its layout (unchanged since Go 1.9) is written here. TestReadingsAreWhatTimeNowGives
// fails if it ever changes.
func reading(wall time.Time, mono time.Duration) time.Time {
	const (
		hasMonotonic = 1 << 63
		nsecShift    = 30
		day          = 24 * 60 * 60
		// Seconds from 1885 to 1970: where the wall part begins.
		since1885 = (1969*365 + 1969/4 - 1969/100 + 1969/400 - (1884*365 + 1884/4 - 1884/100 + 1884/400)) * day
	)
	t := time.Unix(0, 0)
	raw := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	raw.wall = hasMonotonic | uint64(wall.Unix()+since1885)<<nsecShift | uint64(wall.Nanosecond())
	raw.ext = int64(mono) + 1
	return t
}
