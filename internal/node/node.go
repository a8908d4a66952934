// Package node makes a running Chronik node of the parts: the only place that names concrete types. It opens bottom-up and
// closes in reverse.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/chronik-go/chronik/internal/admin"
	"github.com/chronik-go/chronik/internal/clock"
	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/controller/bootstrap"
	"github.com/chronik-go/chronik/internal/transport"
	"github.com/chronik-go/chronik/internal/vfs"
	"github.com/chronik-go/chronik/internal/wal"
)

// What a data directory holds.
const (
	lockName   = "LOCK"
	walName    = "wal"
	topicsName = "topics"
)

// Options are what Open needs.
type Options struct {
	// Config has been validated.
	Config *config.Node
	// Logger takes what the node has to say; nil: slog.Default().
	Logger *slog.Logger
	// FS is the disk that the data directory is on; nil: the operating system's.
	FS vfs.FS
	// Clock is the time by which records become old; nil: the system's. Connections and the log go by the system's always.
	Clock clock.Clock
	// Tune changes what no setting does, for tests; nil: nothing.
	Tune *Tuning
	// CleanerMemory is told what compaction takes for keys whenever that changes; nil: nobody is. It must not block.
	CleanerMemory func(bytes int64)
}

// Node is a node from Open to Close.
type Node struct {
	cfg *config.Node
	log *slog.Logger
	fs  vfs.FS
	reg *prometheus.Registry

	clock clock.Clock
	tune  *Tuning

	lock io.Closer
	// cleanerMemory: see Options.
	cleanerMemory func(int64)

	id        *bootstrap.Identity
	formation *bootstrap.Formation
	peers     *peers
	server    *transport.Server
	client    *transport.Client
	admin     *admin.Server
	wal       *wal.Log
	kafka     kafka
	core      atomic.Pointer[Core] // set once the node belongs to a cluster

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	ready     chan struct{}
	failed    chan struct{}
	failOnce  sync.Once
	closeOnce sync.Once
	err       error // set before failed is closed
	stage     atomic.Pointer[string]
}

// Open opens the data directory and the listeners and brings the node up in the background: Ready says when it serves,
// Failed when it can't go on. Errors are what a person must mend; nothing is left open or changed then.
func Open(o Options) (*Node, error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	n := &Node{cfg: o.Config, log: o.Logger, fs: o.FS, clock: o.Clock, tune: o.Tune, cleanerMemory: o.CleanerMemory, reg: prometheus.NewRegistry(),
		ready: make(chan struct{}), failed: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.noteInert()
	n.waitingFor("opening the data directory")
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, open := range []func() error{n.openDir, n.openLog, n.openPeers, n.openAdmin} {
		if err := open(); err != nil {
			return nil, errors.Join(err, n.Close(context.Background()))
		}
	}
	n.wg.Go(func() {
		if err := n.run(); err != nil && n.ctx.Err() == nil {
			n.fail(err)
		}
	})
	return n, nil
}

// noteInert tells of broker configs that are kept and change nothing, lest they are taken for done.
func (n *Node) noteInert() {
	for _, name := range slices.Sorted(maps.Keys(n.cfg.Kafka)) {
		if d, ok := config.Brokers.Lookup(name); ok && d.Inert {
			n.log.Warn("a Kafka config that is set has no effect", "name", name, "why", d.Doc)
		}
	}
}

func (n *Node) openDir() (err error) {
	dir := n.cfg.DataDir
	if err := n.foreignDir(dir); err != nil {
		return err
	}
	if err := vfs.MkdirAllSync(n.fs, dir); err != nil {
		return fmt.Errorf("data directory %s: %w (name a writable directory with --data-dir)", dir, err)
	}
	if n.lock, err = n.fs.Lock(filepath.Join(dir, lockName)); err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			return fmt.Errorf("data directory %s is in use by another process: stop that one, or use another --data-dir", dir)
		}
		return fmt.Errorf("data directory %s: %w (name a writable directory with --data-dir)", dir, err)
	}
	n.id, err = bootstrap.Open(n.identityOptions())
	return err
}

