package watch

import (
	"errors"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
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
