package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chronik-go/chronik/test/harness"
)

// echoEnv, if set, makes this program the server of the echo workload.
const echoEnv = "CHRONIK_BENCH_ECHO"

// A heartbeat and its answer, by size.
const (
	beatBytes       = 90
	beatAnswerBytes = 14
)

// serveEcho answers frames and does nothing else, as plainly as Go's net package has it: a goroutine a connection.
func serveEcho() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer nc.Close()
			buf := make([]byte, 256)
			for {
				for n := 0; n < beatBytes; {
					got, err := nc.Read(buf[n:beatBytes])
					if err != nil {
						return
					}
					n += got
				}
				if _, err := nc.Write(buf[:beatAnswerBytes]); err != nil {
					return
				}
			}
		}()
	}
}

// echo measures the floor under members: the same connections, rate and sizes, and a server that only answers.
func (b *bench) echo(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), echoEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // it ends no other way
		_ = cmd.Wait()
	}()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	addr = strings.TrimSpace(addr)
	before, err := harness.UsageOf(cmd.Process.Pid)
	if err != nil {
		return err
	}
	n := b.groups * b.perGroup
	runCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	var up atomic.Int64
	var failed atomic.Pointer[error]
	for i := range n {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer nc.Close()
			up.Add(1)
			// Members of a group beat together, as those of members do.
			wait := b.heartbeat * time.Duration(i/b.perGroup) / time.Duration(b.groups)
			for {
				select {
				case <-runCtx.Done():
					return
				case <-time.After(wait):
				}
				wait = b.heartbeat
				if err := echoOnce(nc); err != nil && runCtx.Err() == nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	time.Sleep(b.heartbeat + time.Second)
	begin, err := harness.UsageOf(cmd.Process.Pid)
	if err != nil {
		return err
	}
	began := time.Now()
	time.Sleep(b.duration)
	elapsed := time.Since(began)
	end, err := harness.UsageOf(cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	fmt.Printf("echo (a bare Go server, %d connections, %d bytes every %v from each, %d back): %.3f cores, %.1f KB of RSS a connection\n",
		up.Load(), beatBytes, b.heartbeat, beatAnswerBytes, (end.CPU-begin.CPU).Seconds()/elapsed.Seconds(), float64(end.RSS-before.RSS)/1e3/float64(n))
	return nil
}

func echoOnce(nc net.Conn) error {
	if err := nc.SetDeadline(time.Now().Add(wireTimeout)); err != nil {
		return err
	}
	var frame [beatBytes]byte
	binary.BigEndian.PutUint32(frame[:], beatBytes-4)
	if _, err := nc.Write(frame[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(nc, frame[:beatAnswerBytes])
	return err
}
