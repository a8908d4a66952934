package sim

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// keeper uses a group without being a member: it commits offsets, looks at them, has some removed, or the whole group, and leaves them
// alone until they expire. Now and then it tries to do that to a group that has members.
type keeper struct {
	*groupMember
	at int64
}

func (w *world) newKeepers() {
	for i := range w.set.keepers {
		parts := w.model.parts[:min(2, len(w.model.parts))]
		g := w.newGroup(fmt.Sprint("kept", i), parts)
		g.passing = true
		k := &keeper{groupMember: &groupMember{g: g, name: "keeper", generation: -1, session: w.set.session, rebalance: w.set.rebalance}}
		for _, p := range parts {
			k.owned = append(k.owned, &ownedPart{consumer: &consumer{part: p}, placed: true})
		}
		k.client = w.newClient("keeper", func(*client) { k.run() })
	}
}

func (k *keeper) run() {
	w := k.w
	for slices.Contains(w.made, false) {
		k.sleep(50 * ms)
	}
	for !w.ending {
		k.sleep(k.between(20*ms, 300*ms))
		if k.conn == nil || k.conn.broken {
			k.conn = nil
			k.find()
			continue
		}
		switch k.rng.IntN(12) {
		case 0:
			if w.set.retention < w.set.chaos {
				k.sleep(k.between(w.set.retention, 2*w.set.retention))
			}
		case 1:
			_, _ = k.removeGroup(k.g)
		case 2:
			_, _ = k.removeOffset(k.g, k.owned[k.rng.IntN(len(k.owned))].part)
		case 3:
			k.trouble()
		case 4, 5, 6:
			k.look(k.g.parts)
		default:
			k.keep()
		}
	}
	k.hangUp()
}

// keep commits a later offset than ever.
func (k *keeper) keep() {
	k.at++
	for _, o := range k.owned {
		o.at = k.at
	}
	k.commit()
}

// trouble asks for a group to be removed that has members, or for an offset which they use.
func (k *keeper) trouble() {
	groups := k.w.groupLogs.groups
	g := groups[k.rng.IntN(len(groups))]
	if g.passing {
		return
	}
	t := &keeper{groupMember: &groupMember{client: k.client, g: g, name: k.name, generation: -1}}
	if t.find(); t.conn == nil {
		return
	}
	if k.rng.IntN(2) == 0 {
		_, _ = t.removeGroup(g)
	} else {
		_, _ = t.removeOffset(g, g.parts[k.rng.IntN(len(g.parts))])
	}
	t.hangUp()
}

// removeGroup has a group deleted.
func (k *keeper) removeGroup(g *consumerGroup) (*kerr.Error, error) {
	req := kmsg.NewPtrDeleteGroupsRequest()
	req.SetVersion(2)
	req.Groups = []string{g.name}
	r := g.beginRemoval(nil)
	return k.removes("delete a group", r, req, func(resp kmsg.Response) int16 { return resp.(*kmsg.DeleteGroupsResponse).Groups[0].ErrorCode })
}

// removeOffset has one partition's offset deleted.
func (k *keeper) removeOffset(g *consumerGroup, part *partModel) (*kerr.Error, error) {
	req := kmsg.NewPtrOffsetDeleteRequest()
	req.Group = g.name
	t := kmsg.NewOffsetDeleteRequestTopic()
	p := kmsg.NewOffsetDeleteRequestTopicPartition()
	t.Topic, p.Partition = part.topic, part.index
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	r := g.beginRemoval(part)
	return k.removes("delete an offset", r, req, func(resp kmsg.Response) int16 {
		o := resp.(*kmsg.OffsetDeleteResponse)
		if o.ErrorCode != 0 {
			return o.ErrorCode
		}
		return o.Topics[0].Partitions[0].ErrorCode
	})
}

// removes sends a removal, and notes what came of it.
func (k *keeper) removes(what string, r *removal, req kmsg.Request, code func(kmsg.Response) int16) (*kerr.Error, error) {
	resp, err := k.conn.ask(req, func(resp kmsg.Response) {
		switch typed(code(resp)) {
		case nil:
			k.g.carriedOut(r)
		case kerr.NonEmptyGroup, kerr.GroupIDNotFound, kerr.GroupSubscribedToTopic, kerr.CoordinatorLoadInProgress, kerr.InvalidGroupID:
			r.refused = true
		}
	})
	if err != nil {
		k.hangUp()
		return nil, err
	}
	e := typed(code(resp))
	k.w.counts[what+": "+text(e)]++
	switch e {
	case nil, kerr.NonEmptyGroup, kerr.GroupIDNotFound, kerr.GroupSubscribedToTopic, kerr.CoordinatorLoadInProgress:
	case kerr.NotCoordinator, kerr.CoordinatorNotAvailable:
		k.hangUp()
	default:
		k.w.fail("%s: to %s: %v", k.g.name, what, e)
	}
	return e, nil
}
