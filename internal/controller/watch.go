package controller

import (
	"slices"
	"sync"

	"github.com/chronik-go/chronik/internal/metadata"
)

// watchers are told of every image, in order. Images published while watchers are being told are merged: a watcher sees
// images grow, not necessarily each.
type watchers struct {
	mu     sync.Mutex // held while watchers are called: that is what keeps the order
	last   *metadata.Image
	list   []*watch
	pokeMu sync.Mutex
	pokes  []func()
}

type watch struct{ fn func(*metadata.Image) }

func (w *watchers) publish(img *metadata.Image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = img
	for _, x := range slices.Clone(w.list) {
		x.fn(img)
	}
}

// poke wakes the controller: leadership moved.
func (w *watchers) poke() {
	w.pokeMu.Lock()
	pokes := w.pokes
	w.pokeMu.Unlock()
	for _, f := range pokes {
		f()
	}
}

func (w *watchers) onPoke(f func()) {
	w.pokeMu.Lock()
	w.pokes = append(slices.Clip(w.pokes), f)
	w.pokeMu.Unlock()
}

// Watch calls fn with the current image before it returns, and from then on with each later one, in order, one call at a
// time, on the applier: fn must not block, and must neither call Watch nor a cancel function. It marks what is to do and
// wakes whoever does it. cancel ends it: no call begins after cancel returned.
func (s *StateMachine) Watch(fn func(*metadata.Image)) (cancel func()) {
	x := &watch{fn: fn}
	w := &s.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	// The image published last, not the state: an image swapped in and not yet announced comes by publish, in its turn.
	img := w.last
	if img == nil {
		img = s.Image()
	}
	fn(img)
	w.list = append(w.list, x)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if i := slices.Index(w.list, x); i >= 0 {
			w.list = slices.Delete(w.list, i, i+1)
		}
	}
}
