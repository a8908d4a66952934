package bootstrap

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/chronik-go/chronik/internal/controller"
	"github.com/chronik-go/chronik/internal/metadata"
	"github.com/chronik-go/chronik/internal/multiraft"
	"github.com/chronik-go/chronik/internal/wal"
)

// ClusterID derives a cluster's id from those who formed it, in the form of Kafka's: 16 bytes, base64url, 22 characters.
func ClusterID(founders []Founder) string {
	sum := sha256.Sum256(encodeSet(founders))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Genesis is the first state of a cluster; every founder derives the same.
type Genesis struct {
	ClusterID string
	Image     *metadata.Image
	// Checkpoint is the metadata group's first state: {index 1, term 1, ConfState} and the image.
	Checkpoint wal.Checkpoint
	// Members are the metadata group's replicas, voters and learners.
	Members []multiraft.Member
	// Self is this node's replica id in the metadata group.
	Self uint64
}

// voters says how many of the first nodes vote: enough for the quorum to survive failures, few enough to stay quick.
func voters(nodes int) int {
	switch {
	case nodes >= 5:
		return 5
	case nodes == 4:
		return 3 // four voters survive no more failures than three
	}
	return nodes
}

// Derive makes the first state of the cluster that founders form, as seen by self, who is one of them.
func Derive(founders []Founder, self int32) (*Genesis, error) {
	set := sorted(founders)
	img := metadata.Empty()
	g := &Genesis{ClusterID: ClusterID(set), Image: img}
	img.ClusterID, img.Index = g.ClusterID, 1
	cs := &g.Checkpoint.ConfState
	for i, f := range set {
		if i > 0 && set[i-1].Node == f.Node {
			return nil, fmt.Errorf("bootstrap: node %d is there twice", f.Node)
		}
		n := &metadata.Node{ID: f.Node, Dir: f.Dir, MetadataReplica: uint64(i) + 1, Voter: i < voters(len(set))}
		img.Nodes[f.Node] = n
		if n.Voter {
			cs.Voters = append(cs.Voters, n.MetadataReplica)
		} else {
			cs.Learners = append(cs.Learners, n.MetadataReplica)
		}
		g.Members = append(g.Members, multiraft.Member{Replica: n.MetadataReplica, Node: f.Node})
		if f.Node == self {
			g.Self = n.MetadataReplica
		}
	}
	if g.Self == 0 {
		return nil, fmt.Errorf("bootstrap: node %d is none of the cluster's %d founders", self, len(set))
	}
	img.NextReplica = uint64(len(set)) + 1
	state, err := controller.EncodeImage(img)
	if err != nil {
		return nil, err
	}
	g.Checkpoint.Index, g.Checkpoint.Term, g.Checkpoint.State = 1, 1, state
	return g, nil
}
