package partition

import (
	"fmt"

	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/wal"
)

// NewHost makes a Host of a node's log and raft service.
func NewHost(svc *multiraft.Service, log *wal.Log) Host { return &host{svc: svc, log: log} }

type host struct {
	svc *multiraft.Service
	log *wal.Log
}

// Checkpoint implements Host.
func (h *host) Checkpoint(group uint64) (wal.Checkpoint, bool, error) {
	if h.log.Removed(group) {
		return wal.Checkpoint{}, false, fmt.Errorf("%w: group %d was removed", ErrUnknownPartition, group)
	}
	if g := h.log.Group(group); g != nil {
		return g.Checkpoint(), true, nil
	}
	return wal.Checkpoint{}, false, nil
}

// Create implements Host. It does not wait: what the group writes later comes behind it in the same log.
func (h *host) Create(group uint64, cp wal.Checkpoint) error {
	_, err := h.log.Create(group, cp, nil)
	return err
}

// Register implements Host.
func (h *host) Register(o Registration) (Replica, error) {
	return h.svc.Register(multiraft.RegisterOptions{
		Topic: o.Topic, Partition: o.Partition, Group: o.Group, Replica: o.Replica, Log: o.Log,
		Members: o.Members, SM: o.SM, Campaign: o.Campaign, Unfit: o.Unfit,
	})
}

// Unregister implements Host.
func (h *host) Unregister(topic string, partition int32, done func()) error {
	return h.svc.Unregister(topic, partition, done)
}

// Remove implements Host.
func (h *host) Remove(group uint64, done func(error)) { h.log.Remove(group, done) }
