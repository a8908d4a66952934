package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Counts says how often things happened, by name.
type Counts map[string]int

// Add adds what another run counted.
func (c Counts) Add(o Counts) {
	for k, v := range o {
		c[k] += v
	}
}

// Faults returns how many faults came about.
func (c Counts) Faults() (n int) {
	for k, v := range c {
		if strings.HasPrefix(k, FaultPrefix) {
			n += v
		}
	}
	return n
}

// String lists counts by name, a line each.
func (c Counts) String() string {
	names := make([]string, 0, len(c))
	for k := range c {
		names = append(names, k)
	}
	slices.SortFunc(names, cmp.Compare[string])
	var b strings.Builder
	for _, k := range names {
		fmt.Fprintf(&b, "  %-42s %d\n", k, c[k])
	}
	return b.String()
}

// mustHappen is what many seeds together must bring about, beside every fault.
var mustHappen = []string{
	"power cuts of the whole cluster", "power cut within a step", "power cut after a kill", "cut armed at a snapshot",
	"stopped by a failed sync", "stopped by a full disk", "sectors lost", "names lost",
	"messages lost", "messages duplicated", "losses never reported", "answers lost", "batches sent again", "timeouts",
	"log start moved", "log files recycled", "entries read from files", "groups carried forward",
	"staged by delta", "staged whole", "snapshot installed", "consumers jumped to the log start", "elections",
	"create topic: done", "delete topic: done", "alter config: done", "producer ids", "requests between nodes", "ends of a log asked for",
	"group generations", "assignments told", "offsets committed", "offsets fetched", "coordinators moved", "coordinators back where they were",
	"static members back without a rebalance", "static members restarted after healing", "static members fenced", "static members expired",
	"throttles set", "throttles taken away", "bytes for learners under a throttle", "words about a throttle", "partitions moved under a throttle, whole",
	"twins of static members", "static members replaced", "members fenced", "groups downgraded",
	"members expired", "members left", "members absent", "commits of an old generation refused", "logs compacted",
	"compacted logs read whole", "records compacted away, as seen", "tombstones gone, as seen", "cut armed at a compaction", "partitions moved, whole",
	"steps of members of consumer groups", "consumer heartbeats answered", "members of consumer groups expired",
	"members left by heartbeat", "groups upgraded", "joins of classic members of a consumer group",
	"delete a group: done", "delete a group: NON_EMPTY_GROUP", "delete an offset: done", "offsets deleted", "offsets expired", "logs of groups read whole",
	"wiped nodes refused under their old id", "wiped disks filled again", "nodes joined", "nodes removed", "removed nodes refused", "quorums asked for",
}

// mustHappenInStorms is the same for Campaign.Power.
var mustHappenInStorms = []string{
	cutsOfAll, cutsInRecovery, checksAfterACut, "power cut within a step", "sectors lost", "names lost", "batches sent again", "elections",
	"log files recycled", "entries read from files", "groups carried forward", "staged by delta", "snapshot installed", "logs compacted",
}

// missing returns what never happened though enough seeds have run to bring it about: where something is missing the runs have
// not tested what they are there for.
func (c Counts) missing(faults []*fault, mustHappen []string) (names []string) {
	for _, f := range faults {
		if c[FaultPrefix+f.name] == 0 {
			names = append(names, FaultPrefix+f.name)
		}
	}
	for _, name := range mustHappen {
		if c[name] == 0 {
			names = append(names, name)
		}
	}
	return names
}
