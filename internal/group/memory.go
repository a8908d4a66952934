package group

// What groups take beside what clients send, about, in bytes: a group, a member with its session, an offset, an id that was handed out.
const (
	groupBytes    = 1 << 10
	memberBytes   = 512
	offsetBytes   = 192
	promisedBytes = 256
)

// memory is about what the group takes, in bytes. It is counted from what the parts keep up to date: it costs nothing to ask.
func (g *group) memory() int {
	n := groupBytes + g.offsetBytes + g.classic.bytes + memberBytes*len(g.classic.members) + promisedBytes*len(g.classic.promised)
	if g.consumer != nil {
		n += g.consumer.state.Bytes() + memberBytes*g.consumer.state.Size()
	}
	return n
}

func offsetSize(tp topicPartition, o *offset) int {
	return offsetBytes + len(tp.topic) + len(o.metadata)
}

// recount brings up to date what the group counts for in the node's sum. It is called after whatever may have changed it; what is
// missed is made good the next time, and a group that goes takes with it what it counted for.
func (s *shard) recount(g *group) {
	if s.groups[g.id] != g {
		return
	}
	now := g.memory()
	s.weigh(now - g.counted)
	g.counted = now
}

// discard takes a group out of the shard.
func (s *shard) discard(g *group) {
	if s.groups[g.id] != g {
		return
	}
	delete(s.groups, g.id)
	s.weigh(-g.counted)
	g.counted = 0
}

func (s *shard) weigh(by int) {
	s.counted += by
	s.c.used.Add(int64(by))
}

// Memory returns about what the groups coordinated here take, in bytes.
func (c *Coordinator) Memory() int64 { return c.used.Load() }

// room is how much more the groups of this node may take. What is in the log already is loaded whatever it takes.
func (c *Coordinator) room() int { return int(max(c.cfg.Limits.Bytes-c.used.Load(), 0)) }
