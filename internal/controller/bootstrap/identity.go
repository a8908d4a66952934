// Package bootstrap is how a node comes to belong to a cluster: the identity of its data directory, and the formation of a
// cluster by the nodes named in --peers, exactly once (design rules 5 and 6).
package bootstrap

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/vfs"
)

// FileName is the identity's file in the data directory.
const FileName = "node.json"

// FormatVersion is the newest format of the data directory that this version reads.
const FormatVersion = 1

// maxIdentityBytes bounds what is read of the file: 1,000 founders fit.
const maxIdentityBytes = 1 << 20

var (
	// ErrForeignDir says that the data directory is not this node's, or not Chronik's: nothing in it was touched.
	ErrForeignDir = errors.New("foreign data directory")
	// ErrNewerFormat says that a newer version of Chronik wrote the data directory.
	ErrNewerFormat = errors.New("data directory of a newer format")
	// ErrDamaged says that the identity can't be read, or is missing where there is data.
	ErrDamaged = errors.New("damaged data directory")
)

// Founder is a node that formed the cluster, with the data directory it had then.
type Founder struct {
	Node int32     `json:"node"`
	Dir  uuid.UUID `json:"dir"`
}

// Identity is what a data directory knows of itself.
type Identity struct {
	Format int       `json:"format"`
	Dir    uuid.UUID `json:"dir"`
	Node   int32     `json:"node"`
	// ClusterID and Founders are set once the node belongs to a cluster, for good. Founders are sorted by node id.
	ClusterID string    `json:"cluster,omitempty"`
	Founders  []Founder `json:"founders,omitempty"`
}

// identityFile is the file: the identity, and a CRC-32C over its JSON (one line, fields as above), so that a flipped bit
// does not make another node of it.
type identityFile struct {
	Identity json.RawMessage `json:"identity"`
	CRC      uint32          `json:"crc32c"`
}

// Member reports whether the node belongs to a cluster.
func (id Identity) Member() bool { return id.ClusterID != "" }

// Founding reports whether the node is one of those that formed its cluster.
func (id Identity) Founding() bool {
	return slices.Contains(id.Founders, Founder{Node: id.Node, Dir: id.Dir})
}

// OpenOptions are what Open needs.
type OpenOptions struct {
	FS   vfs.FS
	Dir  string
	Node int32
	// Ignore lists names that may be in a new data directory: a lock file.
	Ignore []string
	// Rand is where the directory's UUID comes from: crypto/rand.Reader.
	Rand io.Reader
}

// Open reads the identity of the data directory, or gives it one if it is empty: from its return on the directory has a
// durable UUID. The caller holds the directory's lock. Errors match ErrForeignDir, ErrNewerFormat, ErrDamaged, or are the
// file system's; nothing in the directory has been changed then.
func Open(o OpenOptions) (*Identity, error) {
	name := filepath.Join(o.Dir, FileName)
	b, err := vfs.ReadFile(o.FS, name, maxIdentityBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return create(o, name)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", o.Dir, err)
	}
	id, err := decodeIdentity(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if id.Node != o.Node {
		return nil, fmt.Errorf("%w: %s belongs to node %d, this is node %d: use --node-id %d, or another --data-dir",
			ErrForeignDir, o.Dir, id.Node, o.Node, id.Node)
	}
	if !id.Member() {
		// Nothing but the identity is written before a node belongs to a cluster.
		if names, err := strangers(o); err != nil || len(names) > 0 {
			return nil, cmp.Or(err, fmt.Errorf("%w: %s belongs to no cluster by its %s, but is not empty (%s): restore its %s, or use an empty --data-dir",
				ErrDamaged, o.Dir, FileName, listed(names), FileName))
		}
	}
	return id, nil
}

// strangers lists what is in the directory beside the identity and what may be there.
func strangers(o OpenOptions) ([]string, error) {
	names, err := o.FS.List(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", o.Dir, err)
	}
	ignore := append([]string{"lost+found", FileName, FileName + ".tmp"}, o.Ignore...)
	return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(ignore, n) }), nil
}

