package partition

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/chronik-go/chronik/internal/segment"
	"github.com/chronik-go/chronik/internal/vfs"
)

// Damage is a range of offsets that this replica cannot serve, [From, To).
//
// The raft log is not concerned: votes, terms and entries are in the write-ahead log, whose damage is another matter (it fences
// the replica). So the replica goes on voting, appending and applying; it serves nothing out of the range, keeps out of the
// leadership as long as somebody else can have it, across restarts too, and fetches the range anew from another replica.
type Damage struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Diverged: the bytes are sound in themselves, and not the ones that the other replicas hold. Then nothing of the partition is
	// served from here until they are replaced.
	Diverged bool `json:"diverged,omitempty"`
	// Rough: how far the damage goes has yet to be read.
	Rough  bool   `json:"rough,omitempty"`
	File   string `json:"file"`
	Byte   int64  `json:"byte"`
	Reason string `json:"reason"`
}

// DamageError says that records can't be read because they are damaged here. It matches ErrStorage and ErrDamaged.
type DamageError struct {
	Topic     string
	Partition int32
	Damage    Damage
}

// Error implements error.
func (e *DamageError) Error() string {
	d := &e.Damage
	if d.Diverged {
		return fmt.Sprintf("%s-%d: this replica's offsets %d to %d differ from the other replicas'; it serves nothing until it has fetched them anew", e.Topic, e.Partition, d.From, d.To-1)
	}
	return fmt.Sprintf("%s-%d: offsets %d to %d can't be read: %s is damaged at byte %d (%s); it is mended from another replica, where there is one",
		e.Topic, e.Partition, d.From, d.To-1, d.File, d.Byte, d.Reason)
}

// Is matches ErrStorage and ErrDamaged.
func (e *DamageError) Is(target error) bool { return target == ErrStorage || target == ErrDamaged }

// health is what is known to be wrong with a partition's records.
type health struct {
	damage []Damage // ascending, apart from each other
	marked bool     // the mark on disk says as much
}

// Damage returns what is known to be damaged here.
func (p *Partition) Damage() []Damage {
	p.hurtMu.Lock()
	defer p.hurtMu.Unlock()
	return slices.Clone(p.hurt.damage)
}

// Report takes damage that somebody found. What is known already changes nothing. It takes effect on reads at once; the mark that
// outlives a restart and the repair are the manager's step's.
func (p *Partition) Report(found ...Damage) {
	news := false
	p.hurtMu.Lock()
	for _, d := range found {
		if d.From >= d.To || p.hurt.covers(d) {
			continue
		}
		news = true
		p.hurt.add(d)
		p.m.stats.found.Add(1)
		p.logger.Error("records are damaged on this node: they are not served from here, and fetched anew from another replica", "from", d.From, "to", d.To,
			"file", d.File, "byte", d.Byte, "reason", d.Reason, "diverged", d.Diverged)
	}
	if news {
		p.hurt.marked = false
		p.publishHealth()
	}
	p.hurtMu.Unlock()
	if !news {
		return
	}
	if r := p.raft(); r != nil {
		r.SetUnfit(true)
	}
	p.wakeAll()
	p.m.enqueue(p, taskRepair)
}

// publishHealth is called with hurtMu held.
func (p *Partition) publishHealth() {
	diverged := slices.ContainsFunc(p.hurt.damage, func(d Damage) bool { return d.Diverged })
	p.diverged.Store(diverged)
	p.unfit.Store(len(p.hurt.damage) > 0)
}

func (h *health) covers(d Damage) bool {
	return slices.ContainsFunc(h.damage, func(x Damage) bool {
		return x.From <= d.From && d.To <= x.To && (x.Diverged || !d.Diverged) && (d.Rough || !x.Rough)
	})
}

// add keeps the ranges apart: what was rough or overlaps gives way, joined, to what is known better.
func (h *health) add(d Damage) {
	keep := h.damage[:0:0]
	for _, x := range h.damage {
		if x.To <= d.From || d.To <= x.From {
			keep = append(keep, x)
			continue
		}
		d.From, d.To = min(d.From, x.From), max(d.To, x.To)
		d.Diverged, d.Rough = d.Diverged || x.Diverged, d.Rough || x.Rough
	}
	h.damage = append(keep, d)
	slices.SortFunc(h.damage, func(a, b Damage) int { return cmp.Compare(a.From, b.From) })
}

// remove takes [from, to) out of the ranges.
func (h *health) remove(from, to int64) {
	var out []Damage
	for _, d := range h.damage {
		left, right := d, d
		left.To, right.From = min(d.To, from), max(d.From, to)
		if left.From < left.To {
			out = append(out, left)
		}
		if right.From < right.To {
			out = append(out, right)
		}
	}
	h.damage = out
}

// at returns the damage at offset, and where the next damage above it begins (limit if there is none below that).
func (p *Partition) damageAt(offset, limit int64) (at *Damage, sound int64) {
	if !p.unfit.Load() {
		return nil, limit
	}
	p.hurtMu.Lock()
	defer p.hurtMu.Unlock()
	for _, d := range p.hurt.damage {
		if d.From <= offset && offset < d.To {
			return &d, offset
		}
		if d.From > offset {
			return nil, min(limit, d.From)
		}
	}
	return nil, limit
}

