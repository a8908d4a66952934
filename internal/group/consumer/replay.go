package consumer

// Replay takes a record of the log; a nil value is a tombstone.
func (g *Group) Replay(k Key, value []byte) error {
	switch k.Kind {
	case kindGroup:
		if value == nil {
			*g = *New(g.ID)
			return nil
		}
		epoch, hash, err := decodeGroup(value)
		if err == nil {
			g.epoch, g.hash, g.written = epoch, hash, true
		}
		return err
	case kindMember:
		return replay(k.Name, value, decodeMember, func(m *Member, ok bool) { g.setMember(k.Name, m) })
	case kindTargetEpoch:
		if value == nil {
			g.targetEpoch, g.computed = 0, 0
			return nil
		}
		epoch, time, err := decodeTargetEpoch(value)
		if err == nil {
			g.targetEpoch, g.computed = epoch, time
		}
		return err
	case kindTarget:
		return replay(k.Name, value, func(_ string, b []byte) (Assignment, error) { return decodeTarget(b) },
			func(a Assignment, ok bool) { g.setTarget(k.Name, a, ok) })
	case kindCurrent:
		return replay(k.Name, value, func(_ string, b []byte) (*Current, error) { return decodeCurrent(b) },
			func(c *Current, ok bool) { g.setCurrent(k.Name, c) })
	case kindRegex:
		return replay(k.Name, value, func(_ string, b []byte) (*Resolved, error) { return decodeResolved(b) },
			func(r *Resolved, ok bool) { g.setResolved(k.Name, r) })
	}
	return nil // kindTopics: what it says is in the metadata
}

// replay decodes a value, if there is one, and puts it where it belongs.
func replay[T any](name string, value []byte, decode func(name string, b []byte) (T, error), put func(v T, ok bool)) error {
	var v T
	if value == nil {
		put(v, false)
		return nil
	}
	v, err := decode(name, value)
	if err == nil {
		put(v, true)
	}
	return err
}

func decodeTargetEpoch(b []byte) (epoch int32, time int64, err error) { return decodeEpoch(b) }

// Loaded ends a replay. A coordinator may have died between two batches of one change: what is not whole begins a new epoch.
func (g *Group) Loaded() {
	if len(g.members) > 0 && !g.written {
		g.dirty = true
	}
	for _, id := range g.ids {
		if g.current[id] == nil {
			g.dirty = true
		}
	}
	for _, id := range sortedKeys(g.current) {
		if g.members[id] == nil {
			g.setCurrent(id, nil) // nobody is left to give it back
		}
	}
	for _, id := range sortedKeys(g.target) {
		if g.members[id] == nil {
			g.setTarget(id, nil, false)
		}
	}
}
