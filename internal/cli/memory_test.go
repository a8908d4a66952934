package cli

import (
	"testing"
	"testing/fstest"
)

func TestMachineMemory(t *testing.T) {
	const mib = 1 << 20
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	meminfo := file("MemTotal:        4096000 kB\nMemFree:  1 kB\n")
	for name, c := range map[string]struct {
		root fstest.MapFS
		want int64
	}{
		"nothing to be read": {fstest.MapFS{}, 0},
		"a machine":          {fstest.MapFS{"proc/meminfo": meminfo}, 4000 * mib},
		"version 2": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("536870912\n"), "sys/fs/cgroup/a/memory.max": file("max\n")}, 512 * mib},
		"version 2, the group above is narrower": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("536870912\n"), "sys/fs/cgroup/a/memory.max": file("268435456\n")}, 256 * mib},
		"version 2 in a container": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/\n"),
			"sys/fs/cgroup/memory.max": file("536870912\n")}, 512 * mib},
		"version 1": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("7:cpu,cpuacct:/x\n5:memory:/docker/y\n"),
			"sys/fs/cgroup/memory/docker/y/memory.limit_in_bytes": file("805306368\n")}, 768 * mib},
		"version 1, mounted at the container's root": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("5:memory:/docker/y\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("805306368\n")}, 768 * mib},
		"version 1, unlimited": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("5:memory:/\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("9223372036854771712\n")}, 4000 * mib},
		"garbage": {fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("what\n0::\n::x:memory\n")}, 4000 * mib},
	} {
		if got := machineMemory(c.root); got != c.want {
			t.Errorf("%s: %d MiB, want %d", name, got/mib, c.want/mib)
		}
	}
}

func TestDescriptorsAreRaisedToTheHardLimit(t *testing.T) {
	if raiseFiles() <= 0 {
		t.Skip("no such limit here")
	}
	if again := raiseFiles(); again != raiseFiles() || again < 3 {
		t.Errorf("%d descriptors", again)
	}
}
