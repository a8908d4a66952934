package segment

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// offsetEntryBytes is the memory of one entry: 16 bytes of a key's hash, and an offset.
const offsetEntryBytes = 24

// OffsetMap tells the latest offset of each key in a part of a log. Its memory is bounded by what it was made with: when it is full it
// says so, and what does not fit waits for another pass. It is not safe for concurrent use.
//
// A key is known by the first 16 bytes of SHA-256 over it and a secret of the process. Of two keys with the same hash, one would be
// taken for an older record of the other, and lost. By accident that has a chance of n²/2¹²⁹ for n keys (10⁻²⁰ for a billion), and
// since nobody outside knows the secret it cannot be brought about on purpose, as it can with Kafka's MD5. (Nothing but the place of
// an entry in the table depends on the secret, so a simulation repeats all the same.)
type OffsetMap struct {
	most    int // entries
	entries []offsetEntry
	n, room int
	secret  [16]byte
	buf     []byte
	undo    []undoEntry // since Mark
}

// undoEntry is what an entry was before a Put.
type undoEntry struct {
	i  int
	at int64
}

type offsetEntry struct {
	key [16]byte
	at  int64 // offset + 1; 0: free
}

// NewOffsetMap returns a map that takes at most about the given bytes of memory, and none before it is used.
func NewOffsetMap(bytes int64) *OffsetMap {
	m := &OffsetMap{most: int(max(bytes/offsetEntryBytes, 16))}
	_, _ = rand.Read(m.secret[:]) // never fails
	return m
}

// Reset empties the map and makes room for n keys, as far as the bound allows.
func (m *OffsetMap) Reset(n int64) {
	size := int(min(int64(m.most), max(n, 12)+max(n, 12)/3+1))
	if size <= cap(m.entries) {
		m.entries = m.entries[:size]
		clear(m.entries)
	} else {
		m.entries = make([]offsetEntry, size)
	}
	m.n, m.room = 0, size*3/4
}

// Release gives the memory back.
func (m *OffsetMap) Release() { m.entries, m.undo, m.n, m.room = nil, nil, 0, 0 }

// Bytes returns the memory that the map takes now.
func (m *OffsetMap) Bytes() int64 { return int64(cap(m.entries)) * offsetEntryBytes }

// Len returns how many keys are in the map.
func (m *OffsetMap) Len() int { return m.n }

// Put notes that a key's latest offset is this, which is above all before. It returns false, and does nothing, if the key is new and
// the map is full.
func (m *OffsetMap) Put(key []byte, offset int64) bool {
	i, ok := m.find(key)
	if !ok {
		if m.n >= m.room {
			return false
		}
		m.n++
	}
	m.undo = append(m.undo, undoEntry{i, m.entries[i].at})
	m.entries[i].at = offset + 1
	return true
}

// Mark begins what Rollback takes back.
func (m *OffsetMap) Mark() { m.undo = m.undo[:0] }

// Rollback takes back every Put since Mark. Newest first, which leaves the table as it was: an entry's place depends on older ones alone.
func (m *OffsetMap) Rollback() {
	for j := len(m.undo) - 1; j >= 0; j-- {
		u := m.undo[j]
		if m.entries[u.i].at = u.at; u.at == 0 {
			m.n--
		}
	}
	m.undo = m.undo[:0]
}

// Get returns the latest offset of a key.
func (m *OffsetMap) Get(key []byte) (offset int64, ok bool) {
	if m.n == 0 {
		return 0, false
	}
	i, ok := m.find(key)
	return m.entries[i].at - 1, ok
}

// find returns the place of a key's entry, or of the free one where it goes. There always is one: the table is never more than three quarters full.
func (m *OffsetMap) find(key []byte) (i int, ok bool) {
	m.buf = append(append(m.buf[:0], m.secret[:]...), key...)
	sum := sha256.Sum256(m.buf)
	hash := [16]byte(sum[:16])
	// Multiply and shift instead of a division: the table has any size.
	i = int((binary.LittleEndian.Uint64(hash[:]) >> 32) * uint64(len(m.entries)) >> 32)
	for {
		e := &m.entries[i]
		if e.at == 0 {
			e.key = hash
			return i, false
		}
		if e.key == hash {
			return i, true
		}
		if i++; i == len(m.entries) {
			i = 0
		}
	}
}
