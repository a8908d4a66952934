package badinput

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBadCommandLineIsRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		args  []string
		words []string
	}{
		{"unknown flag", []string{"--no-such-flag"}, []string{"no-such-flag", "--help"}},
		{"argument", []string{"start"}, []string{`"start"`, "--help"}},
		{"number", []string{"--node-id", "one"}, []string{"--node-id", `"one"`}},
		{"peer without id", []string{"--node-id", "1", "--raft-addr", "127.0.0.1:5001", "--peers", "1@127.0.0.1:5001,127.0.0.1:5002"}, []string{"--peers", "127.0.0.1:5002", "id@host:port"}},
		{"peer without port", []string{"--node-id", "1", "--raft-addr", "127.0.0.1:5001", "--peers", "1@127.0.0.1:5001,2@example"}, []string{"--peers", "node 2", "example"}},
		{"peer that can't be dialled", []string{"--node-id", "1", "--raft-addr", "127.0.0.1:5001", "--peers", "1@127.0.0.1:5001,2@0.0.0.0:5002", "--advertised-kafka-addr", "127.0.0.1:9092"}, []string{"--peers", "node 2", "0.0.0.0:5002"}},
		{"duplicate node id", []string{"--node-id", "1", "--raft-addr", "127.0.0.1:5001", "--peers", "1@127.0.0.1:5001,2@127.0.0.1:5002,2@127.0.0.1:5003"}, []string{"--peers", "node id 2", "twice"}},
		{"duplicate address", []string{"--node-id", "1", "--raft-addr", "127.0.0.1:5001", "--peers", "1@127.0.0.1:5001,2@127.0.0.1:5001"}, []string{"--peers", "127.0.0.1:5001", "same address"}},
		{"peers without node id", []string{"--raft-addr", "127.0.0.1:5003", "--peers", "1@127.0.0.1:5001,2@127.0.0.1:5002"}, []string{"--node-id"}},
		{"peers without raft address", []string{"--node-id", "1", "--peers", "1@127.0.0.1:5001,2@127.0.0.1:5002"}, []string{"--raft-addr"}},
		{"two listeners on a port", []string{"--kafka-addr", "127.0.0.1:9644", "--admin-addr", "127.0.0.1:9644"}, []string{"9644", "same port"}},
		{"kafka config", []string{"--kafka-config", "log.retention.ms=soon"}, []string{"log.retention.ms", "soon"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			untouched(t, dir, func() { refuses(t, append(slices.Clone(c.args), "--data-dir", dir), c.words...) })
		})
	}
}

// TestEveryProblemIsListed: what is wrong with a command line is said all at once, a line for each flag.
func TestEveryProblemIsListed(t *testing.T) {
	s := start(t, "--node-id", "1", "--peers", "1@127.0.0.1:5001,2@127.0.0.1:5002", "--log-level", "loud", "--num-partitions", "0")
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		t.Fatal("it still runs after a minute")
	}
	if s.err == nil {
		t.Error("it ended with code 0")
	}
	lines := strings.Split(s.errs.String(), "\n")
	for _, want := range []string{"--raft-addr: missing", "--log-level: \"loud\"", "--num-partitions: 0"} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), want) }) {
			t.Errorf("no line begins with %q:\n%s", want, &s.errs)
		}
	}
}

// TestPortInUseIsRefused: the node has opened its log by then, so its bytes may differ; what it holds may not.
func TestPortInUseIsRefused(t *testing.T) {
	for _, flag := range []string{"--kafka-addr", "--admin-addr", "--raft-addr"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			raft := ports(t, 1)[0]
			cluster := []string{"--node-id", "1", "--raft-addr", raft, "--peers", "1@" + raft}
			dir := usedDir(t, cluster...)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			taken := l.Addr().String()
			args := alone(t, dir, cluster...)
			for i, a := range args {
				if a == flag {
					args[i+1] = taken
				}
			}
			refuses(t, args, taken, flag)
			l.Close()
			stillThere(t, dir, cluster...)
		})
	}
}

// TestUnwritableDirIsRefused uses a path below a file: to root, modes are no obstacle.
func TestUnwritableDirIsRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	untouched(t, dir, func() { refuses(t, alone(t, file), file, "--data-dir") })
	below := filepath.Join(file, "data")
	untouched(t, dir, func() { refuses(t, alone(t, below), below, "--data-dir") })
}

