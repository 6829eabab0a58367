package filesystem

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOpen(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		write(t, filepath.Join(dir, "f"), "contents")
		must(t, os.Symlink("f", filepath.Join(dir, "link")))
		f, err := v.Open("link")
		must(t, err)
		defer f.Close()
		got, err := io.ReadAll(f)
		must(t, err)
		if string(got) != "contents" || f.Size != 8 || f.Generated || f.Path != dir+"/link" {
			t.Errorf("%q of %+v", got, f)
		}
	})
}

// special makes one of everything that has no contents to read or replace.
func special(t *testing.T, dir string) map[string]error {
	t.Helper()
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o777))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(filepath.Join(dir, "no-driver"), unix.S_IFCHR|0o666, int(unix.Mkdev(240, 77))))
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(t, err)
	t.Cleanup(func() { socket.Close() })
	must(t, os.Symlink("fifo", filepath.Join(dir, "to-fifo")))
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	return map[string]error{
		"dir": ErrIsDirectory, "fifo": ErrNotRegular, "null": ErrNotRegular, "socket": ErrNotRegular,
		// Opening it would be ENXIO: nobody tried.
		"no-driver": ErrNotRegular,
		"to-fifo":   ErrNotRegular, "loop": ErrInvalid,
	}
}

func TestOpenRefusesUnopened(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		refused := special(t, dir)
		refused["missing"] = fs.ErrNotExist
		for path, want := range refused {
			_, err := v.Open(path)
			wantErr(t, err, want)
		}
	})
}

// TestOpenGenerated reads what says it has no bytes, or a page of them.
func TestOpenGenerated(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		write(t, filepath.Join(dir, "empty"), "")
		write(t, filepath.Join(dir, "page"), strings.Repeat("x", os.Getpagesize()))
		for path, want := range map[string]bool{
			"/proc/meminfo": true, "/proc/self/status": true, "/sys/kernel/mm/transparent_hugepage/enabled": true,
			"empty": false, "page": false,
		} {
			f, err := v.Open(path)
			must(t, err)
			contents, err := io.ReadAll(f)
			must(t, err)
			must(t, f.Close())
			if f.Generated != want || (f.ETag() == "") != want {
				t.Errorf("%s: size %d, %d bytes, generated %v, tag %q", path, f.Size, len(contents), f.Generated, f.ETag())
			}
			if want && len(contents) == 0 {
				t.Errorf("%s is empty", path)
			}
		}
	})
}

func TestETag(t *testing.T) {
	dir := userDir(t)
	v := as(alice, dir, false)
	path := filepath.Join(dir, "f")
	tag := func() string {
		f, err := v.Open("f")
		must(t, err)
		defer f.Close()
		return f.ETag()
	}
	write(t, path, "one")
	first := tag()
	if first != tag() || !strings.HasPrefix(first, `"`) || !strings.HasSuffix(first, `"`) {
		t.Errorf("tag %s, then %s", first, tag())
	}
	tags := map[string]string{first: "original"}
	distinct := func(what string) {
		if other, ok := tags[tag()]; ok {
			t.Errorf("%s has the tag of %s", what, other)
		}
		tags[tag()] = what
	}
	write(t, path, "longer")
	distinct("other size")
	must(t, os.Chtimes(path, time.Time{}, time.Unix(1, 1)))
	distinct("other time")
	must(t, os.Chtimes(path, time.Time{}, time.Unix(1, 2)))
	distinct("a nanosecond later")
	write(t, path+"2", "longer")
	must(t, os.Chtimes(path+"2", time.Time{}, time.Unix(1, 2)))
	must(t, os.Rename(path+"2", path))
	distinct("another file")
}

// TestOpenSparse looks past 2^32.
func TestOpenSparse(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		const size = 5 << 30
		write(t, filepath.Join(dir, "sparse"), "")
		must(t, os.Truncate(filepath.Join(dir, "sparse"), size))
		w, err := os.OpenFile(filepath.Join(dir, "sparse"), os.O_WRONLY, 0)
		must(t, err)
		_, err = w.WriteAt([]byte("end"), size-3)
		must(t, err)
		must(t, w.Close())
		f, err := v.Open("sparse")
		must(t, err)
		defer f.Close()
		buf := make([]byte, 3)
		_, err = f.ReadAt(buf, size-3)
		must(t, err)
		if f.Size != size || string(buf) != "end" {
			t.Errorf("size %d ends in %q", f.Size, buf)
		}
	})
}

// TestOpenFileThatChanges keeps reading what was opened, whatever becomes of
// the name.
func TestOpenFileThatChanges(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		write(t, filepath.Join(dir, "f"), "before")
		f, err := v.Open("f")
		must(t, err)
		defer f.Close()
		must(t, os.Remove(filepath.Join(dir, "f")))
		write(t, filepath.Join(dir, "f"), "after")
		got, err := io.ReadAll(f)
		must(t, err)
		if string(got) != "before" {
			t.Errorf("read %q", got)
		}
	})
}

func TestOpenAsUserReadsThroughDo(t *testing.T) {
	dir := userDir(t)
	write(t, filepath.Join(dir, "secret"), "s")
	must(t, os.Chmod(filepath.Join(dir, "secret"), 0o600))
	_, err := as(alice, dir, true).Open("secret")
	wantErr(t, err, fs.ErrPermission)
	for _, u := range []*View{as(alice, dir, false), as(User{}, dir, true)} {
		must(t, u.Do(func() error {
			f, err := u.Open("secret")
			if err != nil {
				return err
			}
			return f.Close()
		}))
	}
	// The group counts, and only the user's own.
	must(t, os.Chown(filepath.Join(dir, "secret"), 0, 41999))
	must(t, os.Chmod(filepath.Join(dir, "secret"), 0o640))
	f, err := as(alice, dir, true).Open("secret")
	must(t, err)
	must(t, f.Close())
	_, err = as(bob, dir, true).Open("secret")
	wantErr(t, err, fs.ErrPermission)
	if _, err := as(bob, dir, true).Open(fmt.Sprintf("/proc/%d/environ", os.Getpid())); err == nil {
		t.Error("bob reads the daemon's environment")
	}
}

// TestOpenWaitingFile: a read of a file that waits for the kernel's news ends at
// a deadline, and with Close.
func TestOpenWaitingFile(t *testing.T) {
	dir := mount(t, "-t", "tracefs", "none")
	f, err := (&View{}).Open(filepath.Join(dir, "trace_pipe"))
	must(t, err)
	if !f.Generated {
		t.Error("not taken for generated")
	}
	must(t, f.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	if n, err := f.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	must(t, f.SetReadDeadline(time.Time{}))
	ended := make(chan error)
	go func() {
		_, err := f.Read(make([]byte, 100))
		ended <- err
	}()
	must(t, f.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read ended with %v", err)
	}
}
