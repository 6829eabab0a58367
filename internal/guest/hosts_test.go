package guest

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var eventsIP = netip.MustParseAddr("10.11.12.13")

const eventsLine = "10.11.12.13\tevents.wrenn.local\n"

func TestSetEvents(t *testing.T) {
	for _, row := range []struct{ name, before, after string }{
		{"empty", "", eventsLine},
		{"appended", "127.0.0.1 localhost\n", "127.0.0.1 localhost\n" + eventsLine},
		{"no newline at the end", "127.0.0.1 localhost", "127.0.0.1 localhost\n" + eventsLine},
		{"replaced in place", "# top\n1.2.3.4 events.wrenn.local\n::1 localhost\n", "# top\n" + eventsLine + "::1 localhost\n"},
		{"again", "# top\n" + eventsLine + "::1 localhost\n", "# top\n" + eventsLine + "::1 localhost\n"},
		{"several", "1.2.3.4 events.wrenn.local\nx y\nfd00::1 events.wrenn.local # old\n", eventsLine + "x y\n"},
		{"beside others", "1.2.3.4 a events.wrenn.local  b # note\n", "1.2.3.4\ta b # note\n" + eventsLine},
		{"named twice in a line", "1.2.3.4 events.wrenn.local events.wrenn.local\n", eventsLine},
		{"commented out", "#1.2.3.4 events.wrenn.local\n", "#1.2.3.4 events.wrenn.local\n" + eventsLine},
		{"part of another name", "1.2.3.4 my.events.wrenn.local events.wrenn.locals\n", "1.2.3.4 my.events.wrenn.local events.wrenn.locals\n" + eventsLine},
		{"the name as an address", "events.wrenn.local a\n", "events.wrenn.local a\n" + eventsLine},
		{"odd bytes", "\x00\xff\r\n \n\t# \n", "\x00\xff\r\n \n\t# \n" + eventsLine},
		{"carriage return", "1.2.3.4 events.wrenn.local\r\n", eventsLine},
	} {
		if got := setEvents([]byte(row.before), eventsIP); string(got) != row.after {
			t.Errorf("%s: %q, want %q", row.name, got, row.after)
		}
	}
}

func FuzzSetEvents(f *testing.F) {
	for _, s := range []string{"", "127.0.0.1 localhost", "1.2.3.4 a events.wrenn.local b # c", "x\r\n\x00 y\n#events.wrenn.local"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := setEvents(text, eventsIP)
		if again := setEvents(got, eventsIP); !bytes.Equal(again, got) {
			t.Errorf("%q: then %q, then %q", text, got, again)
		}
		ours := 0
		after := slices.Collect(strings.Lines(string(got)))
		for _, line := range after {
			if line == eventsLine {
				ours++
			} else if _, mine := withoutHost(line, eventsHost); mine {
				t.Errorf("%q: still %q", text, line)
			}
		}
		if ours != 1 {
			t.Errorf("%q: %d lines of ours in %q", text, ours, got)
		}
		for line := range strings.Lines(string(text)) {
			if _, mine := withoutHost(line, eventsHost); !mine && !slices.ContainsFunc(after, func(l string) bool {
				return strings.TrimSuffix(l, "\n") == strings.TrimSuffix(line, "\n")
			}) {
				t.Errorf("%q: lost %q", text, line)
			}
		}
	})
}

// appendX is a change of a file.
func appendX(b []byte) []byte { return append(b, 'x') }

func TestEditKeepsModeAndOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	path := filepath.Join(t.TempDir(), "hosts")
	write(t, path, "a")
	if err := errors.Join(os.Chmod(path, 0o640), os.Chown(path, 12, 34)); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := edit(path, appendX); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o640 || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	check(t, path, "ax")
	b := make([]byte, 9)
	if n, _ := old.Read(b); string(b[:n]) != "a" {
		t.Errorf("who had it open reads %q: it was not replaced at once", b[:n])
	}
	alone(t, path)
}

func check(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", path, b, err, want)
	}
}

// alone checks that nothing is left beside path.
func alone(t *testing.T, path string) {
	t.Helper()
	if found, err := os.ReadDir(filepath.Dir(path)); err != nil || len(found) != 1 {
		t.Errorf("left behind: %v, %v", found, err)
	}
}

func TestEditMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := edit(path, appendX); err != nil {
		t.Fatal(err)
	}
	check(t, path, "x")
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o644 {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestEditThroughSymlink(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "real"), "a")
	link := filepath.Join(dir, "link")
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	if err := edit(link, appendX); err != nil {
		t.Fatal(err)
	}
	check(t, filepath.Join(dir, "real"), "ax")
	if to, err := os.Readlink(link); err != nil || to != "real" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
}

func TestEditUnchangedWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	write(t, path, "a")
	before := stampOf(path)
	if err := edit(path, func(b []byte) []byte { return b }); err != nil || stampOf(path) != before {
		t.Errorf("written without a change: %v", err)
	}
}

func TestEditDirectory(t *testing.T) {
	if err := edit(t.TempDir(), appendX); !errors.Is(err, unix.EISDIR) {
		t.Errorf("editing a directory: %v", err)
	}
	if err := edit(filepath.Join(t.TempDir(), "missing", "hosts"), appendX); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("editing in no directory: %v", err)
	}
}

// TestEditBindMount edits a file that is a mount of its own, as /etc/hosts is
// in containers: rename(2) fails with EBUSY there.
func TestEditBindMount(t *testing.T) {
	inMountNamespace(t, func(dir string) error {
		source, path := filepath.Join(dir, "source"), filepath.Join(dir, "hosts")
		err := errors.Join(
			os.WriteFile(source, []byte("a rather long line\n"), 0o600),
			os.WriteFile(path, nil, 0o644),
			unix.Mount(source, path, "", unix.MS_BIND, ""),
			edit(path, func([]byte) []byte { return []byte("short\n") }))
		if err != nil {
			return err
		}
		b, err := os.ReadFile(source)
		if string(b) != "short\n" {
			t.Errorf("the mounted file has %q", b)
		}
		left, dirErr := os.ReadDir(dir)
		if len(left) != 2 {
			t.Errorf("left behind: %v", left)
		}
		return errors.Join(err, dirErr)
	})
}

// inMountNamespace runs f on a thread with a mount namespace of its own, that
// ends with it.
func inMountNamespace(t *testing.T, f func(dir string) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	dir := t.TempDir()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		if err == nil {
			err = f(dir)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestEditFullDisk(t *testing.T) {
	inMountNamespace(t, func(dir string) error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
			return err
		}
		path := filepath.Join(dir, "hosts")
		if err := os.WriteFile(path, []byte("kept\n"), 0o644); err != nil {
			return err
		}
		err := edit(path, func(b []byte) []byte { return append(b, make([]byte, 64<<10)...) })
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
		b, err := os.ReadFile(path)
		if string(b) != "kept\n" {
			t.Errorf("what was there is %d bytes", len(b))
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
		return err
	})
}
