package consumer

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kbin"
)

func (m *Member) encode() []byte {
	b := kbin.AppendCompactNullableString([]byte{0, 0}, m.Instance)
	b = kbin.AppendCompactNullableString(b, m.Rack)
	b = kbin.AppendCompactString(kbin.AppendCompactString(b, m.ClientID), m.ClientHost)
	b = appendStrings(b, m.Topics)
	b = kbin.AppendCompactString(b, m.Regex)
	b = kbin.AppendInt32(b, m.RebalanceTimeout)
	b = kbin.AppendCompactNullableString(b, m.Assignor)
	if m.Classic == nil {
		return noTags(b)
	}
	return tag(b, 0, m.Classic.append(nil))
}

// append writes what a classic member brought along: a structure behind a presence byte.
func (c *Classic) append(b []byte) []byte {
	b = kbin.AppendInt32(append(b, 1), c.SessionTimeout)
	b = kbin.AppendCompactArrayLen(b, len(c.Protocols))
	for _, p := range c.Protocols {
		b = noTags(kbin.AppendCompactBytes(kbin.AppendCompactString(b, p.Name), p.Metadata))
	}
	return noTags(b)
}

func decodeMember(id string, b []byte) (*Member, error) {
	r, err := begin(b)
	if err != nil {
		return nil, err
	}
	m := &Member{ID: id, Instance: r.CompactNullableString(), Rack: r.CompactNullableString(), ClientID: r.CompactString(), ClientHost: r.CompactString(),
		Topics: readStrings(r)}
	if expression := r.CompactNullableString(); expression != nil {
		m.Regex = *expression
	}
	m.RebalanceTimeout, m.Assignor = r.Int32(), r.CompactNullableString()
	err = readTags(r, func(number uint32, v *kbin.Reader) (err error) {
		if number == 0 {
			m.Classic, err = readClassic(v)
		}
		return err
	})
	if err := errors.Join(err, complete(r)); err != nil {
		return nil, err
	}
	return m, nil
}

func readClassic(r *kbin.Reader) (*Classic, error) {
	if r.Int8() < 0 {
		return nil, complete(r)
	}
	c := &Classic{SessionTimeout: r.Int32()}
	for n := count(r, 3); n > 0 && r.Ok(); n-- {
		p := Protocol{Name: r.CompactString(), Metadata: append([]byte{}, r.CompactBytes()...)}
		if err := readTags(r, nil); err != nil {
			return nil, err
		}
		c.Protocols = append(c.Protocols, p)
	}
	return c, errors.Join(readTags(r, nil), complete(r))
}
