// Package leaktest finds goroutines that a package's tests leave behind.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines that nobody waits for (a fake's answer, the end of a client library's connection) have to end after the
// last test. What leaks is there for good; goleak's own fraction of a second is too little on a busy machine.
const patience = 30 * time.Second

// Main runs a package's tests as its TestMain, and fails if they leave goroutines behind.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := settle(patience); err != nil {
			fmt.Fprintln(os.Stderr, "leaktest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// settle waits until there is no goroutine but its caller's, and returns those that are there after a while.
func settle(patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; {
		err := goleak.Find()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
