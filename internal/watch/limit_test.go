package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestLimits runs into each limit, in a user namespace of its own so that the
// machine's limits stay as they are.
func TestLimits(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a/b/c/d")
	must(t, os.Chmod(dir, 0o755))
	cmd := helper(t, "limit", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	out, err := cmd.Output()
	must(t, err)
	want := []string{
		"watch " + dir + ": watch limit reached: user.max_inotify_watches is 3",
		"2 batches, then watch limit reached: user.max_inotify_watches is 3",
		"watch " + dir + ": watch limit reached: user.max_inotify_instances is 0",
		"watch " + dir + ": watch limit reached: RLIMIT_NOFILE is ",
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(got) == len(want) {
		got[3] = strings.TrimRight(got[3], "0123456789")
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func limitMain(args []string) int {
	dir := args[0]
	set := func(name string, value int) {
		if err := os.WriteFile("/proc/sys/user/max_inotify_"+name, []byte(strconv.Itoa(value)), 0); err != nil {
			fmt.Println(err)
		}
	}
	report := func() {
		_, err := Open(dir, Options{Recursive: true})
		if !errors.Is(err, ErrWatchLimit) {
			fmt.Print("not a limit: ")
		}
		fmt.Println(err)
	}
	set("watches", 3)
	report()

	// A directory made later meets the limit: what was seen is still reported.
	w, err := Open(dir+"/a/b/c/d", Options{Recursive: true})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, name := range []string{"one", "two"} {
		if err := os.Mkdir(dir+"/a/b/c/d/"+name, 0o755); err != nil {
			fmt.Println(err)
		}
		if name == "one" {
			_, err = w.Next(context.Background())
		}
	}
	batches := 1
	for err == nil {
		if _, err = w.Next(context.Background()); err == nil {
			batches++
		}
	}
	fmt.Printf("%d batches, then %v\n", batches, err)
	_ = w.Close()

	set("instances", 0)
	report()
	set("instances", 10)
	var files []*os.File
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64})
	for {
		f, err := os.Open("/")
		if err != nil {
			break
		}
		files = append(files, f)
	}
	_ = files[len(files)-1].Close() // for the directory; the instance finds none
	report()
	return 0
}

// TestNetworkMount mounts a FUSE filesystem, which counts as one.
func TestNetworkMount(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	mkdir(t, dir, "fuse")
	mountFUSE(t, dir+"/fuse")
	for _, recursive := range []bool{false, true} {
		if _, err := Open(dir+"/fuse", Options{Recursive: recursive}); !errors.Is(err, ErrNetworkMount) {
			t.Errorf("network mount: %v, want %v", err, ErrNetworkMount)
		}
		w, err := Open(dir+"/fuse", Options{Recursive: recursive, AllowNetwork: true})
		must(t, err)
		must(t, w.Close())
	}
	// Below the root it is left out unless allowed.
	for allow, want := range map[bool]int{false: 1, true: 2} {
		w, err := Open(dir, Options{Recursive: true, AllowNetwork: allow})
		must(t, err)
		if len(w.byWd) != want {
			t.Errorf("allow %v: %d directories watched, want %d", allow, len(w.byWd), want)
		}
		must(t, w.Close())
	}
}

// mountFUSE serves an empty directory, in the protocol of linux/fuse.h.
func mountFUSE(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	must(t, unix.Mount("test", dir, "fuse.test", 0, options))
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveFUSE(fd)
	}()
	t.Cleanup(func() {
		must(t, unix.Unmount(dir, unix.MNT_DETACH))
		<-served
		_ = unix.Close(fd)
	})
}

func serveFUSE(fd int) {
	const getattr, open, statfs, release, initialize, opendir, readdir, releasedir, forget, destroy = 3, 14, 17, 18, 26, 27, 28, 29, 2, 38
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || n < 40 {
			return // ENODEV: unmounted
		}
		var body []byte
		var errno int32
		switch binary.NativeEndian.Uint32(buf[4:]) {
		case initialize:
			body = make([]byte, 64)
			binary.NativeEndian.PutUint32(body[0:], 7)
			binary.NativeEndian.PutUint32(body[4:], 31)
			binary.NativeEndian.PutUint32(body[20:], 4096) // max_write
		case getattr:
			body = make([]byte, 104)
			binary.NativeEndian.PutUint64(body[16:], 1)               // ino
			binary.NativeEndian.PutUint32(body[16+60:], 0o40755)      // mode
			binary.NativeEndian.PutUint32(body[16+64:], 2)            // nlink
			binary.NativeEndian.PutUint32(body[16+80:], uint32(4096)) // blksize
		case statfs:
			body = make([]byte, 80)
		case opendir, open:
			body = make([]byte, 16)
		case readdir, release, releasedir:
		case forget:
			continue
		case destroy:
			return
		default:
			errno = -int32(unix.ENOSYS)
		}
		out := make([]byte, 16+len(body))
		binary.NativeEndian.PutUint32(out[0:], uint32(len(out)))
		binary.NativeEndian.PutUint32(out[4:], uint32(errno))
		copy(out[8:16], buf[8:16])
		copy(out[16:], body)
		_, _ = unix.Write(fd, out)
	}
}
