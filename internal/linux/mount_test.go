package linux

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

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

func TestMount(t *testing.T) {
	leaktest.Check(t)
	inMountNamespace(t, func(dir string) error {
		target := filepath.Join(dir, "a \\b\tc\nd")
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		kind := func() string {
			kind, err := MountKind(target)
			if err != nil {
				t.Error(err)
			}
			return kind
		}
		if got := kind(); got != "" {
			t.Errorf("before: %q", got)
		}
		if err := Mount("tmpfs", "source", target, "size=1m,mode=0700"); err != nil {
			return err
		}
		if got := kind(); got != "tmpfs" {
			t.Errorf("mounted: %q", got)
		}
		fi, err := os.Stat(target)
		if err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("options: %v, %v", fi, err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(target, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
			t.Errorf("flags %x, %v", st.Flags, err)
		}
		// In use, and still taken away.
		f, err := os.Create(filepath.Join(target, "open"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := Unmount(target); err != nil {
			return err
		}
		if got := kind(); got != "" {
			t.Errorf("after: %q", got)
		}
		if err := Unmount(target); !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmounted twice: %v", err)
		}
		if err := Mount("nosuchfs", "source", target, ""); !errors.Is(err, unix.ENODEV) {
			t.Errorf("unknown type: %v", err)
		}
		if err := Mount("tmpfs", "source", target, "nosuchoption"); !errors.Is(err, unix.EINVAL) {
			t.Errorf("unknown option: %v", err)
		}
		return nil
	})
}

func TestMountKind(t *testing.T) {
	table := `22 1 8:1 / / rw,relatime - ext4 /dev/root rw
23 22 0:20 / /proc rw - proc proc rw
24 22 0:30 / /mnt rw shared:1 master:2 - nfs4 h:/x rw,vers=4.2
25 24 0:31 / /mnt/a\040b rw - tmpfs tmpfs rw
26 22 0:32 / /mnt rw - nfs h:/x rw
malformed
27 22 0:33 / /short
`
	for target, want := range map[string]string{
		"/": "ext4", "/mnt": "nfs", "/mnt/a b": "tmpfs", "/mnt/a": "", "/short": "", "": "", "/proc": "proc", "/proc/": "",
	} {
		if got := mountKind([]byte(table), target); got != want {
			t.Errorf("%q: %q, want %q", target, got, want)
		}
	}
}

func FuzzMountKind(f *testing.F) {
	f.Add([]byte("24 22 0:30 / /mnt\\040x rw - nfs h:/x rw\n"), "/mnt x")
	f.Add([]byte("- - -\n\\"), "")
	f.Fuzz(func(t *testing.T, table []byte, target string) {
		if kind := mountKind(table, target); !strings.Contains(string(table), kind) {
			t.Errorf("%q of %q", kind, table)
		}
		line := "1 2 0:3 / " + escapeMount(target) + " rw - last x rw\n"
		if kind := mountKind([]byte(line), target); kind != "last" && target != "" {
			t.Errorf("%q: %q", target, kind)
		}
	})
}

// escapeMount does what the kernel does to a path, and to more characters.
func escapeMount(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		b.WriteString(`\` + string([]byte{'0' + c>>6, '0' + c>>3&7, '0' + c&7}))
	}
	return b.String()
}

// TestSetRealtime checks what the call refuses. It never sets the clock: where
// it would, on this thread, the capability is gone.
func TestSetRealtime(t *testing.T) {
	leaktest.Check(t)
	if err := SetRealtime(time.Unix(-1, 0)); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		t.Errorf("before 1970: %v", err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capset(&header, &caps[0]); err != nil {
			done <- err
			return
		}
		if err := unix.Capget(&header, &caps[0]); err != nil || caps[0].Effective != 0 {
			done <- errors.Join(err, errors.New("capabilities are still there"))
			return
		}
		if err := SetRealtime(time.Now()); !errors.Is(err, unix.EPERM) {
			t.Errorf("without CAP_SYS_TIME: %v", err)
		}
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
