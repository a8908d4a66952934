package node

import (
	"fmt"
	"net"
	"sync/atomic"

	"github.com/chronik-go/chronik/internal/server"
)

// kafka is the node's side to Kafka clients: the listener, and where it is.
type kafka struct {
	server *server.Server
	port   atomic.Int32 // in force; 0 until the listener is open
}

func (n *Node) openKafka(c *Core) (err error) {
	l := n.cfg.Limits
	n.kafka.server, err = server.New(server.Config{
		Listeners: []server.ListenerConfig{{Name: kafkaListener, Addr: n.cfg.KafkaListen()}}, Handler: c.broker, Logger: n.log, Registerer: n.reg,
		MaxFrameBytes: int(l.MaxFrameBytes), MaxConnections: l.MaxConnections, MaxConnectionsPerAddr: l.MaxConnectionsPerAddr,
		MaxBytes: l.RequestMemory, MaxResponseBytes: l.FetchMemory + l.ResponseMemory, Pressed: c.broker.Pressed, IdleTimeout: l.IdleTimeout,
	})
	return err
}

// serve registers the node and opens the Kafka port. With a port of the kernel's choosing the port comes first.
func (n *Node) serve(c *Core) error {
	host, port := n.cfg.AdvertisedKafka()
	listen := func() error {
		if err := n.kafka.server.Start(); err != nil {
			return fmt.Errorf("%w (another --kafka-addr)", err)
		}
		if port == 0 {
			port = int32(n.kafka.server.Addr(kafkaListener).(*net.TCPAddr).Port)
		}
		n.kafka.port.Store(port)
		return nil
	}
	if port == 0 {
		if err := listen(); err != nil {
			return err
		}
	}
	if err := c.Register(n.ctx, host, port); err != nil {
		return err
	}
	if n.kafka.port.Load() == 0 {
		return listen()
	}
	return nil
}

// KafkaAddr returns where Kafka clients reach this node, once it is ready.
func (n *Node) KafkaAddr() string {
	if n.core.Load() == nil {
		return ""
	}
	host, _ := n.cfg.AdvertisedKafka()
	return net.JoinHostPort(host, fmt.Sprint(n.kafka.port.Load()))
}
