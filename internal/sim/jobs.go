package sim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A worker is a process that runs seeds for another one: a run has crypto/rand of its process for itself (see Run), so that two at a
// time take two processes. It is told what to run by a line of JSON on its standard input, and answers with a line of JSON.

// order is what a worker is told.
type order struct {
	Seed  uint64
	Power bool
}

// Work runs what it is told on in, one after the other, until in ends.
func Work(in io.Reader, out io.Writer) error {
	d, e := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		switch err := d.Decode(&o); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("what to run: %w", err)
		}
		if err := e.Encode(Run(Options{Seed: o.Seed, Power: o.Power})); err != nil {
			return err
		}
	}
}

// farAhead is how many results of each worker may wait for a seed before them that takes longer.
const farAhead = 64

// share has the campaign's seeds run by its workers. hear gets the results in the order of the seeds, and says whether to go on. It
// returns when no worker is left.
func (c Campaign) share(began time.Time, hear func(Result) (more bool)) {
	var mu sync.Mutex
	next, over := uint64(0), false
	take := func() (i uint64, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if over || next >= c.Seeds || c.over(began) {
			return 0, false
		}
		next++
		return next - 1, true
	}
	type done struct {
		i uint64
		r Result
	}
	ahead := make(chan struct{}, farAhead*c.Jobs)
	results := make(chan done)
	var wg sync.WaitGroup
	for range c.Jobs {
		wg.Go(func() {
			w := &worker{c: c}
			defer func() { _ = w.close() }() // how it ended is told by what it has answered
			for {
				ahead <- struct{}{}
				i, ok := take()
				if !ok {
					<-ahead
					return
				}
				results <- done{i, w.run(c.options(i))}
			}
		})
	}
	go func() {
		wg.Wait()
		close(results)
	}()
	waiting := map[uint64]Result{}
	turn, more := uint64(0), true
	for d := range results {
		if !more {
			<-ahead
			continue
		}
		waiting[d.i] = d.r
		for r, ok := waiting[turn]; more && ok; r, ok = waiting[turn] {
			delete(waiting, turn)
			<-ahead
			turn++
			more = hear(r)
		}
		if !more {
			// What runs still is not counted: one job would not have begun it.
			mu.Lock()
			over = true
			mu.Unlock()
			for range waiting {
				<-ahead
			}
		}
	}
}

// worker is one process, started when it is needed, and again after it has died.
type worker struct {
	c     Campaign
	in    io.WriteCloser
	out   *bufio.Reader
	said  bytes.Buffer // on its standard error
	ended func() error
}

func (w *worker) start() error {
	cmd := w.c.Worker()
	w.said.Reset()
	cmd.Stderr = &w.said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.in, w.out, w.ended = in, bufio.NewReader(out), cmd.Wait
	return nil
}

// run has a seed run. A worker that dies of it has broken a promise: nothing may end a node but what it says.
func (w *worker) run(o Options) (r Result) {
	failed := func(what string, err error) Result {
		return Result{Seed: o.Seed, Counts: Counts{}, Violation: fmt.Sprintf("%s: %v\n%s", what, errors.Join(err, w.close()), lastBytes(w.said.Bytes()))}
	}
	if w.in == nil {
		if err := w.start(); err != nil {
			return failed("starting a worker", err)
		}
	}
	if err := json.NewEncoder(w.in).Encode(order{o.Seed, o.Power}); err != nil {
		return failed("the worker has ended", err)
	}
	line, err := w.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		return failed("the worker has ended", err)
	}
	return r
}

// close ends the worker, once it has done what it was told, waits for it, and says how it ended.
func (w *worker) close() error {
	if w.in == nil {
		return nil
	}
	_ = w.in.Close() // it may have closed it itself
	w.in = nil
	return w.ended()
}

// lastBytes is the end of what a process has said: the reason is there.
func lastBytes(b []byte) []byte {
	const enough = 4 << 10
	return b[max(0, len(b)-enough):]
}
