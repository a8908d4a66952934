package sim

import (
	"io"
	"testing"
	"time"
)

// A campaign that its time has ended says so: whoever gave it the time asks for no more.
func TestTimeEndsACampaign(t *testing.T) {
	c := Campaign{From: 1, Seeds: 1 << 40, Power: true, Cuts: 1 << 40, For: time.Nanosecond, Out: io.Discard}
	if got := c.Run(); !got.Late || got.Violations > 0 {
		t.Errorf("%+v", got)
	}
	c.For, c.Seeds = 0, 1
	if got := c.Run(); got.Late || got.Runs != 1 {
		t.Errorf("without a limit: %+v", got)
	}
}
