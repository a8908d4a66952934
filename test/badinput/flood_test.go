package badinput

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
	"github.com/chronik-go/chronik/internal/record"
	"github.com/chronik-go/chronik/test/harness"
)

// flooded is how long the flood lasts at least; floodBound is how long a slow machine may need until it has done its work.
const (
	flooded    = 6 * time.Second
	floodBound = 4 * time.Minute
)

// flood runs attackers, many of each kind at a time, each again and again until ctx is over, which closes their connections, too.
type flood struct {
	ctx  context.Context
	addr string
	wg   sync.WaitGroup

	mu   sync.Mutex
	done map[string]int // attacks carried out, by kind
}

// attack has once carried out again and again; a patient attacker then holds its connection for as long as the flood lasts, and reads
// nothing: that is what such a client does.
func (f *flood) attack(kind string, attackers int, patient bool, once func(c net.Conn) bool) {
	f.mu.Lock()
	f.done[kind] = 0
	f.mu.Unlock()
	for range attackers {
		f.wg.Go(func() {
			for f.ctx.Err() == nil {
				c, err := net.DialTimeout("tcp", f.addr, time.Second)
				if err != nil {
					continue // refused: that is one of the things it may do
				}
				stop := context.AfterFunc(f.ctx, func() { c.Close() })
				if once(c) {
					f.mu.Lock()
					f.done[kind]++
					f.mu.Unlock()
					if patient {
						<-f.ctx.Done()
					}
				}
				stop()
				c.Close()
			}
		})
	}
}

