package multiraft

import (
	"errors"
	"testing"
)

// A configuration takes effect once it is known to be committed, and a commit index alone is not written to disk. So a change of replicas that
// has ended can be forgotten by everybody at once, with the power, and the replicas that left are needed again. Once Confirm has
// said so that can't be: they may be deleted (simulator, seed 3324). It is shown with an ordinary entry: of a change each replica
// that has heard of its end writes that down (keepCommit), and Confirm is about a majority, whoever has heard.
func TestAConfirmedConfigurationSurvivesThePowerOfAll(t *testing.T) {
	for _, confirm := range []bool{false, true} {
		c := newCluster(t, 3)
		l := c.leader()
		c.mustPropose(l, "first")
		c.tick(3)
		done := func(what string, start func(func(error))) {
			t.Helper()
			var err error
			ended := false
			start(func(e error) { ended, err = true, e })
			for range 30 {
				if c.tick(1); ended {
					break
				}
			}
			if !ended || err != nil {
				t.Fatalf("%s: ended %v, %v", what, ended, err)
			}
		}
		c.mustPropose(l, "second")
		c.tick(3)
		index := c.replica(l).AppliedIndex()
		if confirm {
			done("confirming it", c.replica(l).Confirm)
		}
		for _, id := range c.order {
			c.kill(id)
		}
		known := 0
		for _, id := range c.order {
			c.restart(id)
			if c.nodes[id].log.Group(testGroup).HardState().Commit >= index {
				known++
			}
		}
		if confirm && known < 2 || !confirm && known > 0 {
			t.Errorf("confirmed %v: after the power has failed %d of 3 replicas know that index %d is committed", confirm, known, index)
		}
		for _, id := range c.order {
			c.stop(id)
		}
	}
}

// Who does not lead can't confirm anything, nor who has lost the others.
func TestOnlyALeaderWithAQuorumConfirms(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	var err error
	ended := false
	f := c.others(l)[0]
	c.replica(f).Confirm(func(e error) { ended, err = true, e })
	c.tick(1)
	if !ended || !errors.Is(err, ErrNotLeader) {
		t.Errorf("a follower: ended %v, %v", ended, err)
	}
	for _, id := range c.others(l) {
		c.kill(id)
	}
	ended, err = false, nil
	c.replica(l).Confirm(func(e error) { ended, err = true, e })
	for i := 0; i < 200 && !ended; i++ {
		c.tick(1)
	}
	if ended && err == nil {
		t.Error("a leader that is alone has confirmed something")
	}
}