func (n *Node) identityOptions() bootstrap.OpenOptions {
	return bootstrap.OpenOptions{FS: n.fs, Dir: n.cfg.DataDir, Node: n.cfg.ID(), Ignore: []string{lockName, walName}, Rand: rand.Reader}
}

// foreignDir refuses a directory that holds something and has never been locked by a node, without so much as leaving a lock
// file there. Where it looks closer, bootstrap.Open finds an identity or strangers, and so writes nothing.
func (n *Node) foreignDir(dir string) error {
	names, err := n.fs.List(dir)
	if err != nil || slices.Contains(names, lockName) {
		return nil // not there yet, or not to be read: the steps that follow say it better
	}
	known := func(name string) bool {
		return name == walName || name == "lost+found" || name == bootstrap.FileName+".tmp"
	}
	if !slices.ContainsFunc(names, func(name string) bool { return !known(name) }) {
		return nil
	}
	_, err = bootstrap.Open(n.identityOptions())
	return err
}

// openLog opens the write-ahead log. A member without one has lost its votes: it must not come up as if it were new
// (design rule 5).
func (n *Node) openLog() (err error) {
	dir := filepath.Join(n.cfg.DataDir, walName)
	if n.id.Member() {
		if names, err := n.fs.List(dir); err != nil || len(names) == 0 {
			return fmt.Errorf("data directory %s: its log (%s) is missing, and with it the node's votes and data: restore it, "+
				"or give the node an empty --data-dir and a new --node-id", n.cfg.DataDir, walName)
		}
	}
	l := n.cfg.Limits
	n.wal, err = wal.Open(wal.Options{FS: n.fs, Dir: dir, Clock: clock.System{}, Logger: n.log,
		FileBytes: l.WALFileBytes, MaxBytes: l.WALMaxBytes, CacheBytes: l.WALCacheBytes,
		OnFatal: func(err error) {
			n.fail(fmt.Errorf("the log can't be written, and what it holds can't be trusted further: %w", err))
		},
		OnPinned: func(group, index uint64) {
			if c := n.core.Load(); c != nil {
				c.Pinned(group, index)
			}
		},
	})
	return err
}

func (n *Node) openPeers() (err error) {
	n.peers = &peers{node: n}
	clusterID := func() string { return n.formation.Identity().ClusterID }
	tc := transport.Config{
		NodeID: n.cfg.ID(), ClusterID: clusterID, Dir: n.id.Dir, Listen: n.cfg.RaftAddr, Advertise: n.cfg.PeerAddr(),
		Hello: n.peers.hello, Logger: n.log, Clock: clock.System{},
		BulkBytes: int(n.cfg.Limits.PeerMemory / 2), ForwardBytes: int(n.cfg.Limits.PeerMemory / 2),
		MaxConnections: config.PeerConnections, MaxConnectionsPerAddr: config.PeerConnectionsPerAddr,
	}
	var members []bootstrap.Peer
	for _, p := range n.cfg.Members() {
		members = append(members, bootstrap.Peer{Node: p.ID, Addr: p.Addr})
	}
	n.formation, err = bootstrap.New(bootstrap.Options{FS: n.fs, Dir: n.cfg.DataDir, Identity: n.id, Peers: members,
		Hello: n.peers.ask, Clock: clock.System{}, Logger: n.log})
	if err != nil {
		return err
	}
	n.client = transport.NewClient(tc, n.peers)
	tc.OnInbound = n.client.Wake
	if n.cfg.RaftAddr == "" {
		return nil
	}
	if n.server, err = transport.NewServer(tc, n.peers); err != nil {
		return fmt.Errorf("raft address %s: %w (another --raft-addr)", n.cfg.RaftAddr, err)
	}
	registerListener(n.reg, "peer", "the peer port", n.server)
	n.server.Start()
	return nil
}

func (n *Node) openAdmin() (err error) {
	if n.cfg.AdminAddr == "" {
		return nil
	}
	n.admin, err = admin.Start(admin.Config{Addr: n.cfg.AdminAddr, Ready: n.readiness, Healthy: n.Err, Gatherer: n.reg, Logger: n.log,
		MaxConnections: config.AdminConnections})
	if err == nil {
		registerListener(n.reg, "admin", "the admin address", n.admin)
	}
	return err
}