// distrusted says why nothing at all may be read here: the replica's bytes are not the group's.
func (p *Partition) distrusted() error {
	if !p.diverged.Load() {
		return nil
	}
	p.hurtMu.Lock()
	defer p.hurtMu.Unlock()
	for _, d := range p.hurt.damage {
		if d.Diverged {
			return &DamageError{Topic: p.topic, Partition: p.index, Damage: d}
		}
	}
	return nil
}

// readBatches reads committed batches of which it is known that they are what was written: every CRC is checked, and nothing that is
// known to be damaged is touched. What it meets on the way is reported.
func (p *Partition) readBatches(offset, limit int64, maxBytes int, buf []byte) (b []byte, err error) {
	damage, sound := p.damageAt(offset, limit)
	if damage != nil {
		return nil, &DamageError{Topic: p.topic, Partition: p.index, Damage: *damage}
	}
	err = p.withLog(func(l *segment.Log) (err error) {
		b, err = l.ReadChecked(offset, sound, maxBytes, buf)
		return err
	})
	if err == nil && len(b) == 0 && sound < limit {
		// A batch that reaches into the damage, or a gap that compaction left in front of it.
		if d, _ := p.damageAt(sound, limit); d != nil {
			return nil, &DamageError{Topic: p.topic, Partition: p.index, Damage: *d}
		}
	}
	return b, p.noticed(offset, err)
}

// noticed reports damage that a read at offset met.
func (p *Partition) noticed(offset int64, err error) error {
	var d *segment.DamageError
	if !errors.As(err, &d) {
		return err
	}
	if offset < 0 { // of a search: somewhere in that file
		offset = p.logStart.Load()
		if base, ok := segment.BaseOffset(d.File); ok {
			offset = max(offset, base)
		}
	}
	found := Damage{From: offset, To: offset + 1, Rough: true, File: d.File, Byte: d.Offset, Reason: reasonOf(d)}
	p.Report(found)
	return &DamageError{Topic: p.topic, Partition: p.index, Damage: found}
}

func reasonOf(d *segment.DamageError) string {
	if d.Err != nil {
		return d.Reason + ": " + d.Err.Error()
	}
	return d.Reason
}

func damageOfLost(x segment.Lost) Damage {
	return Damage{From: x.From, To: x.To, File: x.File, Byte: x.Offset, Reason: x.Reason}
}

// The mark: a file beside the segments that says what is known to be damaged, so that a restart knows it too. JSON, a newline, and the
// CRC-32C of the JSON in hex.
const (
	markName     = "damage.mark"
	maxMarkBytes = 16 << 20
)

type mark struct {
	Version int      `json:"version"`
	Damage  []Damage `json:"damage"`
}

// saveMark makes the mark say what is known, durably; without damage it goes.
func (p *Partition) saveMark() error {
	p.hurtMu.Lock()
	if p.hurt.marked {
		p.hurtMu.Unlock()
		return nil
	}
	m := mark{Version: 1, Damage: slices.Clone(p.hurt.damage)}
	p.hurtMu.Unlock()
	dir := p.genDir(p.generation)
	if err := writeMark(p.m.cfg.FS, dir, m); err != nil {
		return err
	}
	p.hurtMu.Lock()
	p.hurt.marked = slices.Equal(p.hurt.damage, m.Damage)
	p.hurtMu.Unlock()
	return nil
}

func writeMark(fs vfs.FS, dir string, m mark) error {
	name := filepath.Join(dir, markName)
	if len(m.Damage) == 0 {
		if err := fs.Remove(name); err != nil && !isNotExist(err) {
			return err
		}
		return fs.SyncDir(dir)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b = fmt.Appendf(b, "\n%08x\n", crc32.Checksum(b, castagnoli))
	return vfs.WriteFileAtomic(fs, name, b)
}

// Marked returns what the mark in a directory of segments says is damaged, for tools; all of it is in doubt if the mark can't be read.
func Marked(fs vfs.FS, dir string) ([]Damage, error) { return readMark(fs, dir, 0, math.MaxInt64) }

// readMark returns what a mark says. One that can't be read says that something is damaged, and not what: then all of the log
// is in doubt until it has been read.
func readMark(fs vfs.FS, dir string, start, end int64) ([]Damage, error) {
	name := filepath.Join(dir, markName)
	b, err := vfs.ReadFile(fs, name, maxMarkBytes)
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, sum, _ := bytes.Cut(b, []byte("\n"))
	crc, err := strconv.ParseUint(string(bytes.TrimSpace(sum)), 16, 32)
	var m mark
	if err == nil && uint32(crc) == crc32.Checksum(text, castagnoli) {
		err = json.Unmarshal(text, &m)
	}
	if err == nil && m.Version == 1 && len(m.Damage) > 0 {
		return m.Damage, nil
	}
	return []Damage{{From: start, To: max(end, start+1), Rough: true, File: name, Reason: "the mark of damaged records can't be read"}}, nil
}
