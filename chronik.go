// Package chronik embeds a Chronik broker, a streaming server that Kafka clients use unchanged, in a Go program or test.
//
//	srv, err := chronik.Start(ctx, chronik.Config{DataDir: dir})
//	if err != nil { … }
//	defer srv.Stop(context.Background())
//	client, err := kgo.NewClient(kgo.SeedBrokers(srv.Addr()))
package chronik

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/node"
)

// Config says what Start starts. Its zero value is a broker of its own, on a free port of 127.0.0.1, whose data is gone after
// Stop.
type Config struct {
	// DataDir keeps the data, durably, over restarts; empty: a temporary directory that Stop removes.
	DataDir string
	// KafkaAddr is host:port to listen on for Kafka clients; empty: a free port of 127.0.0.1.
	KafkaAddr string
	// AdvertisedKafkaAddr is host:port that clients are told; empty: KafkaAddr.
	AdvertisedKafkaAddr string
	// AdminAddr is host:port for metrics, health and readiness over HTTP; empty: nowhere.
	AdminAddr string

	// NodeID, Peers and RaftAddr make the broker a node of a cluster, as the server's flags of these names do: Peers is
	// "1@h1:5001,2@h2:5001,3@h3:5001". NodeID 0 is node 1, alone.
	NodeID   int32
	Peers    string
	RaftAddr string

	// Kafka holds broker configs by Kafka's names, such as "num.partitions" or "log.retention.ms".
	Kafka map[string]string
	// NoAutoCreateTopics keeps a client's use of a topic from creating it.
	NoAutoCreateTopics bool
	// Logger takes the broker's log; nil: nothing is logged below warnings, and those go to slog.Default().
	Logger *slog.Logger
}

// Server is a running broker.
type Server struct {
	node *node.Node
	addr string
	temp string // directory to remove, if any
}

// stopBound is how long Stop takes at most when its context has no deadline.
const stopBound = 10 * time.Second

// Start starts a broker and returns once it serves: for a node of a cluster, once the cluster has formed. It may take as long
// as ctx allows; when ctx ends or the broker can't start, nothing is left running, and the error says what to do. ctx has no
// meaning after Start returned.
func Start(ctx context.Context, c Config) (_ *Server, err error) {
	s := &Server{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.clean())
		}
	}()
	if c.DataDir == "" {
		if s.temp, err = os.MkdirTemp("", "chronik-"); err != nil {
			return nil, fmt.Errorf("chronik: %w", err)
		}
		c.DataDir = s.temp
	}
	cfg, err := c.node()
	if err != nil {
		return nil, fmt.Errorf("chronik: %w", err)
	}
	log := c.Logger
	if log == nil {
		log = slog.New(warnings{slog.Default().Handler()})
	}
	n, err := node.Open(node.Options{Config: cfg, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("chronik: %w", err)
	}
	select {
	case <-n.Ready():
		s.node, s.addr = n, n.KafkaAddr()
		return s, nil
	case <-n.Failed():
		err = n.Err()
	case <-ctx.Done():
		err = ctx.Err()
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBound)
	defer cancel()
	return nil, fmt.Errorf("chronik: %w", errors.Join(err, n.Close(stop)))
}

func (c Config) node() (*config.Node, error) {
	cfg := config.Default()
	cfg.NodeID, cfg.RaftAddr, cfg.AdminAddr, cfg.DataDir = c.NodeID, c.RaftAddr, c.AdminAddr, c.DataDir
	cfg.KafkaAddr, cfg.AdvertisedKafkaAddr = c.KafkaAddr, c.AdvertisedKafkaAddr
	if cfg.KafkaAddr == "" {
		cfg.KafkaAddr = "127.0.0.1:0"
	}
	cfg.AutoCreateTopics = !c.NoAutoCreateTopics
	var err error
	if cfg.Peers, err = config.ParsePeers(c.Peers); err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Kafka)) {
		cfg.SetKafka(name, c.Kafka[name])
	}
	return cfg, cfg.Validate()
}

// Addr returns host:port where Kafka clients reach the broker.
func (s *Server) Addr() string { return s.addr }

// AdminAddr returns host:port of the admin listener, empty without one.
func (s *Server) AdminAddr() string { return s.node.AdminAddr() }

// Failed is closed if the broker can't go on, because its disk has failed: Err says why. It still has to be stopped.
func (s *Server) Failed() <-chan struct{} { return s.node.Failed() }

// Err returns why the broker failed, nil if it did not.
func (s *Server) Err() error { return s.node.Err() }

// Stop ends the broker in order: leaderships are handed over, requests finished, everything is written out. ctx bounds that, at
// most ten seconds where it has no deadline; what was acknowledged is on disk in any case. Stopping twice is fine.
func (s *Server) Stop(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, stopBound)
		defer cancel()
	}
	err := s.node.Close(ctx)
	return errors.Join(err, s.clean())
}

func (s *Server) clean() error {
	if s.temp == "" {
		return nil
	}
	return os.RemoveAll(s.temp)
}

// warnings passes on what is at least a warning.
type warnings struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }
