package sim

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/chronik-go/chronik/internal/metadata"
)

// history is what was asked of the cluster's metadata, and answered: every topic name is a register, which a check at the end
// holds against some order of the operations that real time allows (linearizability).
type history struct {
	ops  []*metaOp
	tick int64
}

type metaKind uint8

const (
	opCreate metaKind = iota
	opDelete
	opConfigure
	opRead // the metadata at the end
)

// metaOp is one operation: on which name, what was asked, what came of it.
type metaOp struct {
	name       string
	kind       metaKind
	value      int // of a configuration
	call, back int64
	outcome    metaOutcome
	exists     bool // read
}

type metaOutcome uint8

const (
	metaDone metaOutcome = iota
	metaExists
	metaMissing
	metaUnknown
	metaNothing // refused for a reason that says nothing of the topic
)

// begin enters an operation. Until its answer is there, nobody knows what came of it.
func (h *history) begin(name string, kind metaKind, value int) *metaOp {
	h.tick++
	op := &metaOp{name: name, kind: kind, value: value, call: h.tick, back: math.MaxInt64, outcome: metaUnknown}
	h.ops = append(h.ops, op)
	return op
}

func (h *history) end(w *world, op *metaOp, code *kerr.Error, err error) {
	h.tick++
	switch {
	case err == errRefused:
		op.outcome = metaNothing // never sent
	case err != nil || code == kerr.RequestTimedOut || code == kerr.UnknownServerError:
		return
	case code == nil:
		op.outcome = metaDone
	case code == kerr.TopicAlreadyExists:
		op.outcome = metaExists
	case code == kerr.UnknownTopicOrPartition:
		op.outcome = metaMissing
	default:
		op.outcome = metaNothing
	}
	op.back = h.tick
	w.log("%s: operation %d value %d: outcome %d", op.name, op.kind, op.value, op.outcome)
}

// register is the state of a name.
type register struct {
	exists bool
	value  int // of the configuration, 0: never set
}

// step returns the states that an operation with that outcome may lead to; none: the outcome is impossible.
func (op *metaOp) step(r register) []register {
	done := r
	possible := true
	switch op.kind {
	case opCreate:
		done, possible = register{exists: true}, !r.exists
	case opDelete:
		done, possible = register{}, r.exists
	case opConfigure:
		done.value, possible = op.value, r.exists
	case opRead:
		possible = r.exists == op.exists && (!r.exists || r.value == op.value)
	}
	switch op.outcome {
	case metaDone:
		if !possible {
			return nil
		}
		return []register{done}
	case metaUnknown:
		if !possible || done == r {
			return []register{r}
		}
		return []register{r, done}
	case metaExists:
		if !r.exists {
			return nil
		}
	case metaMissing:
		if r.exists {
			return nil
		}
	}
	return []register{r}
}

// checkHistory looks for an order of the operations on each name that explains their outcomes and what there is in the end.
func (w *world) checkHistory(img *metadata.Image) {
	h := &w.admin.history
	byName := map[string][]porcupine.Operation{}
	names := []string{}
	for _, op := range h.ops {
		if byName[op.name] == nil {
			names = append(names, op.name)
		}
		byName[op.name] = append(byName[op.name], porcupine.Operation{Input: op, Call: op.call, Output: op, Return: op.back})
	}
	slices.Sort(names)
	m := (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{register{}} },
		Step: func(state, input, _ any) []any {
			var out []any
			for _, r := range input.(*metaOp).step(state.(register)) {
				out = append(out, r)
			}
			return out
		},
		Equal: func(a, b any) bool { return a == b },
	}).ToModel()
	for _, name := range names {
		h.tick++
		read := &metaOp{name: name, kind: opRead, call: h.tick}
		if t := img.Topics[name]; t != nil {
			read.exists = true
			read.value, _ = strconv.Atoi(t.Configs["retention.ms"])
		}
		ops := append(byName[name], porcupine.Operation{Input: read, Call: read.call, Output: read, Return: math.MaxInt64})
		w.counts["operations on metadata"] += len(ops)
		switch porcupine.CheckOperationsTimeout(m, ops, 20*time.Second) {
		case porcupine.Illegal:
			w.fail("the operations on topic %s have no order that explains their outcomes (exists in the end: %v, retention.ms %d)", name, read.exists, read.value)
			return
		case porcupine.Unknown:
			w.counts["histories too long to judge"]++
		}
	}
}
