package leaktest

import (
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// limit is how long leaks have to go away. An orderly end takes
	// milliseconds; the rest is for a loaded machine with the race detector.
	limit = 3 * time.Second
	// poll is the pause between two looks.
	poll = 5 * time.Millisecond
)

// Check fails t when something that is not there now is there when t and its
// later clean-ups are done. Call it first.
func Check(t testing.TB) {
	t.Helper()
	check(t, limit)
}

func check(t testing.TB, limit time.Duration) {
	t.Helper()
	openPoller()
	before, err := take()
	if err != nil {
		t.Fatalf("look for leaks: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		for end := time.Now().Add(limit); ; time.Sleep(poll) {
			leaks, err := before.leaks()
			switch late := time.Now().After(end); {
			case err != nil:
				t.Errorf("look for leaks: %v", err)
				return
			case len(leaks) == 0:
				return
			case late:
				t.Errorf("left behind after %v:\n%s", limit, strings.Join(leaks, "\n"))
				return
			}
		}
	})
}

// openPoller makes the runtime open its epoll instance and eventfd, which stay
// for the life of the process. So neither counts as a leak, and those that
// others open do.
var openPoller = sync.OnceFunc(func() {
	r, w, err := os.Pipe()
	if err != nil {
		return // whoever needs descriptors will say so
	}
	_ = r.Close()
	_ = w.Close()
})

// snapshot is what exists at one time: descriptions by identity. Something
// that came later has the identity of nothing in it.
type snapshot map[string]string

func take() (snapshot, error) {
	s := goroutines()
	fds, err := descriptors()
	if err != nil {
		return nil, err
	}
	maps.Copy(s, fds)
	procs, err := children()
	if err != nil {
		return nil, err
	}
	maps.Copy(s, procs)
	return s, nil
}

// leaks describes what exists now and did not when s was taken.
func (s snapshot) leaks() ([]string, error) {
	now, err := take()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(now, func(id, _ string) bool {
		_, old := s[id]
		return old
	})
	return slices.Sorted(maps.Values(now)), nil
}
