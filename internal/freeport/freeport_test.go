package freeport

import "testing"

// A port is given once, also while nobody listens on it: a server that is down between a kill and a restart must find its port
// free.
func TestPortsAreGivenOnce(t *testing.T) {
	seen := map[int]bool{}
	for range 8 {
		ports, err := Ports(100)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if seen[p] {
				t.Fatalf("port %d was given twice", p)
			}
			seen[p] = true
		}
	}
}
