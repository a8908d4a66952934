package broker

import "github.com/chronik-go/chronik/internal/partition"

// LocalPartitions makes a partition.Manager what Config.Partitions wants.
func LocalPartitions(m *partition.Manager) Partitions { return localPartitions{m} }

type localPartitions struct{ m *partition.Manager }

// Lookup implements Partitions.
func (l localPartitions) Lookup(topic string, index int32) (Partition, bool) {
	p, ok := l.m.Lookup(topic, index)
	if !ok {
		return nil, false
	}
	return p, true
}

// NewPoll implements Partitions.
func (l localPartitions) NewPoll() Poll { return localPoll{partition.NewWaiter()} }

type localPoll struct{ w *partition.Waiter }

// Wait implements Poll.
func (l localPoll) Wait(p Partition, offset int64) { p.(*partition.Partition).Wait(offset, l.w) }

// C implements Poll.
func (l localPoll) C() <-chan struct{} { return l.w.C() }

// Cancel implements Poll.
func (l localPoll) Cancel() { l.w.Cancel() }
