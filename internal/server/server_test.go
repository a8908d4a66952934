package server

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// asking is a grower.
type asking func(n int64) error

func (f asking) grow(n int64) error { return f(n) }

// A claimed frame is charged, and allocated, only as its bytes arrive.
func TestClaimAloneIsNotAllocated(t *testing.T) {
	var charged int64
	_, err := readFrame(bytes.NewReader(make([]byte, 10)), 100<<20, asking(func(n int64) error { charged += n; return nil }))
	if !errors.Is(err, io.ErrUnexpectedEOF) || charged != firstBytes {
		t.Fatalf("%v, %d bytes charged for 10 that came", err, charged)
	}
}

func TestFrameGrowsToItsSize(t *testing.T) {
	for _, size := range []int{8, firstBytes, firstBytes + 1, 5 << 20} {
		want := bytes.Repeat([]byte{7}, size)
		var charged int64
		got, err := readFrame(bytes.NewReader(want), size, asking(func(n int64) error { charged += n; return nil }))
		if err != nil || !bytes.Equal(got, want) || charged != int64(size) {
			t.Fatalf("%d: %v, %d charged", size, err, charged)
		}
	}
}

func TestFrameSizeIsCheckedFirst(t *testing.T) {
	for _, p := range [][4]byte{{0, 0, 0, 7}, {0xff, 0xff, 0xff, 0xff}, {0x06, 0x40, 0, 1}} {
		if _, err := frameSize(p, 100<<20); !errors.Is(err, ErrFrame) {
			t.Errorf("%x: %v", p, err)
		}
	}
}
