package sim

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/chronik-go/chronik/internal/sim"
)

// TestScenarios plays testdata/*.txt: a command, "----", and what it answers. Each file is a cluster's life, to be read from the top;
// after a change that is meant, go test ./test/sim -run TestScenarios -rewrite writes the answers anew. No answer hangs on who wins an
// election, or in which term: after one, a scenario has the leadership transferred to the node that it goes on to name. So that this stays
// so, each is played under several seeds.
//
//	cluster nodes=3                        the cluster of this file
//	topic NAME partitions=1 replicas=3 on=1/2/3 policy=compact
//	produce NODE TOPIC VALUE [id= epoch= seq=]
//	put NODE TOPIC KEY=VALUE KEY-          records with keys, and a tombstone, in one batch
//	fill-keys NODE TOPIC count= bytes=     many records of two keys; compacted NODE TOPIC waits until nothing is left to compact there
//	fill NODE TOPIC count=100 bytes=1000   many records; answers the last offset
//	read NODE TOPIC but=KEY                what that node's replica has committed
//	status TOPIC   elected TOPIC           of every node; until a leader of a later term than before serves
//	run 500ms      equal TOPIC             let it live; until all replicas have committed the same
//	isolate NODE   cut A B   heal          links
//	kill NODE   power NODE   start NODE    processes and machines
//	pause NODE  resume NODE  power-in NODE operations=5
//	resume-asked NODE GROUP                the same with a request for offsets that it finds waiting
//	await NAME count=1                     something the simulator counts
//	member NAME GROUP TOPIC                a consumer that joins and beats; leave NAME, hang NAME, wake NAME
//	       protocol=consumer instance=I regex=1; restart NAME ends a static one without a word, and begins it anew
//	group NAME members=2                   waits for a generation of so many, and tells who has what
//	commit MEMBER OFFSET   offsets GROUP   of all that a member believes to own; what is committed
//	keep GROUP TOPIC OFFSET                a commit of somebody who is no member
//	delete-group GROUP   delete-offset GROUP TOPIC   forgotten GROUP
//	transfer TOPIC NODE   reassign TOPIC 1/2/4
//	wipe NODE   join   remove NODE         an emptied disk, tried under its old id; a node more; one less
//	refused NODE   quorum 1/2/4            waits until a node that was started is told to go; until these vote on the metadata
//	throttle TOPIC 2000 side=leader        what its replicas that catch up are sent in a second; throttle TOPIC none moved=1/2/4
//	move TOPIC 1/2/4   turn-back TOPIC     only begins; moved TOPIC 1/2/4 waits for the end, replicas NODE TOPIC tells
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		for seed := range uint64(scenarioSeeds) {
			t.Run(fmt.Sprint("seed ", seed+1), func(t *testing.T) {
				s := &scenario{t: t, seed: seed + 1}
				defer s.close()
				datadriven.RunTest(t, path, s.play)
			})
		}
	})
}

// scenarioSeeds is under how many seeds each scenario is played: its answers are the same under all of them.
const scenarioSeeds = 4

type scenario struct {
	t      *testing.T
	seed   uint64
	s      *sim.Script
	broken [][2]int32 // links cut
	alone  []int32    // nodes isolated
}

func (s *scenario) close() {
	if s.s != nil {
		s.s.Close()
	}
}

func (s *scenario) play(t *testing.T, d *datadriven.TestData) string {
	out, err := s.command(d)
	lines := []string{}
	if s.s != nil {
		lines = s.s.Events()
	}
	if out != "" {
		lines = append(lines, out)
	}
	if err != nil {
		lines = append(lines, "error: "+err.Error())
	}
	if len(lines) == 0 {
		return "ok"
	}
	return strings.Join(lines, "\n")
}

// arg is the n-th bare word after the command.
func arg(d *datadriven.TestData, n int) string {
	i := 0
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			if i == n {
				return a.Key
			}
			i++
		}
	}
	d.Fatalf(nil, "%s needs %d words", d.Cmd, n+1)
	return ""
}

func node(d *datadriven.TestData, n int) int32 { return number(arg(d, n)) }

func number(s string) int32 {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		panic(err)
	}
	return int32(n)
}

// numbers reads 1/2/3.
func numbers(s string) (out []int32) {
	for n := range strings.SplitSeq(s, "/") {
		out = append(out, number(n))
	}
	return out
}

// nodes is name=1/2/3, or none.
func nodes(d *datadriven.TestData, name string) []int32 {
	if a, ok := d.Arg(name); ok {
		return numbers(a.Vals[0])
	}
	return nil
}

// text is name=value, or nothing.
func text(d *datadriven.TestData, name string) string {
	if a, ok := d.Arg(name); ok {
		return a.Vals[0]
	}
	return ""
}

// option is name=value, or otherwise.
func option(d *datadriven.TestData, name string, otherwise int) int {
	if a, ok := d.Arg(name); ok {
		return int(number(a.Vals[0]))
	}
	return otherwise
}