func TestForeignDirIsRefused(t *testing.T) {
	t.Run("of another node", func(t *testing.T) {
		t.Parallel()
		dir := usedDir(t)
		untouched(t, dir, func() {
			refuses(t, alone(t, dir, "--node-id", "7"), dir, "node 1", "node 7", "--node-id", "--data-dir")
		})
		stillThere(t, dir)
	})
	t.Run("of somebody's files", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		for _, name := range []string{"letter.txt", "wal", "topics"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("not a server's "+name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		untouched(t, dir, func() { refuses(t, alone(t, dir), dir, "letter.txt", "--data-dir") })
	})
	t.Run("without its log", func(t *testing.T) {
		t.Parallel()
		dir := usedDir(t)
		if err := os.RemoveAll(filepath.Join(dir, "wal")); err != nil {
			t.Fatal(err)
		}
		untouched(t, dir, func() { refuses(t, alone(t, dir), dir, "wal", "--node-id") })
	})
	t.Run("without its identity", func(t *testing.T) {
		t.Parallel()
		dir := usedDir(t)
		name := filepath.Join(dir, "node.json")
		id, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		untouched(t, dir, func() { refuses(t, alone(t, dir), dir, "node.json") })
		if err := os.WriteFile(name, id, 0o644); err != nil {
			t.Fatal(err)
		}
		stillThere(t, dir)
	})
	t.Run("with a damaged identity", func(t *testing.T) {
		t.Parallel()
		dir := usedDir(t)
		name := filepath.Join(dir, "node.json")
		id, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		change(t, name, func(b []byte) []byte { return b[:len(b)/2] })
		untouched(t, dir, func() { refuses(t, alone(t, dir), "node.json") })
		if err := os.WriteFile(name, id, 0o644); err != nil {
			t.Fatal(err)
		}
		stillThere(t, dir)
	})
}

func TestNewerFormatIsRefused(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		dir := usedDir(t)
		name := filepath.Join(dir, "node.json")
		change(t, name, func(b []byte) []byte {
			// As a later version would write it, with a checksum that fits.
			var f struct {
				Identity json.RawMessage `json:"identity"`
				CRC      uint32          `json:"crc32c"`
			}
			if err := json.Unmarshal(b, &f); err != nil {
				t.Fatal(err)
			}
			inner := strings.Replace(string(f.Identity), `"format":1`, `"format":2`, 1)
			if inner == string(f.Identity) {
				t.Fatalf("%s has no format 1: %s", name, b)
			}
			f.Identity, f.CRC = json.RawMessage(inner), crc32.Checksum([]byte(inner), castagnoli)
			out, err := json.Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			return out
		})
		untouched(t, dir, func() { refuses(t, alone(t, dir), "node.json", "newer format", "format 2") })
	})
	t.Run("log", func(t *testing.T) {
		t.Parallel()
		dir := usedDir(t)
		files, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no log files: %v", err)
		}
		slices.Sort(files)
		restore := map[string][]byte{}
		for _, name := range files[len(files)-1:] {
			change(t, name, func(b []byte) []byte {
				restore[name] = slices.Clone(b)
				// Magic, version, checksum of the page without itself: docs, wal format.
				const page = 4096
				binary.LittleEndian.PutUint32(b[8:], binary.LittleEndian.Uint32(b[8:])+1)
				binary.LittleEndian.PutUint32(b[12:], crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:page]))
				return b
			})
		}
		untouched(t, dir, func() { refuses(t, alone(t, dir), filepath.Base(files[len(files)-1]), "newer", "version 2") })
		for name, b := range restore {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		stillThere(t, dir)
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func change(t *testing.T, name string, fn func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, fn(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSecondProcessIsRefused: the one that holds the directory goes on.
func TestSecondProcessIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	args := alone(t, dir)
	s := start(t, args...)
	s.awaitReady(t)
	roundTrip(t, flagOf(args, "--kafka-addr"), "kept", "precious")
	refuses(t, alone(t, dir), dir, "in use", "--data-dir")
	if got := roundTrip(t, flagOf(args, "--kafka-addr"), "kept", "more"); len(got) != 2 || got[0] != "precious" {
		t.Errorf("the first process holds %q after the refusal of the second", got)
	}
	s.terminate(t)
	args = alone(t, dir)
	s = start(t, args...)
	s.awaitReady(t)
	if got := roundTrip(t, flagOf(args, "--kafka-addr"), "kept", "last"); !slices.Equal(got, []string{"precious", "more", "last"}) {
		t.Errorf("the directory holds %q", got)
	}
	s.terminate(t)
}