// run brings the node up.
func (n *Node) run() error {
	n.waitingFor("peers, to form the cluster")
	if _, err := n.formation.Run(n.ctx); err != nil {
		return first(err)
	}
	n.waitingFor("the cluster's metadata")
	c, err := OpenCore(n.ctx, CoreConfig{
		Config: n.cfg, Identity: n.formation.Identity(), FS: n.fs, Clock: n.clock, Tune: n.tune, WAL: n.wal, Peers: n.client, Logger: n.log,
		Registerer: n.reg, Fail: n.fail, Stage: n.waitingFor, CleanerMemory: n.cleanerMemory, Opened: func(c *Core) { n.core.Store(c) },
	})
	if err != nil {
		return err
	}
	if err := n.openKafka(c); err != nil {
		return err
	}
	n.wal.Start()
	c.Start()
	for _, p := range n.cfg.Members() {
		if p.ID != n.cfg.ID() && c.dials(p.ID) {
			if err := n.client.AddPeer(p.ID, p.Addr); err != nil {
				return err
			}
		}
	}
	c.registerMetrics(n.reg)
	if err := n.serve(c); err != nil {
		return err
	}
	close(n.ready)
	return nil
}

// first returns the first of joined errors: each peer says the same of an emptied disk, and once is enough.
func first(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 && strings.Contains(err.Error(), "\n") {
		return first(joined.Unwrap()[0])
	}
	return err
}

func (n *Node) waitingFor(what string) { n.stage.Store(&what) }

// readiness is /readyz: metadata known, groups started, Kafka port open.
func (n *Node) readiness() error {
	// First of all: a node that served and then failed has more than one of these behind it.
	if err := n.Err(); err != nil {
		return err
	}
	if n.ctx.Err() != nil {
		return errors.New("stopping")
	}
	select {
	case <-n.ready:
		return nil
	default:
		return fmt.Errorf("waiting for %s", *n.stage.Load())
	}
}

// Ready is closed once the node serves.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Failed is closed when the node can't go on; Err says why. It still has to be closed.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err returns why the node failed, nil if it did not.
func (n *Node) Err() error {
	select {
	case <-n.failed:
		return n.err
	default:
		return nil
	}
}

func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.err = err
		close(n.failed)
	})
}

// AdminAddr returns where the admin listener is, empty without one.
func (n *Node) AdminAddr() string {
	if n.admin == nil {
		return ""
	}
	return n.admin.Addr()
}

// drain gives leaderships away first, so that the others serve while this node finishes, and answers the requests under way.
func (n *Node) drain(ctx context.Context, c *Core) {
	if n.Err() == nil {
		handover, done := context.WithTimeout(ctx, 4*time.Second)
		if left := c.handOver(handover); left > 0 {
			n.log.Warn("not all leaderships were handed over", "left", left)
		}
		done()
	}
	patience := 3 * time.Second
	if n.Err() != nil {
		patience = 300 * time.Millisecond // what waits for the log will wait for ever
	}
	drain, done := context.WithTimeout(ctx, patience)
	defer done()
	if n.kafka.server == nil {
		return
	}
	if err := n.kafka.server.Shutdown(drain); err != nil {
		n.log.Info("connections were cut at shutdown", "error", err)
	}
}

// Close hands leaderships over, answers the requests under way, writes everything out and closes, top-down. ctx bounds the
// handing over and the requests; what is acknowledged is on disk in any case. It is idempotent.
func (n *Node) Close(ctx context.Context) error {
	var errs []error
	n.closeOnce.Do(func() {
		n.cancel()
		n.wg.Wait()
		if c := n.core.Load(); c != nil {
			n.drain(ctx, c)
			errs = append(errs, c.Close())
		}
		if n.wal != nil {
			if err := n.wal.Close(); err != nil && n.Err() == nil {
				errs = append(errs, err)
			}
		}
		if n.server != nil {
			errs = append(errs, n.server.Close())
		}
		if n.client != nil {
			errs = append(errs, n.client.Close())
		}
		if n.admin != nil {
			errs = append(errs, n.admin.Close())
		}
		if n.lock != nil {
			errs = append(errs, n.lock.Close())
		}
	})
	return errors.Join(errs...)
}
