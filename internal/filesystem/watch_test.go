package filesystem

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watcher is a bare inotify watch on one directory.
type watcher struct {
	t  *testing.T
	fd int
}

func watch(t *testing.T, dir string) *watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	_, err = unix.InotifyAddWatch(fd, dir,
		unix.IN_CREATE|unix.IN_ATTRIB|unix.IN_MODIFY|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO)
	must(t, err)
	return &watcher{t, fd}
}

// events reads the events that are there, one at a time until the queue has
// been empty; all of what the caller did before is in it.
func (w *watcher) events() (kinds []string) {
	names := map[uint32]string{
		unix.IN_CREATE: "CREATE", unix.IN_ATTRIB: "CHMOD", unix.IN_MODIFY: "WRITE",
		unix.IN_DELETE: "REMOVE", unix.IN_MOVED_FROM: "FROM", unix.IN_MOVED_TO: "TO",
	}
	buf := make([]byte, 64<<10)
	for {
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 0); n == 0 && err == nil {
			return kinds
		}
		n, err := unix.Read(w.fd, buf)
		must(w.t, err)
		for p := buf[:n]; len(p) > 0; {
			mask, length := binary.NativeEndian.Uint32(p[4:]), binary.NativeEndian.Uint32(p[12:])
			name := strings.TrimRight(string(p[unix.SizeofInotifyEvent:][:length]), "\x00")
			kinds = append(kinds, names[mask&^unix.IN_ISDIR]+" "+name)
			p = p[unix.SizeofInotifyEvent+length:]
		}
	}
}

// drain reads every event as soon as it is there, so that the kernel has
// nothing to merge it with, until it has seen the name "end".
func (w *watcher) drain(do func()) (kinds []string) {
	done := make(chan []string)
	go func() {
		var all []string
		for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); {
			for _, kind := range w.events() {
				if kind == "CREATE end" {
					done <- all
					return
				}
				all = append(all, kind)
			}
		}
		done <- append(all, "time is over")
	}()
	do()
	return <-done
}

// TestWriteEvents is the promise of the wire: a small new file is CREATE,
// CHMOD, WRITE, also for somebody who looks at every moment and for contents
// that trickle in.
func TestWriteEvents(t *testing.T) {
	for name, u := range map[string]Upload{
		"plain":         {Size: -1},
		"size known":    {Size: 10},
		"one key":       {Size: 10, Metadata: Metadata{"k": "v"}},
		"user is owner": {Size: 10},
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, v *View, dir string) {
				w := watch(t, dir)
				got := w.drain(func() {
					_, err := v.Write("f", &trickle{"0123456789"}, u)
					must(t, err)
					write(t, dir+"/end", "")
				})
				if want := []string{"CREATE f", "CHMOD f", "WRITE f"}; !slices.Equal(got, want) {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

// TestWriteEventsManyKeys relies on the kernel merging equal events that nobody
// has read.
func TestWriteEventsManyKeys(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		w := watch(t, dir)
		_, err := v.Write("f", &trickle{"x"}, Upload{Size: 1, Metadata: Metadata{"a": "1", "b": "2", "c": "3"}})
		must(t, err)
		if got, want := w.events(), []string{"CREATE f", "CHMOD f", "WRITE f"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
}

func TestMakeDirEvents(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		w := watch(t, dir)
		_, err := v.MakeDir("d")
		must(t, err)
		if got := w.events(); !slices.Equal(got, []string{"CREATE d"}) {
			t.Errorf("got %q", got)
		}
	})
}

// trickle yields a byte at a time.
type trickle struct{ rest string }

func (r *trickle) Read(p []byte) (int, error) {
	if r.rest == "" {
		return 0, io.EOF
	}
	p[0], r.rest = r.rest[0], r.rest[1:]
	return 1, nil
}
