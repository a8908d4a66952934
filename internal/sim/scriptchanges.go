package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/vfs"
)

// Wipe kills a node, empties its disk, and starts it under the id it had. It returns once the cluster has refused it, for good.
func (s *Script) Wipe(node int32) error {
	n := s.w.nodes[node-1]
	n.wipe()
	n.boot(-1, vfs.LoseUnsynced())
	if err := s.Refused(node); err != nil {
		return err
	}
	s.w.stand(n, discarded)
	return nil
}

// Refused waits until a node that has been started was told that it is none of the cluster's.
func (s *Script) Refused(node int32) error {
	n := s.w.nodes[node-1]
	return s.until("a refusal", func() bool { return n.refused > 0 && n.proc == nil })
}

// Join starts a node more, with an empty disk, waits until it serves, and returns its id.
func (s *Script) Join() (int32, error) {
	n := s.w.addNode()
	n.boot(-1, vfs.LoseUnsynced())
	return n.id, s.until("a new node", func() bool { return n.up() && n.proc.registered })
}

// Remove asks for a node to be removed from the cluster, and returns "removed", or why not. A node that has just been stopped is asked for
// again until its stop has been noticed.
func (s *Script) Remove(node int32) (string, error) {
	n := s.w.nodes[node-1]
	out, err := s.client(func(c *client) string {
		for {
			k := c.anyNode()
			if k == nil {
				c.sleep(10 * ms)
				continue
			}
			req := kmsg.NewPtrUnregisterBrokerRequest()
			req.BrokerID = node
			got, err := k.ask(req, nil)
			k.close(errReset)
			if err != nil {
				return err.Error()
			}
			resp := got.(*kmsg.UnregisterBrokerResponse)
			code := typed(resp.ErrorCode)
			switch {
			case code == nil:
				return "removed"
			case !n.up() && strings.Contains(*resp.ErrorMessage, "is running"):
				c.sleep(50 * ms)
			default:
				return code.Message + ": " + *resp.ErrorMessage
			}
		}
	})
	if err == nil && out == "removed" && n.standing == member {
		s.w.stand(n, removed)
	}
	return out, err
}

// Quorum waits until these nodes, and no others, vote on the metadata, and returns who learns it.
func (s *Script) Quorum(nodes ...int32) (string, error) {
	return s.client(func(c *client) string {
		for {
			voters, learners, err := c.quorum()
			if err == nil && slices.Equal(voters, nodes) && !slices.Contains(learners, -1) {
				return fmt.Sprintf("learners %v", learners)
			}
			c.sleep(50 * ms)
		}
	})
}