func (s *scenario) command(d *datadriven.TestData) (string, error) {
	if d.Cmd == "cluster" {
		s.s = sim.NewScript(option(d, "nodes", 3), s.seed)
		return "", s.s.Run(time.Second)
	}
	c := s.s
	switch d.Cmd {
	case "topic":
		return "", c.Topic(arg(d, 0), int32(option(d, "partitions", 1)), int16(option(d, "replicas", 3)), text(d, "policy"), nodes(d, "on")...)
	case "produce":
		return c.Produce(node(d, 0), arg(d, 1), arg(d, 2), int64(option(d, "id", -1)), int16(option(d, "epoch", 0)), int32(option(d, "seq", 0)))
	case "fill":
		last := ""
		for range option(d, "count", 1) {
			var err error
			if last, err = c.Produce(node(d, 0), arg(d, 1), strings.Repeat("x", option(d, "bytes", 100)), -1, 0, 0); err != nil {
				return last, err
			}
		}
		return last, nil
	case "put":
		var records []string
		for _, a := range d.CmdArgs[2:] {
			if r := a.Key; len(a.Vals) > 0 {
				records = append(records, r+"="+a.Vals[0])
			} else {
				records = append(records, r)
			}
		}
		return c.Put(node(d, 0), arg(d, 1), records...)
	case "fill-keys":
		for i := range option(d, "count", 1) {
			if out, err := c.Put(node(d, 0), arg(d, 1), fmt.Sprintf("z%d=%s", i%2, strings.Repeat("x", option(d, "bytes", 100)))); err != nil || !strings.HasPrefix(out, "offset") {
				return out, err
			}
		}
		return "", nil
	case "compacted":
		return "", c.Compacted(node(d, 0), arg(d, 1))
	case "read":
		return c.Read(node(d, 0), arg(d, 1), text(d, "but"))
	case "status":
		return strings.Join(c.Status(arg(d, 0)), "\n"), nil
	case "elected":
		return "", c.Elected(arg(d, 0))
	case "equal":
		return "", c.Equal(arg(d, 0))
	case "run":
		dur, err := time.ParseDuration(arg(d, 0))
		if err != nil {
			return "", err
		}
		return "", c.Run(dur)
	case "await":
		return "", c.AwaitCount(strings.ReplaceAll(arg(d, 0), "-", " "), option(d, "count", 1))
	case "transfer":
		return "", c.Transfer(arg(d, 0), node(d, 1))
	case "reassign":
		return c.Reassign(arg(d, 0), numbers(arg(d, 1))...)
	case "move":
		return c.BeginMove(arg(d, 0), numbers(arg(d, 1))...)
	case "turn-back":
		return c.BeginMove(arg(d, 0))
	case "moved":
		return "", c.Moved(arg(d, 0), numbers(arg(d, 1))...)
	case "throttle":
		rate := int64(-1)
		if arg(d, 1) != "none" {
			rate = int64(number(arg(d, 1)))
		}
		err := c.Throttle(arg(d, 0), text(d, "side"), rate)
		if to := nodes(d, "moved"); err == nil && to != nil {
			err = c.Moved(arg(d, 0), to...)
		}
		return "", err
	case "replicas":
		return c.Replicas(node(d, 0), arg(d, 1))
	}
	return s.groups(d)
}

// groups are the commands about consumer groups.
func (s *scenario) groups(d *datadriven.TestData) (string, error) {
	c := s.s
	switch d.Cmd {
	case "member":
		return "", c.Member(arg(d, 0), arg(d, 1), arg(d, 2), text(d, "protocol"), text(d, "instance"), option(d, "regex", 0) > 0)
	case "keep":
		return c.Keep(arg(d, 0), arg(d, 1), int64(number(arg(d, 2))))
	case "delete-group":
		return c.DeleteGroup(arg(d, 0), "")
	case "delete-offset":
		return c.DeleteGroup(arg(d, 0), arg(d, 1))
	case "forgotten":
		return "", c.Forgotten(arg(d, 0))
	case "group":
		return c.Group(arg(d, 0), option(d, "members", 1))
	case "commit":
		return c.Commit(arg(d, 0), int64(number(arg(d, 1))))
	case "offsets":
		return c.Offsets(arg(d, 0))
	case "resume-asked":
		return c.ResumeAsked(node(d, 0), arg(d, 1))
	case "restart":
		return "", c.Restart(arg(d, 0))
	case "hang":
		return "", c.Hang(arg(d, 0), true)
	case "wake":
		return "", c.Hang(arg(d, 0), false)
	case "leave":
		return "", c.Leave(arg(d, 0))
	}
	return s.breakage(d)
}

// breakage are the commands that break and heal.
func (s *scenario) breakage(d *datadriven.TestData) (string, error) {
	c := s.s
	switch d.Cmd {
	case "isolate":
		s.alone = append(s.alone, node(d, 0))
		c.Isolate(node(d, 0), true)
	case "cut":
		s.broken = append(s.broken, [2]int32{node(d, 0), node(d, 1)})
		c.Cut(node(d, 0), node(d, 1), true)
	case "heal":
		for _, n := range s.alone {
			c.Isolate(n, false)
		}
		for _, l := range s.broken {
			c.Cut(l[0], l[1], false)
		}
		s.alone, s.broken = nil, nil
	case "kill":
		c.Kill(node(d, 0))
	case "power":
		c.Power(node(d, 0))
	case "power-in":
		return "", c.PowerIn(node(d, 0), option(d, "operations", 0))
	case "start":
		return "", c.Start(node(d, 0))
	case "wipe":
		return "refused under its old id", c.Wipe(node(d, 0))
	case "refused":
		return "", c.Refused(node(d, 0))
	case "join":
		id, err := c.Join()
		return fmt.Sprint("node ", id), err
	case "remove":
		return c.Remove(node(d, 0))
	case "quorum":
		return c.Quorum(numbers(arg(d, 0))...)
	case "pause":
		c.Pause(node(d, 0), true)
	case "resume":
		c.Pause(node(d, 0), false)
	default:
		return "", fmt.Errorf("no command %q", d.Cmd)
	}
	return "", nil
}
