package sim

import (
	"slices"
	"testing"
)

func TestFaultNumbersAreReadAsWritten(t *testing.T) {
	for _, keep := range [][]int{{}, {0}, {3, 17, 40}} {
		got, err := ParseFaults(FormatFaults(keep))
		if err != nil || !slices.Equal(got, keep) {
			t.Errorf("%v became %v, %v", keep, got, err)
		}
	}
	for _, bad := range []string{"", "x", "1,,2", "-1"} {
		if got, err := ParseFaults(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

// A failure that takes two of many faults is shrunk to the two.
func TestShrinkingFindsTheFaultsItTakes(t *testing.T) {
	ran := 0
	keep, used := shrink(37, 500, func(only []int) bool {
		ran++
		return slices.Contains(only, 5) && slices.Contains(only, 30)
	})
	if !slices.Equal(keep, []int{5, 30}) || used != ran {
		t.Errorf("kept %v after %d runs, said to be %d", keep, ran, used)
	}
	if keep, _ := shrink(10, 500, func([]int) bool { return true }); len(keep) != 0 {
		t.Errorf("kept %v of faults that do not matter", keep)
	}
	if keep, used := shrink(16, 3, func(only []int) bool { return slices.Contains(only, 15) }); used > 3 || !slices.Contains(keep, 15) {
		t.Errorf("kept %v after %d runs of 3", keep, used)
	}
}