// missing names the kinds of attack of which none has been carried out yet.
func (f *flood) missing() (kinds []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for kind, n := range f.done {
		if n == 0 {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// bombOf is a batch of a record that decompresses to so many bytes, for a topic that wants it opened.
func bombOf(t *testing.T, codec record.Codec, size int) []byte {
	t.Helper()
	b := record.NewBuilder()
	b.Codec = codec
	b.Add(time.Now().UnixMilli(), []byte("k"), make([]byte, size))
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestMemoryStaysWithinItsLimit floods a server that is given little memory with all that costs some: connections that stall,
// large frames, requests that are large once decoded, answers that nobody reads, batches that are small and become large. Its
// memory stays within the limit, it stays up, and afterwards it serves as before.
func TestMemoryStaysWithinItsLimit(t *testing.T) {
	const limit = config.MinMemory
	args := alone(t, filepath.Join(t.TempDir(), "data"), "--memory-limit", config.FormatBytes(limit), "--num-partitions", "1")
	s := &target{server: start(t, args...), addr: flagOf(args, "--kafka-addr")}
	s.awaitReady(t)
	s.unharmed(t)
	s.createTopic(t, "bulk", 64, nil)
	s.createTopic(t, "opened", 1, map[string]string{"compression.type": "lz4"})
	s.createTopic(t, "timed", 1, map[string]string{"message.timestamp.before.max.ms": "3600000"})
	load := batch(t, record.None, 60_000) // 1 MB
	for p := range int32(64) {
		s.produces(t, "load", "bulk", p, -1, load, nil)
	}
	var bombs [][]byte
	for _, c := range []record.Codec{record.Gzip, record.Snappy, record.LZ4, record.Zstd} {
		for _, topic := range []string{"opened", "timed"} {
			bombs = append(bombs, kmsg.NewRequestFormatter().AppendRequest(nil, produceRequest(topic, 0, -1, bombOf(t, c, 15<<20)), 77))
		}
	}

	ctx, end := context.WithCancel(t.Context())
	f := &flood{ctx: ctx, addr: s.addr, done: map[string]int{}}
	defer f.wg.Wait()
	defer end()
	least := time.Now().Add(flooded)
	half := request(3, 1, false, make([]byte, 1000))
	f.attack("half a request", 200, true, func(c net.Conn) bool {
		_, err := c.Write(half[:500])
		return err == nil
	})
	large := request(0, 9, true, append([]byte{0, 0xff, 0xff, 0, 0, 0x75, 0x30, 2, 7, 'o', 't', 'h', 'e', 'r', 's', 2, 0, 0, 0, 0, 0x81, 0x80, 0x80, 0x08}, make([]byte, 16<<20)...))
	f.attack("a frame of 16 MiB", 8, false, func(c net.Conn) bool {
		n, _ := c.Write(large)
		if n == len(large) {
			_, _ = answer(c, 77)
		}
		return n == len(large)
	})
	elements := request(3, 1, false, append(binary.BigEndian.AppendUint32(nil, 200_000), make([]byte, 2*200_000)...))
	f.attack("200,000 elements", 20, true, func(c net.Conn) bool {
		_, err := c.Write(elements)
		return err == nil
	})
	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(11)
	fetch.MaxBytes, fetch.MinBytes, fetch.SessionEpoch = 64<<20, 1, -1
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic = "bulk"
	for p := range int32(64) {
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.Partition, fp.PartitionMaxBytes, fp.CurrentLeaderEpoch = p, 1<<20, -1
		ft.Partitions = append(ft.Partitions, fp)
	}
	fetch.Topics = append(fetch.Topics, ft)
	fetches := kmsg.NewRequestFormatter().AppendRequest(nil, fetch, 77)
	f.attack("a fetch that nobody reads", 60, true, func(c net.Conn) bool {
		_, err := c.Write(bytes.Repeat(fetches, 16))
		return err == nil
	})
	metadata := kmsg.NewPtrMetadataRequest()
	metadata.SetVersion(1)
	for i := range 3000 { // an answer of some hundred KiB
		mt := kmsg.NewMetadataRequestTopic()
		mt.Topic = kmsg.StringPtr(fmt.Sprintf("there is no such topic, %d", i))
		metadata.Topics = append(metadata.Topics, mt, mt)
	}
	metadatas := kmsg.NewRequestFormatter().AppendRequest(nil, metadata, 77)
	f.attack("metadata that nobody reads", 60, true, func(c net.Conn) bool {
		_, err := c.Write(bytes.Repeat(metadatas, 16))
		return err == nil
	})
	n := 0
	var mu sync.Mutex
	f.attack("a bomb", 16, false, func(c net.Conn) bool {
		mu.Lock()
		b := bombs[n%len(bombs)]
		n++
		mu.Unlock()
		_, err := c.Write(b)
		if err == nil {
			_, _ = answer(c, 77)
		}
		return err == nil
	})
	f.until(t, "nobody was cut for not reading: answers were not held up", func() bool {
		m := s.metrics(t)
		return time.Now().After(least) && len(f.missing()) == 0 && counted(m, "connections_cut_total", "answer not read")+counted(m, "connections_cut_total", "out of memory") > 0
	})
	// Only now more connections than there may be: before, they could keep all the others from coming in.
	f.attack("a connection of the rest", 600, true, func(net.Conn) bool { return true })
	f.until(t, "no connection was refused", func() bool {
		return len(f.missing()) == 0 && counted(s.metrics(t), "connections_refused_total", "too many connections") > 0
	})
	end()
	f.wg.Wait()

	u, err := harness.UsageOf(s.cmd.Process.Pid)
	if err != nil {
		t.Fatalf("the server is gone: %v\n%s", err, &s.errs)
	}
	t.Logf("memory %d MiB, at most %d of %d MiB; %v", u.RSS>>20, u.PeakRSS>>20, limit>>20, f.done)
	if u.PeakRSS > limit {
		t.Errorf("the server used %d MiB of the %d it was given", u.PeakRSS>>20, limit>>20)
	}
	for _, kind := range f.missing() {
		t.Errorf("nothing was tested with %s", kind)
	}
	s.unharmed(t)
	metrics := s.metrics(t)
	for _, name := range []string{"chronik_server_connections_cut_total", "chronik_server_connections_refused_total", "chronik_server_connections_per_address_peak"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("no metric %s", name)
		}
	}
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "chronik_server_connections_") || strings.HasPrefix(line, "chronik_server_re") {
			t.Log(strings.TrimSpace(line))
		}
	}
	s.terminate(t)
}

// until waits for what the flood is there to bring about.
func (f *flood) until(t *testing.T, otherwise string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(floodBound); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s; never carried out: %q", otherwise, f.missing())
			return
		}
	}
}

// counted reads from metrics how often the server has counted something for a reason.
func counted(metrics, name, reason string) (n int) {
	for line := range strings.Lines(metrics) {
		if rest, ok := strings.CutPrefix(line, fmt.Sprintf("chronik_server_%s{reason=%q} ", name, reason)); ok {
			_, _ = fmt.Sscan(rest, &n)
		}
	}
	return n
}

func (s *target) createTopic(t *testing.T, name string, partitions int32, configs map[string]string) {
	t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(5)
	req.TimeoutMillis = 60_000
	ct := kmsg.NewCreateTopicsRequestTopic()
	ct.Topic, ct.NumPartitions, ct.ReplicationFactor = name, partitions, 1
	for k, v := range configs {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = k, kmsg.StringPtr(v)
		ct.Configs = append(ct.Configs, c)
	}
	req.Topics = append(req.Topics, ct)
	resp := s.ask(t, req).(*kmsg.CreateTopicsResponse)
	if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
		t.Fatalf("creating %s: %+v", name, resp.Topics)
	}
}
