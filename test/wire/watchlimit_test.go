package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	fs "github.com/wrenn/envd/gen/filesystem"
)

// TestWatchLimits starts a daemon in a user namespace with few watches and
// checks that the errors name the limit: ENOSPC would read like a full disk.
func TestWatchLimits(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	dir := userDir(t)
	wrapper := t.TempDir() + "/envd"
	must(t, os.WriteFile(wrapper, []byte(`#!/bin/sh
exec unshare --user --map-root-user sh -c '
	echo 8 >/proc/sys/user/max_inotify_watches; echo 3 >/proc/sys/user/max_inotify_instances; exec "$0" "$@"' `+program+` "$@"
`), 0o755))
	d := &daemon{name: "limited", program: wrapper}
	must(t, d.start())
	t.Cleanup(func() { must(t, d.stop()) })
	c := callerOf(t, d, "connect-json-http1")
	ctx := bounded(t)
	wantLimit := func(err error, limit string) {
		t.Helper()
		if connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), limit) {
			t.Errorf("got %v, expected a limit %s", err, limit)
		}
	}
	// Each watch has its parent watched, too.
	w := c.watchDir(ctx, &fs.WatchDirRequest{Path: dir, Recursive: true})
	for i := range 7 {
		must(t, os.Mkdir(fmt.Sprint(dir, "/", i), 0o755))
	}
	for i := range 6 {
		w.want(fmt.Sprintf("CREATE %d", i))
	}
	for w.read() != nil { // the one that could not be watched may be told
	}
	wantLimit(w.err, "user.max_inotify_watches is 8")
	_, err := c.tryWatch(ctx, &fs.WatchDirRequest{Path: dir, Recursive: true})
	wantLimit(err, "user.max_inotify_watches is 8")
	for range 3 {
		c.createWatcher(ctx, &fs.CreateWatcherRequest{Path: dir + "/0"})
	}
	err = c.unary(ctx, methodCreateWatcher, &fs.CreateWatcherRequest{Path: dir + "/0"}, &fs.CreateWatcherResponse{})
	wantLimit(err, "user.max_inotify_instances is 3")
}

// TestWatchNetworkMount checks the refusal of a FUSE mount, which counts as
// one, and that it can be overruled.
func TestWatchNetworkMount(t *testing.T) {
	dir := t.TempDir()
	mountFUSE(t, dir)
	t.Run("of each kind", func(t *testing.T) { // before the mount goes
		files(t, func(t *testing.T, c *call) {
			ctx := bounded(t)
			_, err := c.tryWatch(ctx, &fs.WatchDirRequest{Path: dir})
			c.wantCode(err, connect.CodeInvalidArgument)
			err = c.unary(ctx, methodCreateWatcher, &fs.CreateWatcherRequest{Path: dir}, &fs.CreateWatcherResponse{})
			c.wantCode(err, connect.CodeInvalidArgument)
			c.watchDir(ctx, &fs.WatchDirRequest{Path: dir, AllowNetworkMounts: true})
			id := c.createWatcher(ctx, &fs.CreateWatcherRequest{Path: dir, AllowNetworkMounts: true})
			c.must(c.unary(ctx, methodRemoveWatcher, &fs.RemoveWatcherRequest{WatcherId: id}, &fs.RemoveWatcherResponse{}))
		})
	})
}

// mountFUSE mounts a file system of this process's that has an empty root.
func mountFUSE(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Mount("test", dir, "fuse.test", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for answerFUSE(fd) {
		}
	}()
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
		<-ended
		_ = unix.Close(fd)
	})
}

// answerFUSE answers one request as linux/fuse.h has them; false once the
// mount is gone.
func answerFUSE(fd int) bool {
	const (
		getattr, statfs, initialize, opendir, readdir, releasedir = 3, 17, 26, 27, 28, 29
		noAnswer                                                  = 2 // FORGET
		header                                                    = 16
		directory                                                 = 0o40755
	)
	var buf [128 << 10]byte
	n, err := unix.Read(fd, buf[:])
	switch {
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
		return true
	case err != nil || n < 40:
		return false
	}
	op := binary.NativeEndian.Uint32(buf[4:])
	size, known := map[uint32]int{getattr: 104, statfs: 80, initialize: 64, opendir: 16, readdir: 0, releasedir: 0}[op]
	out := make([]byte, header+size)
	switch op {
	case noAnswer:
		return true
	case initialize:
		binary.NativeEndian.PutUint32(out[header:], 7)        // version 7.31
		binary.NativeEndian.PutUint32(out[header+4:], 31)     //
		binary.NativeEndian.PutUint32(out[header+20:], 4<<10) // max_write
	case getattr:
		binary.NativeEndian.PutUint64(out[header+16:], 1) // inode
		binary.NativeEndian.PutUint32(out[header+76:], directory)
		binary.NativeEndian.PutUint32(out[header+80:], 2) // links
	}
	if !known {
		binary.NativeEndian.PutUint32(out[4:], ^uint32(unix.ENOSYS)+1)
	}
	binary.NativeEndian.PutUint32(out, uint32(len(out)))
	copy(out[8:header], buf[8:header]) // whose answer it is
	_, _ = unix.Write(fd, out)
	return true
}