func listed(names []string) string {
	if len(names) > 5 {
		names = append(slices.Clone(names[:5]), "…")
	}
	return strings.Join(names, ", ")
}

func create(o OpenOptions, name string) (*Identity, error) {
	names, err := strangers(o)
	if errors.Is(err, fs.ErrNotExist) {
		if err = vfs.MkdirAllSync(o.FS, o.Dir); err != nil {
			err = fmt.Errorf("data directory %s: %w", o.Dir, err)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("%w: %s has no %s but is not empty (%s): use an empty --data-dir; "+
			"if this one held a node's data, put its %s back", ErrForeignDir, o.Dir, FileName, listed(names), FileName)
	}
	dir, err := uuid.NewRandomFromReader(o.Rand)
	if err != nil {
		return nil, fmt.Errorf("random numbers: %w", err)
	}
	id := &Identity{Format: FormatVersion, Dir: dir, Node: o.Node}
	return id, write(o.FS, name, id)
}

// Save makes the identity durable, in place of the one before; a crash leaves one of the two.
func (id *Identity) Save(fsys vfs.FS, dir string) error {
	return write(fsys, filepath.Join(dir, FileName), id)
}

func write(fsys vfs.FS, name string, id *Identity) error {
	b, err := encodeIdentity(id)
	if err != nil {
		return err
	}
	if err := vfs.WriteFileAtomic(fsys, name, b); err != nil {
		return fmt.Errorf("writing the node's identity: %w", err)
	}
	return nil
}

func encodeIdentity(id *Identity) ([]byte, error) {
	inner, err := json.Marshal(id)
	if err != nil {
		return nil, fmt.Errorf("encoding the node's identity: %w", err)
	}
	// Not indented: the checksum is over these bytes.
	b, err := json.Marshal(identityFile{Identity: inner, CRC: crc32.Checksum(inner, crc32.MakeTable(crc32.Castagnoli))})
	if err != nil {
		return nil, fmt.Errorf("encoding the node's identity: %w", err)
	}
	return append(b, '\n'), nil
}

func decodeIdentity(b []byte) (*Identity, error) {
	var f identityFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: the node's identity can't be read (%w): restore the file, or give the node an empty --data-dir and a new --node-id", ErrDamaged, err)
	}
	// The format comes first: another format may have another checksum.
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(f.Identity, &format); err == nil && format.Format > FormatVersion {
		return nil, fmt.Errorf("%w: format %d, this version reads up to %d: run the version that wrote it, or a later one", ErrNewerFormat, format.Format, FormatVersion)
	}
	var id Identity
	err := json.Unmarshal(f.Identity, &id)
	switch {
	case crc32.Checksum(f.Identity, crc32.MakeTable(crc32.Castagnoli)) != f.CRC:
		err = cmp.Or(err, errors.New("checksum mismatch"))
	case err == nil:
		err = id.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the node's identity can't be trusted (%w): restore the file, or give the node an empty --data-dir and a new --node-id", ErrDamaged, err)
	}
	return &id, nil
}

func (id *Identity) check() error {
	switch {
	case id.Format != FormatVersion:
		return fmt.Errorf("format %d", id.Format)
	case id.Dir == uuid.Nil || id.Node < 0:
		return fmt.Errorf("node %d in directory %s", id.Node, id.Dir)
	case id.ClusterID == "" && len(id.Founders) > 0:
		return errors.New("founders without a cluster")
	case id.ClusterID != "" && id.ClusterID != ClusterID(id.Founders):
		return fmt.Errorf("cluster id %q is not that of its founders", id.ClusterID)
	}
	return nil
}

// sorted returns a copy in order of node id.
func sorted(set []Founder) []Founder {
	s := slices.Clone(set)
	slices.SortFunc(s, func(a, b Founder) int { return cmp.Compare(a.Node, b.Node) })
	return s
}

// encodeSet is the founding set as bytes: what the cluster id is the hash of.
func encodeSet(set []Founder) []byte {
	b := []byte("chronik cluster\x00")
	for _, f := range sorted(set) {
		b = binary.BigEndian.AppendUint32(b, uint32(f.Node))
		b = append(b, f.Dir[:]...)
	}
	return b
}
