package cleaner

import (
	"fmt"
	"time"

	"github.com/chronik-go/chronik/internal/partition"
	"github.com/chronik-go/chronik/internal/segment"
)

// Of returns a node's partitions as a Cleaner sees them.
func Of(m *partition.Manager) func() []Partition {
	return func() []Partition {
		all := m.Partitions()
		out := make([]Partition, len(all))
		for i, p := range all {
			out[i] = adapted{p}
		}
		return out
	}
}

type adapted struct{ *partition.Partition }

// Clean implements Partition.
func (a adapted) Clean(keys *segment.OffsetMap, now time.Time) (Pass, error) {
	c, err := a.Partition.Clean(keys, now)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Name implements Partition.
func (a adapted) Name() string { return fmt.Sprintf("%s-%d", a.Topic(), a.Index()) }
