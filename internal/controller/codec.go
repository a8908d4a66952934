package controller

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
	"github.com/chronik-go/chronik/internal/metadata"
)

// Frames. What goes to disk or to another node is a frame: 4 bytes of magic (the last is the format's version), the CRC-32C
// of the rest (big endian), and a protobuf message.
const (
	magicBatch = "CMB\x01"
	magicImage = "CMI\x01"
	magicCall  = "CMC\x01"
	frameHead  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(magic string, m proto.Message) ([]byte, error) {
	o := proto.MarshalOptions{Deterministic: true}
	b := make([]byte, frameHead, frameHead+o.Size(m))
	copy(b, magic)
	b, err := o.MarshalAppend(b, m)
	if err != nil {
		return nil, fmt.Errorf("encoding metadata: %w", err)
	}
	putCRC(b)
	return b, nil
}

func unseal(magic, what string, b []byte, m proto.Message) error {
	switch {
	case len(b) < frameHead:
		return &CorruptError{What: what, Reason: fmt.Sprintf("%d bytes are too few", len(b))}
	case string(b[:3]) != magic[:3]:
		return &CorruptError{What: what, Reason: fmt.Sprintf("begins with %q", b[:4])}
	case b[3] != magic[3]:
		return &CorruptError{What: what, Reason: fmt.Sprintf("format %d, this version reads %d: it was written by another version of Chronik", b[3], magic[3])}
	case binary.BigEndian.Uint32(b[4:]) != crc32.Checksum(b[frameHead:], castagnoli):
		return &CorruptError{What: what, Reason: "checksum mismatch"}
	}
	if err := proto.Unmarshal(b[frameHead:], m); err != nil {
		return &CorruptError{What: what, Reason: "not readable", Err: err}
	}
	return nil
}

// EncodeImage returns the image as bytes, for snapshots and checkpoints: equal images give equal bytes.
func EncodeImage(img *metadata.Image) ([]byte, error) {
	out := &controllerpb.Image{
		ClusterId: img.ClusterID, Index: img.Index,
		NextGroup: img.NextGroup, NextReplica: img.NextReplica, NextProducerId: img.NextProducerID,
	}
	for _, id := range slices.Sorted(maps.Keys(img.Nodes)) {
		out.Nodes = append(out.Nodes, nodeProto(img.Nodes[id]))
	}
	dirs := dirTable{at: map[uuid.UUID]uint32{}}
	for _, name := range slices.Sorted(maps.Keys(img.Topics)) {
		out.Topics = append(out.Topics, topicProto(img.Topics[name], &dirs))
	}
	out.Dirs = dirs.list
	for _, group := range slices.Sorted(maps.Keys(img.GroupConfigs)) {
		out.Groups = append(out.Groups, &controllerpb.Image_GroupConfigs{Group: group, Configs: configsProto(img.GroupConfigs[group])})
	}
	for _, node := range slices.Sorted(maps.Keys(img.BrokerConfigs)) {
		out.Brokers = append(out.Brokers, &controllerpb.Image_BrokerConfigs{Node: node, Configs: configsProto(img.BrokerConfigs[node])})
	}
	for _, r := range img.Requests {
		out.Requests = append(out.Requests, &controllerpb.Image_Request{Id: r.ID[:], Done: r.Done})
	}
	for _, dir := range img.Retired {
		out.Retired = append(out.Retired, dir[:])
	}
	return seal(magicImage, out)
}

// dirTable numbers data directories in order of first use: a directory's 16 bytes are written once, not once a replica.
type dirTable struct {
	at   map[uuid.UUID]uint32
	list [][]byte
}

func (d *dirTable) index(dir uuid.UUID) uint32 {
	i, ok := d.at[dir]
	if !ok {
		i = uint32(len(d.list))
		d.at[dir] = i
		d.list = append(d.list, dir[:])
	}
	return i
}

func topicProto(t *metadata.Topic, dirs *dirTable) *controllerpb.Image_Topic {
	pt := &controllerpb.Image_Topic{
		Name: t.Name, Id: t.ID[:], Internal: t.Internal, Configs: configsProto(t.Configs),
		Partitions: make([]*controllerpb.Image_Partition, len(t.Partitions)),
	}
	for i, p := range t.Partitions {
		pp := &controllerpb.Image_Partition{Group: p.Group, Founders: p.Founders}
		own := false // some replica has a log of its own
		for _, r := range p.All() {
			pp.Replicas = append(pp.Replicas, r.ID)
			pp.Nodes = append(pp.Nodes, r.Node)
			pp.Dirs = append(pp.Dirs, dirs.index(r.Dir))
			pp.Logs = append(pp.Logs, r.Log)
			own = own || r.Log != 0
		}
		if !own {
			pp.Logs = nil
		}
		if c := p.Change; c != nil {
			pp.Adding, pp.Target, pp.Lost, pp.Number = int32(len(c.Adding)), c.Target, c.Lost, c.Number
		}
		pt.Partitions[i] = pp
	}
	return pt
}

// DecodeImage reads what EncodeImage wrote. Whatever does not hold together is a *CorruptError.
func DecodeImage(b []byte) (*metadata.Image, error) {
	var in controllerpb.Image
	if err := unseal(magicImage, "image", b, &in); err != nil {
		return nil, err
	}
	img, err := imageFromProto(&in)
	if err != nil {
		return nil, &CorruptError{What: "image", Index: in.Index, Reason: "does not hold together", Err: err}
	}
	return img, nil
}

func imageFromProto(in *controllerpb.Image) (*metadata.Image, error) {
	img := metadata.Empty()
	img.ClusterID, img.Index = in.ClusterId, in.Index
	img.NextGroup, img.NextReplica, img.NextProducerID = in.NextGroup, in.NextReplica, in.NextProducerId
	if img.NextGroup <= metadata.MetadataGroup || img.NextReplica == 0 || img.NextProducerID < 0 {
		return nil, fmt.Errorf("next ids %d, %d, %d", img.NextGroup, img.NextReplica, img.NextProducerID)
	}
	for _, pn := range in.Nodes {
		n, err := nodeFromProto(pn)
		if err != nil {
			return nil, err
		}
		if img.Nodes[n.ID] != nil || n.MetadataReplica >= img.NextReplica {
			return nil, fmt.Errorf("node %d twice, or with metadata replica %d of %d", n.ID, n.MetadataReplica, img.NextReplica)
		}
		img.Nodes[n.ID] = n
	}
	dirs := make([]uuid.UUID, len(in.Dirs))
	for i, d := range in.Dirs {
		var err error
		if dirs[i], err = uuid.FromBytes(d); err != nil {
			return nil, fmt.Errorf("directory %d: %w", i, err)
		}
	}
	for _, pt := range in.Topics {
		if err := putTopic(img, pt, dirs); err != nil {
			return nil, fmt.Errorf("topic %q: %w", pt.Name, err)
		}
	}
	for _, pb := range in.Brokers {
		if img.BrokerConfigs[pb.Node] != nil || len(pb.Configs) == 0 {
			return nil, fmt.Errorf("configuration of node %d twice or empty", pb.Node)
		}
		img.BrokerConfigs[pb.Node] = configsFromProto(pb.Configs)
	}
	for _, pg := range in.Groups {
		if pg.Group == "" || img.GroupConfigs[pg.Group] != nil || len(pg.Configs) == 0 {
			return nil, fmt.Errorf("configuration of group %q twice or empty", pg.Group)
		}
		img.GroupConfigs[pg.Group] = configsFromProto(pg.Configs)
	}
	for _, pr := range in.Requests {
		id, err := uuid.FromBytes(pr.Id)
		if err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
		img.Requests = append(img.Requests, metadata.RequestMark{ID: id, Done: pr.Done})
	}
	for _, raw := range in.Retired {
		dir, err := uuid.FromBytes(raw)
		if err != nil {
			return nil, fmt.Errorf("directory of a removed node: %w", err)
		}
		img.Retired = append(img.Retired, dir)
	}
	return img, nil
}

func putTopic(img *metadata.Image, pt *controllerpb.Image_Topic, dirs []uuid.UUID) error {
	id, err := uuid.FromBytes(pt.Id)
	if err != nil {
		return err
	}
	if pt.Name == "" || id == uuid.Nil || img.Topics[pt.Name] != nil || img.TopicsByID[id] != nil || len(pt.Partitions) == 0 {
		return fmt.Errorf("no name or partitions, or its name or id %s is there twice", id)
	}
	t := &metadata.Topic{
		Name: pt.Name, ID: id, Internal: pt.Internal, Configs: configsFromProto(pt.Configs),
		Partitions: make([]*metadata.Partition, len(pt.Partitions)),
	}
	for i, pp := range pt.Partitions {
		if len(pp.Replicas) == 0 || len(pp.Nodes) != len(pp.Replicas) || len(pp.Dirs) != len(pp.Replicas) {
			return fmt.Errorf("partition %d has %d replicas on %d nodes in %d directories", i, len(pp.Replicas), len(pp.Nodes), len(pp.Dirs))
		}
		if _, ok := img.Groups[pp.Group]; ok || pp.Group <= metadata.MetadataGroup || pp.Group >= img.NextGroup {
			return fmt.Errorf("partition %d has group %d, which is another's or not handed out", i, pp.Group)
		}
		p, err := partitionFromProto(img, pp, dirs)
		if err != nil {
			return fmt.Errorf("partition %d: %w", i, err)
		}
		p.Index = int32(i)
		t.Partitions[i] = p
		img.Groups[p.Group] = metadata.PartitionRef{Topic: t, Partition: p}
	}
	img.Topics[t.Name], img.TopicsByID[id] = t, t
	return nil
}

func partitionFromProto(img *metadata.Image, pp *controllerpb.Image_Partition, dirs []uuid.UUID) (*metadata.Partition, error) {
	all := make([]metadata.Replica, len(pp.Replicas))
	for j := range all {
		if int(pp.Dirs[j]) >= len(dirs) || pp.Replicas[j] == 0 || pp.Replicas[j] >= img.NextReplica {
			return nil, fmt.Errorf("replica %d in directory %d of %d", pp.Replicas[j], pp.Dirs[j], len(dirs))
		}
		all[j] = metadata.Replica{ID: pp.Replicas[j], Node: pp.Nodes[j], Dir: dirs[pp.Dirs[j]]}
	}
	if len(pp.Logs) != 0 && len(pp.Logs) != len(all) {
		return nil, fmt.Errorf("%d logs of %d replicas", len(pp.Logs), len(all))
	}
	for j, id := range pp.Logs {
		if id >= img.NextGroup {
			return nil, fmt.Errorf("replica %d has log %d, which is not handed out", all[j].ID, id)
		}
		all[j].Log = id
	}
	p := &metadata.Partition{Group: pp.Group, Replicas: all, Founders: pp.Founders}
	if len(pp.Target) == 0 {
		if pp.Adding != 0 || len(pp.Lost) != 0 || pp.Number != 0 {
			return nil, fmt.Errorf("a change of replicas without a target")
		}
		return p, nil
	}
	n := len(all) - int(pp.Adding)
	if pp.Adding < 0 || n < 1 {
		return nil, fmt.Errorf("%d of %d replicas are being added", pp.Adding, len(all))
	}
	p.Replicas = all[:n:n]
	p.Change = &metadata.Change{Adding: all[n:], Target: pp.Target, Lost: pp.Lost, Number: pp.Number}
	for _, id := range slices.Concat(pp.Target, pp.Lost) {
		if _, ok := p.Replica(id); !ok {
			return nil, fmt.Errorf("a change of replicas concerns %d, which is none of them", id)
		}
	}
	return p, nil
}

func nodeProto(n *metadata.Node) *controllerpb.Node {
	return &controllerpb.Node{
		Id: n.ID, Dir: n.Dir[:], KafkaHost: n.KafkaHost, KafkaPort: n.KafkaPort, RaftAddr: n.RaftAddr, Rack: n.Rack,
		MetadataReplica: n.MetadataReplica, Voter: n.Voter,
	}
}

func nodeFromProto(n *controllerpb.Node) (*metadata.Node, error) {
	if n == nil {
		return nil, fmt.Errorf("node missing")
	}
	dir, err := uuid.FromBytes(n.Dir)
	if err != nil || dir == uuid.Nil || n.Id < 0 {
		return nil, fmt.Errorf("node %d has data directory %x: %w", n.Id, n.Dir, cmp.Or(err, fmt.Errorf("not an identity")))
	}
	return &metadata.Node{
		ID: n.Id, Dir: dir, KafkaHost: n.KafkaHost, KafkaPort: n.KafkaPort, RaftAddr: n.RaftAddr, Rack: n.Rack,
		MetadataReplica: n.MetadataReplica, Voter: n.Voter,
	}, nil
}

func configsProto(m map[string]string) []*controllerpb.Config {
	if len(m) == 0 {
		return nil
	}
	out := make([]*controllerpb.Config, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, &controllerpb.Config{Name: k, Value: m[k]})
	}
	return out
}

// configsFromProto returns nil for no configuration. Of a name that is there twice the last counts.
func configsFromProto(in []*controllerpb.Config) map[string]string {
	if len(in) == 0 {
		return nil
	}
	m := make(map[string]string, len(in))
	for _, c := range in {
		m[c.Name] = c.Value
	}
	return m
}

// putCRC makes a frame's checksum right.
func putCRC(frame []byte) {
	binary.BigEndian.PutUint32(frame[4:], crc32.Checksum(frame[frameHead:], castagnoli))
}
