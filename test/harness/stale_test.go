package harness

import (
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// The ancestor's tests passed against a broker that an earlier run had left. What answers at a node's addresses before the node
// is started is somebody else's, however ready it says it is.
func TestAStaleServerIsNotTakenForOurs(t *testing.T) {
	bin, err := os.Executable() // never started
	if err != nil {
		t.Fatal(err)
	}
	for _, which := range []string{"kafka", "raft", "admin"} {
		t.Run(which, func(t *testing.T) {
			c, err := New(bin, t.TempDir(), 3, "-test.run=^$") // of three: a node alone has no address for peers
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Stop)
			n := c.Nodes[0]
			l, err := net.Listen("tcp", map[string]string{"kafka": n.Kafka, "raft": n.Raft, "admin": n.Admin}[which])
			if err != nil {
				t.Fatal(err)
			}
			stale := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Second}
			served := make(chan struct{})
			go func() { defer close(served); _ = stale.Serve(l) }()
			t.Cleanup(func() { stale.Close(); <-served })
			if err := n.Start(); err == nil {
				t.Errorf("a server that was there before is taken for the one started: ready %v", n.AwaitReady(t.Context()))
			}
		})
	}
}
