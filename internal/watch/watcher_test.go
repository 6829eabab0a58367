package watch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

func TestKinds(t *testing.T) {
	for _, recursive := range []bool{false, true} {
		dir := t.TempDir()
		write(t, dir+"/old", "content")
		mkdir(t, dir, "sub")
		w := watchDir(t, dir, recursive)

		// An upload: made, given its mode, written, closed.
		f, err := os.OpenFile(dir+"/new", os.O_CREATE|os.O_WRONLY, 0o600)
		must(t, err)
		must(t, f.Chmod(0o644))
		_, err = f.WriteString("small")
		must(t, err)
		must(t, f.Close())
		w.want("CREATE new", "CHMOD new", "WRITE new")

		must(t, os.Truncate(dir+"/old", 0))
		must(t, os.Chtimes(dir+"/old", time.Now(), time.Now()))
		must(t, os.Link(dir+"/old", dir+"/link"))
		must(t, os.Symlink("nowhere", dir+"/symlink"))
		must(t, unix.Mkfifo(dir+"/fifo", 0o600))
		rename(t, dir+"/old", dir+"/name")
		remove(t, dir, "name")
		remove(t, dir, "sub")
		must(t, os.Chmod(dir, 0o700))
		w.want("WRITE old", "CHMOD old", "CREATE link", "CREATE symlink", "CREATE fifo",
			"RENAME old", "CREATE name < old", "REMOVE name", "REMOVE sub", "CHMOD .")
	}
}

func TestNonRecursiveStaysOnTop(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "sub")
	w := watchDir(t, dir, false)
	write(t, dir+"/sub/file", "x")
	mkdir(t, dir, "made/below")
	write(t, dir+"/made/file", "x")
	rename(t, dir+"/sub", dir+"/moved")
	w.want("CREATE made", "RENAME sub", "CREATE moved < sub")
}

func TestRenameAcrossTheBorder(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, dir+"/a", "")
	write(t, outside+"/b", "")
	w := watchDir(t, dir, false)
	rename(t, dir+"/a", outside+"/a")
	rename(t, outside+"/b", dir+"/b")
	w.want("RENAME a", "CREATE b")
}

func TestWriteAfterUnlinkHasNoName(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, false)
	f, err := os.Create(dir + "/f")
	must(t, err)
	defer f.Close()
	remove(t, dir, "f")
	_, err = f.WriteString("unseen")
	must(t, err)
	w.want("CREATE f", "REMOVE f")
}

func TestNamesAreBytes(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	long := strings.Repeat("n", unix.NAME_MAX)
	for _, name := range []string{"new\nline", "\xff\xfe", long} {
		mkdir(t, dir, name)
		write(t, filepath.Join(dir, name, name), "")
		w.want("CREATE "+name, "CREATE "+name+"/"+name)
	}
}

func TestRootRemoved(t *testing.T) {
	for _, c := range []struct {
		name string
		act  func(t *testing.T, root string)
	}{
		{"removed", func(t *testing.T, root string) { remove(t, root) }},
		{"removed while open", func(t *testing.T, root string) {
			f, err := os.Open(root)
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
			remove(t, root)
		}},
		{"renamed", func(t *testing.T, root string) { rename(t, root, root+"2") }},
		{"overwritten while open", func(t *testing.T, root string) {
			f, err := os.Open(root)
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
			mkdir(t, root+"2")
			rename(t, root+"2", root)
		}},
		{"unmounted", func(t *testing.T, root string) { must(t, unix.Unmount(root, 0)) }},
		{"made again", func(t *testing.T, root string) { remove(t, root); mkdir(t, root) }},
	} {
		for _, recursive := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				root := t.TempDir() + "/root"
				mkdir(t, root)
				if c.name == "unmounted" {
					must(t, unix.Mount("none", root, "tmpfs", 0, ""))
					t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
				}
				w := watchDir(t, root, recursive)
				c.act(t, root)
				w.wantEnd(ErrRootRemoved, "REMOVE .")
			})
		}
	}
}

// A sibling, or an entry inside, that has the root's name is not the root.
func TestRootNameElsewhere(t *testing.T) {
	above := t.TempDir()
	mkdir(t, above, "root/root")
	w := watchDir(t, above+"/root", true)
	mkdir(t, above, "rooted")
	remove(t, above, "rooted")
	remove(t, above, "root/root")
	w.want("REMOVE root")
}

func TestRootThroughSymlink(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "real")
	must(t, os.Symlink("real", dir+"/link"))
	w := watchDir(t, dir+"/link", true)
	remove(t, dir, "link")
	mkdir(t, dir, "real/a/b")
	w.dir = dir + "/real"
	w.want("CREATE a", "CREATE a/b")
}

// When a directory above the root is renamed, new directories can no longer be
// reached: the watch ends instead of going blind.
func TestDirectoryAboveRootRenamed(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "above/root")
	w := watchDir(t, dir+"/above/root", true)
	rename(t, dir+"/above", dir+"/elsewhere")
	mkdir(t, dir, "elsewhere/root/new")
	w.wantEnd(ErrRootRemoved, "CREATE new", "REMOVE .")
}

func TestOpenErrors(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	write(t, dir+"/file", "")
	must(t, os.Symlink("file", dir+"/link"))
	for _, c := range []struct {
		path string
		want error
	}{
		{dir + "/none", ErrNotFound},
		{dir + "/none", fs.ErrNotExist},
		{dir + "/file", ErrNotDirectory},
		{dir + "/link", ErrNotDirectory},
		{dir + "/file/below", ErrNotDirectory},
	} {
		if _, err := Open(c.path, Options{}); !errors.Is(err, c.want) {
			t.Errorf("Open(%q): %v, want %v", c.path, err, c.want)
		}
	}
}

func TestOverflowEndsTheWatch(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	limit := int(sysctl("fs.inotify.max_queued_events"))
	for range limit/2 + 10 {
		write(t, dir+"/f", "")
		remove(t, dir, "f")
	}
	got := 0
	for {
		_, err := w.next()
		if err == nil {
			got++
			continue
		}
		if err != ErrOverflow { //nolint:errorlint // exactly this one
			t.Fatalf("end: %v, want %v", err, ErrOverflow)
		}
		break
	}
	if got != limit {
		t.Errorf("%d events before the overflow, want the whole queue of %d", got, limit)
	}
}

func TestNextContext(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, false)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	for range 20 {
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := w.Next(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
		cancel()
	}
	write(t, dir+"/f", "")
	if got := w.until(); !slices.Equal(got, []string{"CREATE f"}) {
		t.Errorf("after contexts ended: %q", got)
	}
}

func TestCloseInterruptsNext(t *testing.T) {
	leaktest.Check(t)
	for range 50 {
		w, err := Open(t.TempDir(), Options{})
		must(t, err)
		ended := make(chan error)
		go func() {
			_, err := w.Next(context.Background())
			ended <- err
		}()
		must(t, w.Close())
		if err := <-ended; !errors.Is(err, ErrClosed) || !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("Next after Close: %v", err)
		}
		must(t, w.Close())
	}
}

// An idle watcher keeps the node of its root and no buffer.
func TestIdleWatcherHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	mkdir(t, dir, "a/b")
	write(t, dir+"/a/b/c", "")
	w.until()
	if w.queue != nil || w.out != nil || w.entries != nil || w.settling != nil || len(w.hints) > 0 || len(w.retry) > 0 || w.fresh != nil {
		t.Errorf("idle watcher holds %+v", w.Watcher)
	}
}
