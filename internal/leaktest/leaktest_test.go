package leaktest

import (
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestGoroutinesThatStayAreFoundAndThoseThatEndAreNot(t *testing.T) {
	end := make(chan struct{})
	go func() { <-end }()
	if err := settle(time.Millisecond); err == nil {
		t.Error("a goroutine that stays is not found")
	}
	time.AfterFunc(time.Second, func() { close(end) }) // longer than goleak waits
	if err := settle(time.Hour); err != nil {
		t.Error(err)
	}
}
