package transport

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/chronik-go/chronik/internal/clock"
)

// The headers in which both sides introduce themselves. A server answers with its own before it reads a frame.
const (
	mdCluster    = "chronik-cluster"
	mdNode       = "chronik-node"
	mdTarget     = "chronik-target" // whom the caller means to reach
	mdDir        = "chronik-dir"
	mdVersion    = "chronik-version"
	mdMinVersion = "chronik-min-version"
)

// What a refusal's status code means to the caller's link.
const (
	codeRefused    = codes.PermissionDenied   // a person must change something
	codeNotFormed  = codes.FailedPrecondition // the server belongs to no cluster yet: normal while starting
	codeSuperseded = codes.Aborted            // a newer stream of the same peer took over
)

func (p PeerInfo) headers() metadata.MD {
	return metadata.Pairs(
		mdCluster, p.ClusterID,
		mdNode, strconv.Itoa(int(p.NodeID)),
		mdDir, p.Dir.String(),
		mdVersion, strconv.FormatUint(uint64(p.Version), 10),
		mdMinVersion, strconv.FormatUint(uint64(p.MinVersion), 10),
	)
}

// introduce adds this node's identity to an outgoing context; target is the node meant.
func introduce(ctx context.Context, self PeerInfo, target int32) context.Context {
	md := self.headers()
	md.Set(mdTarget, strconv.Itoa(int(target)))
	return metadata.NewOutgoingContext(ctx, md)
}

func mdInt32(md metadata.MD, key string) (int32, error) {
	v := md.Get(key)
	if len(v) != 1 {
		return 0, fmt.Errorf("header %s is missing: not a Chronik node?", key)
	}
	n, err := strconv.ParseInt(v[0], 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("header %s is %.40q", key, v[0])
	}
	return int32(n), nil
}

// parseHeaders reads a node's introduction.
func parseHeaders(md metadata.MD) (p PeerInfo, err error) {
	if p.NodeID, err = mdInt32(md, mdNode); err != nil {
		return p, err
	}
	if v := md.Get(mdDir); len(v) == 1 {
		if p.Dir, err = uuid.Parse(v[0]); err != nil {
			return p, fmt.Errorf("header %s is %.40q", mdDir, v[0])
		}
	}
	if v := md.Get(mdCluster); len(v) == 1 {
		p.ClusterID = v[0]
	}
	version, err := mdInt32(md, mdVersion)
	if err != nil {
		return p, err
	}
	oldest, err := mdInt32(md, mdMinVersion)
	if err != nil {
		return p, err
	}
	p.Version, p.MinVersion = uint32(version), uint32(oldest)
	return p, nil
}

// mismatch says, in a sentence for a person, why two nodes don't belong together; "" if they do.
func mismatch(self, peer PeerInfo) string {
	switch {
	case peer.Version < self.MinVersion || peer.MinVersion > self.Version:
		return fmt.Sprintf("node %d speaks peer protocol %d to %d, node %d speaks %d to %d: upgrade the older one",
			peer.NodeID, peer.MinVersion, peer.Version, self.NodeID, self.MinVersion, self.Version)
	case peer.ClusterID != self.ClusterID:
		return fmt.Sprintf("node %d belongs to cluster %q, node %d to cluster %q: check the peer addresses and data directories",
			peer.NodeID, peer.ClusterID, self.NodeID, self.ClusterID)
	case peer.NodeID == self.NodeID:
		return fmt.Sprintf("both sides are configured as node %d: node ids must be unique", self.NodeID)
	}
	return ""
}

// admit judges the introduction of an incoming stream or call. A refusal is logged, and returned as a gRPC status.
func (s *Server) admit(ctx context.Context, what, remote string) (PeerInfo, error) {
	self := s.cfg.self()
	if self.ClusterID == "" {
		return PeerInfo{}, status.Errorf(codeNotFormed, "node %d belongs to no cluster yet", self.NodeID)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	peer, err := parseHeaders(md)
	var reason string
	if err != nil {
		reason = err.Error()
	} else if reason = mismatch(self, peer); reason == "" {
		if target, err := mdInt32(md, mdTarget); err != nil {
			reason = err.Error()
		} else if target != self.NodeID {
			reason = fmt.Sprintf("node %d was meant, this is node %d: check the peer addresses", target, self.NodeID)
		} else if s.cfg.Verify != nil {
			if err := s.cfg.Verify(peer); err != nil {
				reason = err.Error()
			}
		}
	}
	if reason == "" {
		return peer, nil
	}
	s.refusals.warn(fmt.Sprintf("%d/%s", peer.NodeID, reason), "refused a peer", "peer", peer.NodeID, "remote", remote,
		"stream", what, "reason", reason)
	return PeerInfo{}, status.Error(codeRefused, reason)
}

// checkAnswer judges the headers with which a server accepted a stream.
func checkAnswer(cfg *Config, node int32, md metadata.MD) (PeerInfo, string) {
	peer, err := parseHeaders(md)
	if err != nil {
		return peer, err.Error()
	}
	if reason := mismatch(cfg.self(), peer); reason != "" {
		return peer, reason
	}
	if peer.NodeID != node {
		return peer, fmt.Sprintf("node %d was meant, node %d answered: check the peer addresses", node, peer.NodeID)
	}
	if cfg.Verify != nil {
		if err := cfg.Verify(peer); err != nil {
			return peer, err.Error()
		}
	}
	return peer, ""
}

// seldom logs a line at most once per interval and key, so that a misconfigured peer that keeps trying does not fill a disk.
type seldom struct {
	logger   *slog.Logger
	clock    clock.Clock
	interval time.Duration

	mu   sync.Mutex
	last map[string]time.Time
}

const seldomKeys = 1024 // beyond: forget, and log again

func (s *seldom) warn(key, msg string, args ...any) {
	now := s.clock.Now()
	s.mu.Lock()
	t, seen := s.last[key]
	quiet := seen && now.Sub(t) < s.interval
	if !quiet {
		if s.last == nil || len(s.last) >= seldomKeys {
			s.last = make(map[string]time.Time)
		}
		s.last[key] = now
	}
	s.mu.Unlock()
	if !quiet {
		s.logger.Warn(msg, args...)
	}
}
