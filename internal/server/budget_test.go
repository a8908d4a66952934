package server

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func (b *budget) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Len()
}

func TestBudgetServesInOrder(t *testing.T) {
	b := newBudget(100)
	holder := &account{b: b}
	if err := holder.grow(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	accts := make([]*account, 5)
	for i := range accts {
		accts[i] = &account{b: b}
		wg.Go(func() {
			if err := accts[i].grow(t.Context(), 60); err != nil {
				t.Error(err)
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			accts[i].release()
		})
		until(t, "in line", func() bool { return b.waiting() == i+1 })
	}
	// A small claim does not overtake the large ones before it, although there is room for it.
	small := &account{b: b}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := small.grow(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a small claim overtook: %v", err)
	}
	holder.release()
	wg.Wait()
	for i, got := range order {
		if i != got {
			t.Fatalf("served in the order %v", order)
		}
	}
	if b.inUse() != 0 || b.waiting() != 0 {
		t.Errorf("%d in use, %d waiting", b.inUse(), b.waiting())
	}
}

func TestBudgetHasOneOverdraft(t *testing.T) {
	b := newBudget(100)
	one, two := &account{b: b}, &account{b: b}
	for _, a := range []*account{one, two} {
		if err := a.grow(t.Context(), 50); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.grow(t.Context(), 500); err != nil { // nothing is left, and still it can end
		t.Fatal(err)
	}
	if err := one.grow(t.Context(), 500); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := two.grow(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second overdraft: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- two.grow(t.Context(), 500) }()
	until(t, "in line", func() bool { return b.waiting() == 1 })
	one.settle() // whole: the next may end too, although nothing was given back
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	one.release()
	two.release()
	if b.inUse() != 0 {
		t.Errorf("%d in use", b.inUse())
	}
}

func TestAClaimGivenUpLetsTheNextPass(t *testing.T) {
	b := newBudget(100)
	holder := &account{b: b}
	if err := holder.grow(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	big, small := make(chan error, 1), make(chan error, 1)
	go func() { big <- (&account{b: b}).grow(ctx, 90) }()
	until(t, "in line", func() bool { return b.waiting() == 1 })
	go func() { small <- (&account{b: b}).grow(t.Context(), 30) }()
	until(t, "in line", func() bool { return b.waiting() == 2 })
	cancel()
	if err := <-big; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-small; err != nil {
		t.Error(err)
	}
}

func TestBudgetCloseEndsWaits(t *testing.T) {
	b := newBudget(10)
	holder := &account{b: b}
	if err := holder.grow(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- (&account{b: b}).grow(t.Context(), 10) }()
	until(t, "in line", func() bool { return b.waiting() == 1 })
	b.close()
	if err := <-done; !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if err := (&account{b: b}).grow(t.Context(), 1); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	holder.release()
}

// FuzzFrame feeds bytes as a connection's: what comes out is what went in, and never more was taken than arrived allows.
func FuzzFrame(f *testing.F) {
	f.Add(request(0, 1, []byte("body")))
	f.Add([]byte{0x06, 0x40, 0, 0, 1, 2, 3})
	f.Add(append([]byte{0, 3, 0, 0}, make([]byte, 3<<16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		size, err := frameSize([4]byte(b), 100<<20)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatal(err)
			}
			return
		}
		var charged int64
		frame, err := readFrame(bytes.NewReader(b[4:]), size, asking(func(n int64) error {
			if n < 0 {
				t.Fatalf("charged %d", n)
			}
			charged += n
			return nil
		}))
		have := len(b) - 4
		if bound := int64(max(firstBytes, growth*have, secondBytes*min(1, have/firstBytes))); charged > bound {
			t.Fatalf("%d bytes taken for %d that came", charged, have)
		}
		if (err == nil) != (have >= size) {
			t.Fatalf("%d of %d bytes: %v", have, size, err)
		}
		if err != nil {
			return
		}
		h, rest, err := parseHeader(frame)
		if err != nil || len(rest) != size-headerBytes || !bytes.Equal(frame, b[4:4+size]) || charged != int64(size) {
			t.Fatalf("%+v %v, %d of %d", h, err, len(rest), size)
		}
	})
}
