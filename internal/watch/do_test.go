package watch

import (
	"errors"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/linux"
)

// TestDo checks that directories are opened inside Options.Do, those made
// later as well, and that its error ends the watch.
func TestDo(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	refuse := errors.New("refused")
	var answer error
	calls := 0
	opts := Options{Recursive: true, Do: func(fn func() error) error {
		calls++
		if answer != nil {
			return answer
		}
		return fn()
	}}
	answer = refuse
	if w, err := Open(dir, opts); w != nil || !errors.Is(err, refuse) {
		t.Fatalf("open: %v, %v", w, err)
	}
	answer = nil
	w, err := Open(dir, opts)
	must(t, err)
	defer w.Close()
	mkdir(t, dir, "new")
	events, err := w.Next(t.Context())
	if err != nil || len(events) != 1 || calls != 3 {
		t.Errorf("%v, %v after %d calls", events, err, calls)
	}
	write(t, dir+"/new/file", "")
	if events, err := w.Next(t.Context()); err != nil || events[0].Name != "new/file" {
		t.Errorf("%v, %v", events, err)
	}
	answer = refuse
	mkdir(t, dir, "newer")
	if _, err := w.Next(t.Context()); !errors.Is(err, refuse) {
		t.Errorf("next: %v", err)
	}
}

// TestOpenAt checks that the root and directories made later are opened with
// Options.OpenAt, and that its errors end the watch.
func TestOpenAt(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	refuse := errors.New("refused")
	var refused string
	opts := Options{Recursive: true, OpenAt: func(dirfd int, path string, flags int) (int, error) {
		if path == refused {
			return -1, refuse
		}
		return linux.OpenAt(dirfd, path, flags, 0)
	}}
	refused = dir
	if w, err := Open(dir, opts); w != nil || !errors.Is(err, refuse) {
		t.Fatalf("open: %v, %v", w, err)
	}
	refused = "new"
	w, err := Open(dir, opts)
	must(t, err)
	defer w.Close()
	mkdir(t, dir, "old")
	if events, err := w.Next(t.Context()); err != nil || len(events) != 1 {
		t.Errorf("%v, %v", events, err)
	}
	mkdir(t, dir, "new")
	if events, err := w.Next(t.Context()); err != nil || len(events) != 1 {
		t.Errorf("%v, %v", events, err)
	}
	if _, err := w.Next(t.Context()); !errors.Is(err, refuse) {
		t.Errorf("next: %v", err)
	}
}
