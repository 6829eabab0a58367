package watch

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// poll calls Events until n events are there or the watcher has ended.
func poll(t *testing.T, s *Set[string], id string, n int) ([]string, error) {
	t.Helper()
	var got []string
	for limit := time.Now().Add(patience); len(got) < n; {
		value, events, err := s.Events(id)
		if err != nil {
			return got, err
		}
		if value != "value" {
			t.Errorf("value %q", value)
		}
		for _, e := range events {
			got = append(got, text(e))
		}
		if time.Now().After(limit) {
			t.Fatalf("only %q", got)
		}
	}
	return got, nil
}

func newSet(t *testing.T) *Set[string] {
	t.Helper()
	leaktest.Check(t)
	s := NewSet[string]()
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func TestSetPolls(t *testing.T) {
	s, dir := newSet(t), t.TempDir()
	id, err := s.Create(dir, Options{Recursive: true}, "value")
	must(t, err)
	other, err := s.Create(dir, Options{}, "value")
	must(t, err)
	if id == other || len(id) < 20 {
		t.Errorf("ids %q, %q", id, other)
	}
	mkdir(t, dir, "a")
	write(t, dir+"/a/f", "")
	if got, err := poll(t, s, id, 2); err != nil || !slices.Equal(got, []string{"CREATE a", "CREATE a/f"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := poll(t, s, other, 1); err != nil || !slices.Equal(got, []string{"CREATE a"}) {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, s.Remove(id))
	if err := s.Remove(id); !errors.Is(err, ErrUnknownWatcher) {
		t.Errorf("Remove again: %v", err)
	}
	if _, _, err := s.Events(id); !errors.Is(err, ErrUnknownWatcher) {
		t.Errorf("Events after Remove: %v", err)
	}
	if _, err := s.Create(dir+"/none", Options{}, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("Create of a missing directory: %v", err)
	}
}

func TestSetReportsTheEndOnce(t *testing.T) {
	s, dir := newSet(t), t.TempDir()
	mkdir(t, dir, "root")
	id, err := s.Create(dir+"/root", Options{}, "value")
	must(t, err)
	remove(t, dir, "root")
	got, err := poll(t, s, id, 2)
	if !slices.Equal(got, []string{"REMOVE ."}) || !errors.Is(err, ErrRootRemoved) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, _, err := s.Events(id); !errors.Is(err, ErrUnknownWatcher) {
		t.Errorf("after the end: %v", err)
	}
}

func TestSetQueueIsBounded(t *testing.T) {
	s := newSet(t)
	id, err := s.Create(t.TempDir(), Options{}, "value")
	must(t, err)
	p := s.polled[id]
	batch := make([]Event, 1000)
	total := 0
	for s.queue(p, batch, nil) {
		total += len(batch)
	}
	var got []Event
	for {
		_, events, err := s.Events(id)
		if err != nil {
			if !errors.Is(err, ErrOverflow) {
				t.Errorf("end: %v, want %v", err, ErrOverflow)
			}
			break
		}
		got = append(got, events...)
	}
	if len(got) < total || len(got) > maxQueued {
		t.Errorf("%d events kept of more than %d, bound %d", len(got), total, maxQueued)
	}
	if s.bytes != 0 {
		t.Errorf("%d bytes counted in an empty set", s.bytes)
	}
}

func TestSetMemoryIsBounded(t *testing.T) {
	s := newSet(t)
	batch := make([]Event, 100)
	for i := range batch {
		batch[i].Name = string(make([]byte, 4000))
	}
	for i := range 20 {
		id, err := s.Create(t.TempDir(), Options{}, "value")
		must(t, err)
		for s.queue(s.polled[id], batch, nil) {
			if s.polled[id].bytes > maxQueuedBytes {
				t.Fatalf("watcher %d holds %d bytes", i, s.polled[id].bytes)
			}
		}
	}
	if s.bytes > maxSetBytes {
		t.Errorf("the set holds %d bytes, bound %d", s.bytes, maxSetBytes)
	}
}

func TestSetClosesUnpolled(t *testing.T) {
	leaktest.Check(t)
	s := NewSet[string]()
	s.idle = 50 * time.Millisecond
	t.Cleanup(func() { must(t, s.Close()) })
	idle, err := s.Create(t.TempDir(), Options{}, "value")
	must(t, err)
	polled, err := s.Create(t.TempDir(), Options{}, "value")
	must(t, err)
	gone := func(id string) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.polled[id] == nil
	}
	for limit := time.Now().Add(patience); !gone(idle); {
		if _, _, err := s.Events(polled); err != nil {
			t.Fatalf("polled watcher: %v", err)
		}
		if time.Now().After(limit) {
			t.Fatal("unpolled watcher stays")
		}
	}
	must(t, s.Remove(polled))
	if s.timer != nil {
		t.Error("a timer runs in an empty set")
	}
}

func TestSetPause(t *testing.T) {
	s := newSet(t)
	dir := t.TempDir()
	if s.timer != nil {
		t.Error("a timer runs in a new set")
	}
	id, err := s.Create(dir, Options{}, "value")
	must(t, err)
	if s.timer == nil {
		t.Error("no timer although a watcher can expire")
	}
	s.Pause()
	if s.timer != nil {
		t.Error("a timer runs while paused")
	}
	// Watching and polling go on, also for new ones.
	write(t, dir+"/f", "")
	if got, err := poll(t, s, id, 1); err != nil || !slices.Equal(got, []string{"CREATE f"}) {
		t.Errorf("while paused: %q, %v", got, err)
	}
	second, err := s.Create(dir, Options{}, "value")
	must(t, err)
	if s.timer != nil {
		t.Error("Create started the timer while paused")
	}
	s.expire() // one that had fired before Pause
	s.polled[second].last = time.Now().Add(-2 * idleLimit)
	s.Resume()
	if s.timer == nil {
		t.Error("no timer after Resume")
	}
	s.expire()
	if _, _, err := s.Events(second); err != nil {
		t.Errorf("the pause counted as idle: %v", err)
	}
}

func TestSetClose(t *testing.T) {
	leaktest.Check(t)
	s := NewSet[string]()
	for i := range 10 {
		_, err := s.Create(t.TempDir(), Options{}, fmt.Sprint(i))
		must(t, err)
	}
	must(t, s.Close())
	must(t, s.Close())
	if _, err := s.Create(t.TempDir(), Options{}, ""); !errors.Is(err, ErrClosed) {
		t.Errorf("Create after Close: %v", err)
	}
	if s.timer != nil {
		t.Error("a timer runs after Close")
	}
}
