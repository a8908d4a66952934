package group

// group is one group of whatever type, and its offsets.
type group struct {
	id string
	// classic is the group under the classic protocol, or what a group is that has only offsets.
	classic *classicGroup
	// consumer is the group under the consumer protocol, nil if it is not one. While it is there classic is empty.
	consumer *consumerGroup
	offsets  map[topicPartition]*offset
	// offsetBytes is about what they take, counted what the group has counted for in the node's sum: see memory.
	offsetBytes, counted int
	pending              int      // commits and changes of a consumer group under way
	quiet                []func() // called, with mu, once none are under way
	// deleting: its tombstones are on their way. Nothing may be added to it.
	deleting bool
}

// Types of groups.
const (
	TypeClassic  = "classic"
	TypeConsumer = "consumer"
)

// unused says that nothing is known of the group but offsets, if those.
func (g *group) unused() bool { return g.consumer == nil && g.classic.unused() }

// deletable says that nobody is or comes in.
func (g *group) deletable() bool {
	if g.consumer != nil {
		return !g.consumer.busy()
	}
	return g.classic.deletable()
}

// listed is the group as it is listed.
func (g *group) listed() Listed {
	if g.consumer != nil {
		return Listed{g.id, consumerProtocol, g.consumer.state.State(), TypeConsumer}
	}
	return Listed{g.id, g.classic.protocolType, g.classic.state.String(), TypeClassic}
}

// mayCommit says whether a commit is one of the group's; a classic member's counts as a sign of life.
func (s *shard) mayCommit(g *group, req *CommitRequest) error {
	if g.consumer == nil {
		return s.classicMayCommit(g, req)
	}
	return s.consumerMayCommit(g, req)
}

// mayDeleteOffsets says why offsets can't be deleted, whatever topic; nil if they can.
func (g *group) mayDeleteOffsets() error {
	if g.consumer != nil {
		return nil
	}
	return g.classic.mayDeleteOffsets()
}

// subscribes says whether a member may want the topic.
func (g *group) subscribes(topic string) bool {
	if g.consumer != nil {
		return g.consumer.state.Subscribes(topic)
	}
	return g.classic.subscribes(topic)
}

// unusedSince tells since when (ms since 1970) nobody has had a use for a topic's offset; ok is false while somebody has.
func (g *group) unusedSince() func(topic string, o *offset) (since int64, ok bool) {
	if g.consumer == nil {
		return g.classic.unusedSince
	}
	subscribed := g.consumer.state.Subscribed()
	return func(topic string, o *offset) (int64, bool) { return o.committed, !subscribed[topic] }
}
