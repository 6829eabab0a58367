package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	fs "github.com/wrenn/envd/gen/filesystem"
)

func TestWatchDir(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		dir := userDir(t)
		must(t, os.Mkdir(dir+"/sub", 0o755))
		w := c.watchDir(bounded(t), &fs.WatchDirRequest{Path: dir})
		writeFile(t, dir+"/file", "contents")
		w.want("CREATE file", "WRITE file")
		must(t, os.Chmod(dir+"/file", 0o600))
		w.want("CHMOD file")
		must(t, os.Rename(dir+"/file", dir+"/file2"))
		w.want("RENAME file", "CREATE file2 from file")
		must(t, os.Symlink("file2", dir+"/link"))
		must(t, os.Remove(dir+"/file2"))
		w.want("CREATE link", "REMOVE file2")
		writeFile(t, dir+"/sub/unseen", "") // not recursive
		writeFile(t, dir+"/odd\xff", "")
		w.want("CREATE odd\uFFFD")
	})
}

func TestWatchRecursive(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		dir := userDir(t)
		must(t, os.MkdirAll(dir+"/old/deep", 0o755))
		w := c.watchDir(bounded(t), &fs.WatchDirRequest{Path: dir, Recursive: true})
		writeFile(t, dir+"/old/deep/file", "")
		w.want("CREATE old/deep/file")
		// What mkdir -p a/b/c; touch a/b/c/f does: nothing made before the
		// watch of its directory is lost.
		must(t, os.MkdirAll(dir+"/a/b/c", 0o755))
		writeFile(t, dir+"/a/b/c/f", "")
		w.want("CREATE a", "CREATE a/b", "CREATE a/b/c", "CREATE a/b/c/f")
		must(t, os.Rename(dir+"/a/b", dir+"/moved"))
		w.want("RENAME a/b", "CREATE moved from a/b")
		writeFile(t, dir+"/moved/c/f2", "")
		w.want("CREATE moved/c/f2")
		must(t, os.RemoveAll(dir+"/moved"))
		last := ""
		for last != "REMOVE moved" {
			e := w.read()
			if e == nil {
				t.Fatalf("stream ended: %v", w.err)
			}
			last = word(e)
		}
	})
}

// TestWatchEntry checks which events have the entry, and what it is.
func TestWatchEntry(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		dir := userDir(t)
		must(t, os.Mkdir(dir+"/sub", 0o755))
		ctx := as(bounded(t), user)
		w := c.watchDir(ctx, &fs.WatchDirRequest{Path: dir + "/", Recursive: true, IncludeEntry: true})
		wantEntry := func(event string, size int64, perm string) {
			t.Helper()
			e := w.read()
			if e == nil || word(e) != event {
				t.Fatalf("got %v, %v, expected %s", e, w.err, event)
			}
			if got := e.Entry; got == nil || got.Path != dir+"/"+e.Name || got.Size != size || got.Permissions != perm || got.Owner != "root" {
				t.Errorf("%s: entry %v", event, got)
			}
		}
		elsewhere := t.TempDir() + "/file"
		writeFile(t, elsewhere, "12345")
		must(t, os.Rename(elsewhere, dir+"/sub/file"))
		wantEntry("CREATE sub/file", 5, "-rw-r--r--")
		f, err := os.OpenFile(dir+"/sub/file", os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString("54321")
		must(t, errors.Join(err, f.Close()))
		wantEntry("WRITE sub/file", 5, "-rw-r--r--")
		must(t, os.Chmod(dir+"/sub/file", 0o600))
		wantEntry("CHMOD sub/file", 5, "-rw-------")
		must(t, os.Rename(dir+"/sub/file", dir+"/file"))
		if e := w.read(); e.GetEntry() != nil || word(e) != "RENAME sub/file" {
			t.Errorf("got %v", e)
		}
		wantEntry("CREATE file from sub/file", 5, "-rw-------")
		must(t, os.Remove(dir+"/file"))
		if e := w.read(); e.GetEntry() != nil || word(e) != "REMOVE file" {
			t.Errorf("got %v", e)
		}
		// Without being asked there is none.
		plain := c.watchDir(ctx, &fs.WatchDirRequest{Path: dir})
		must(t, os.Mkdir(dir+"/new", 0o755))
		if e := plain.read(); e.GetEntry() != nil || word(e) != "CREATE new" {
			t.Errorf("got %v", e)
		}
	})
}

