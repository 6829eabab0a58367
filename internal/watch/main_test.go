package watch

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// helperEnv names the part that the re-executed test binary plays.
const helperEnv = "WATCH_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "shake":
		os.Exit(shakeMain(os.Args[1:]))
	case "limit":
		os.Exit(limitMain(os.Args[1:]))
	default:
		fmt.Fprintln(os.Stderr, "unknown helper")
		os.Exit(2)
	}
}

// helper is the test binary in another part. It ends with the test at the
// latest.
func helper(t testing.TB, part string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+part)
	cmd.Stderr = os.Stderr
	return cmd
}

// patience is how long an expected event may take on a busy machine.
const patience = 10 * time.Second

// watcher is a Watcher under test with the events not looked at yet.
type watcher struct {
	*Watcher
	t    testing.TB
	dir  string
	rest []Event
}

func watchDir(t testing.TB, dir string, recursive bool) *watcher {
	t.Helper()
	leaktest.Check(t)
	w, err := Open(dir, Options{Recursive: recursive})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return &watcher{Watcher: w, t: t, dir: dir}
}

// next returns the next event or the end of the watch.
func (w *watcher) next() (Event, error) {
	w.t.Helper()
	if len(w.rest) == 0 {
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		defer cancel()
		var err error
		if w.rest, err = w.Next(ctx); err != nil {
			return Event{}, err
		}
	}
	e := w.rest[0]
	w.rest = w.rest[1:]
	return e, nil
}

// until returns the events up to the one that flush causes, which is left out.
func (w *watcher) until() []string {
	w.t.Helper()
	mark := ".flush"
	write(w.t, filepath.Join(w.dir, mark), "")
	remove(w.t, filepath.Join(w.dir, mark))
	var got []string
	for {
		e, err := w.next()
		if err != nil {
			w.t.Fatalf("after %q: %v", got, err)
		}
		switch {
		case e.Name == mark && e.Kind == Remove:
			return got
		case e.Name == mark:
		default:
			got = append(got, text(e))
		}
	}
}

// text is an event as the tests write it: "CREATE name" or "CREATE new < old".
func text(e Event) string {
	if e.From != "" {
		return fmt.Sprintf("%v %s < %s", e.Kind, e.Name, e.From)
	}
	return fmt.Sprintf("%v %s", e.Kind, e.Name)
}

// want compares all events up to now.
func (w *watcher) want(lines ...string) {
	w.t.Helper()
	if got := w.until(); !slices.Equal(got, lines) {
		w.t.Errorf("got events\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

// wantEnd expects events and then the end of the watch, for good.
func (w *watcher) wantEnd(end error, lines ...string) {
	w.t.Helper()
	var got []string
	for {
		e, err := w.next()
		if err == nil {
			got = append(got, text(e))
			continue
		}
		if !slices.Equal(got, lines) || err != end { //nolint:errorlint // exactly this one
			w.t.Errorf("got %q, %v; want %q, %v", got, err, lines, end)
		}
		break
	}
	if _, err := w.next(); err != end { //nolint:errorlint // exactly this one
		w.t.Errorf("second end: %v, want %v", err, end)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func mkdir(t testing.TB, path ...string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(path...), 0o755))
}

func remove(t testing.TB, path ...string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(path...)))
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	must(t, unix.Rename(from, to)) // unlike os.Rename, over empty directories too
}