func TestWatchErrors(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), userDir(t)
		writeFile(t, dir+"/file", "")
		for path, code := range map[string]connect.Code{
			dir + "/none": connect.CodeNotFound, dir + "/file": connect.CodeInvalidArgument, "~root": connect.CodeInvalidArgument,
		} {
			_, err := c.tryWatch(ctx, &fs.WatchDirRequest{Path: path})
			c.wantCode(err, code)
			err = c.unary(ctx, methodCreateWatcher, &fs.CreateWatcherRequest{Path: path}, &fs.CreateWatcherResponse{})
			c.wantCode(err, code)
		}
		for _, id := range []string{"", "nosuchwatcher"} {
			err := c.unary(ctx, methodWatcherEvents, &fs.GetWatcherEventsRequest{WatcherId: id}, &fs.GetWatcherEventsResponse{})
			c.wantCode(err, connect.CodeNotFound)
			err = c.unary(ctx, methodRemoveWatcher, &fs.RemoveWatcherRequest{WatcherId: id}, &fs.RemoveWatcherResponse{})
			c.wantCode(err, connect.CodeNotFound)
		}
	})
}

// TestWatchRootRemoved checks the last event and the code of the end.
func TestWatchRootRemoved(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), userDir(t)
		for name, end := range map[string]func(dir string) error{
			"removed": os.Remove,
			"renamed": func(dir string) error { return os.Rename(dir, dir+"2") },
		} {
			root := filepath.Join(dir, name)
			must(t, os.Mkdir(root, 0o755))
			w := c.watchDir(ctx, &fs.WatchDirRequest{Path: root, Recursive: true})
			polled := c.createWatcher(ctx, &fs.CreateWatcherRequest{Path: root})
			must(t, end(root))
			w.want("REMOVE .")
			w.wantEnd(connect.CodeNotFound)
			if got := c.poll(ctx, polled, "REMOVE ."); !slices.Equal(got, []string{"REMOVE ."}) {
				t.Errorf("%s: polled %q", name, got)
			}
			err := c.unary(ctx, methodWatcherEvents, &fs.GetWatcherEventsRequest{WatcherId: polled}, &fs.GetWatcherEventsResponse{})
			c.wantCode(err, connect.CodeNotFound)
		}
	})
}

func TestWatchKeepAlive(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		dir := userDir(t)
		w := c.watchDir(with(bounded(t), "Keepalive-Ping-Interval", "1"), &fs.WatchDirRequest{Path: dir})
		time.AfterFunc(2500*time.Millisecond, func() { _ = os.Mkdir(dir+"/late", 0o755) })
		w.want("CREATE late")
		if w.keepalives != 2 && w.keepalives != 1 { // one less on a busy machine
			t.Errorf("%d keepalives in 2.5 s", w.keepalives)
		}
	})
}

// TestWatchTimeout checks that a client's deadline ends its stream.
func TestWatchTimeout(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		w := c.watchDir(c.timeout(bounded(t), 300*time.Millisecond), &fs.WatchDirRequest{Path: userDir(t)})
		w.wantEnd(connect.CodeDeadlineExceeded)
	})
}

// TestWatchManyAtOnce checks that what is there at once comes whole and in
// order.
func TestWatchManyAtOnce(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		const n = 1000
		dir := userDir(t)
		w := c.watchDir(bounded(t), &fs.WatchDirRequest{Path: dir})
		for i := range n {
			must(t, os.Mkdir(fmt.Sprintf("%s/%d", dir, i), 0o755))
		}
		for i := range n {
			w.want(fmt.Sprintf("CREATE %d", i))
		}
	})
}

// TestWatchUnread checks that a client which does not read costs the others
// nothing, and learns in the end that events were lost.
func TestWatchUnread(t *testing.T) {
	t.Parallel()
	d := &daemon{name: "unread"}
	must(t, d.start())
	t.Cleanup(func() { must(t, d.stop()) })
	c := &call{t: t, d: d, kind: "connect-proto-http1", caller: newConnect(d, http1())}
	dir := userDir(t)
	// Deep names, of which few fill the socket's buffers.
	deep := dir + strings.Repeat("/"+strings.Repeat("n", 250), 14)
	must(t, os.MkdirAll(deep, 0o755))
	unread := c.watchDir(t.Context(), &fs.WatchDirRequest{Path: dir, Recursive: true})
	other := c.watchDir(t.Context(), &fs.WatchDirRequest{Path: deep})
	before := residentKiB(t, d)
	// More than those and the kernel's queue hold together.
	const rounds, each = 6, 2000
	for round := range rounds {
		for range each {
			must(t, os.WriteFile(deep+"/file", nil, 0o600))
			must(t, os.Remove(deep+"/file"))
		}
		last := fmt.Sprint(round)
		writeFile(t, deep+"/"+last, "")
		for e := other.read(); ; e = other.read() {
			if e == nil {
				t.Fatalf("the other stream ended: %v", other.err)
			}
			if e.Name == last {
				break
			}
		}
	}
	if grown := residentKiB(t, d) - before; grown > 64<<10 {
		t.Errorf("the daemon grew by %d KiB", grown)
	}
	events := 0
	for unread.read() != nil {
		events++
	}
	if errors.Is(unread.err, io.EOF) || connect.CodeOf(unread.err) != connect.CodeDataLoss {
		t.Errorf("after %d events: %v, expected data_loss", events, unread.err)
	}
	if all := rounds * (2*each + 1); events >= all {
		t.Errorf("all %d events came", events)
	}
}

// residentKiB is the daemon's resident memory.
func residentKiB(t *testing.T, d *daemon) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

func (c *call) createWatcher(ctx context.Context, req *fs.CreateWatcherRequest) string {
	c.t.Helper()
	res := &fs.CreateWatcherResponse{}
	c.must(c.unary(ctx, methodCreateWatcher, req, res))
	if len(res.WatcherId) < 20 {
		c.t.Fatalf("watcher id %q", res.WatcherId)
	}
	return res.WatcherId
}

// poll asks for events until the last one is there.
func (c *call) poll(ctx context.Context, id, last string) (words []string) {
	c.t.Helper()
	for !slices.Contains(words, last) {
		res := &fs.GetWatcherEventsResponse{}
		c.must(c.unary(ctx, methodWatcherEvents, &fs.GetWatcherEventsRequest{WatcherId: id}, res))
		for _, e := range res.Events {
			words = append(words, word(e))
		}
		time.Sleep(time.Millisecond)
	}
	return words
}

func TestWatcherPolled(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), userDir(t)
		id := c.createWatcher(ctx, &fs.CreateWatcherRequest{Path: dir, Recursive: true, IncludeEntry: true})
		res := &fs.GetWatcherEventsResponse{}
		must(t, c.unary(ctx, methodWatcherEvents, &fs.GetWatcherEventsRequest{WatcherId: id}, res))
		if len(res.Events) != 0 {
			t.Errorf("events before any: %v", res.Events)
		}
		must(t, os.MkdirAll(dir+"/a/b", 0o755))
		got := c.poll(ctx, id, "CREATE a/b")
		writeFile(t, dir+"/a/b/file", "contents")
		got = append(got, c.poll(ctx, id, "WRITE a/b/file")...)
		must(t, os.Rename(dir+"/a/b", dir+"/c"))
		got = append(got, c.poll(ctx, id, "CREATE c from a/b")...)
		want := []string{"CREATE a", "CREATE a/b", "CREATE a/b/file", "WRITE a/b/file", "RENAME a/b", "CREATE c from a/b"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, expected %q", got, want)
		}
		must(t, c.unary(ctx, methodRemoveWatcher, &fs.RemoveWatcherRequest{WatcherId: id}, &fs.RemoveWatcherResponse{}))
		err := c.unary(ctx, methodWatcherEvents, &fs.GetWatcherEventsRequest{WatcherId: id}, res)
		c.wantCode(err, connect.CodeNotFound)
	})
}

// TestWatchReach checks that a directory made later, which the user may not
// read, is followed only by a daemon that reaches it.
func TestWatchReach(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := as(bounded(t), user), userDir(t)
		must(t, os.Mkdir(dir+"/old", 0o700))
		w := c.watchDir(ctx, &fs.WatchDirRequest{Path: dir, Recursive: true})
		must(t, os.Mkdir(dir+"/new", 0o700))
		w.want("CREATE new")
		writeFile(t, dir+"/old/secret", "")
		writeFile(t, dir+"/new/secret", "")
		if !c.d.access {
			w.want("CREATE old/secret", "CREATE new/secret")
		}
		must(t, os.Mkdir(dir+"/last", 0o755))
		w.want("CREATE last")
	})
}

// TestWatchLatency checks that an event is on its way at once.
func TestWatchLatency(t *testing.T) {
	each(t, "connect-proto-h2c", func(t *testing.T, c *call) {
		dir := userDir(t)
		w := c.watchDir(bounded(t), &fs.WatchDirRequest{Path: dir, Recursive: true})
		var took []time.Duration
		for i := range 30 {
			begin := time.Now()
			must(t, unix.Mknod(fmt.Sprintf("%s/%d", dir, i), unix.S_IFREG|0o600, 0))
			w.want(fmt.Sprintf("CREATE %d", i))
			took = append(took, time.Since(begin))
		}
		// The quickest: the machine may be busy with other tests, but a wait of
		// ours would be in every one.
		if quickest := slices.Min(took); quickest > 5*time.Millisecond {
			t.Errorf("no event took less than %v", quickest)
		}
	})
}

// TestWatchStopped checks that a daemon which stops says so, and does not wait
// for its watches.
func TestWatchStopped(t *testing.T) {
	t.Parallel()
	if program == "" {
		t.Skip("the daemon is not ours to stop")
	}
	d := &daemon{name: "stopped"}
	must(t, d.start())
	c := callerOf(t, d, "connect-json-http1")
	dir := userDir(t)
	w := c.watchDir(t.Context(), &fs.WatchDirRequest{Path: dir, Recursive: true})
	c.createWatcher(t.Context(), &fs.CreateWatcherRequest{Path: dir})
	must(t, d.stop())
	w.wantEnd(connect.CodeUnavailable)
}
