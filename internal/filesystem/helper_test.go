package filesystem

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/linux"
)

// alice and bob are users that no database knows.
var (
	alice = User{UID: 41001, GID: 41101, Groups: []uint32{41101, 41999}}
	bob   = User{UID: 41002, GID: 41102}
)

// as is a view of u, whose home is home.
func as(u User, home string, confined bool) *View {
	u.Home = home
	return &View{User: u, Confined: confined}
}

// modes runs f once with root's reach and once with the user's own, each time
// in a new directory that belongs to alice.
func modes(t *testing.T, f func(t *testing.T, v *View, dir string)) {
	for _, confined := range []bool{false, true} {
		t.Run(fmt.Sprintf("confined=%v", confined), func(t *testing.T) {
			dir := userDir(t)
			leaktest.Check(t)
			f(t, as(alice, dir, confined), dir)
		})
	}
}

// userDir is a new directory of alice that she can reach.
func userDir(t testing.TB) string {
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chown(dir, int(alice.UID), int(alice.GID)))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr fails unless err is want, where nil is no error.
func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func write(t testing.TB, path, contents string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(contents), 0o644))
}

func wantContents(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if string(got) != want {
		t.Fatalf("%s holds %.80q, want %.80q", path, got, want)
	}
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func wantOwner(t testing.TB, path string, u User) {
	t.Helper()
	if st := lstat(t, path); st.Uid != u.UID || st.Gid != u.GID {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, u.UID, u.GID)
	}
}

// wantNames fails unless dir holds just these names: no temporary files either.
func wantNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// mount mounts a filesystem of the given type in a new directory of alice.
func mount(t testing.TB, args ...string) string {
	t.Helper()
	dir := userDir(t)
	run(t, "mount", append(args, dir)...)
	t.Cleanup(func() { run(t, "umount", dir) })
	must(t, os.Chown(dir, int(alice.UID), int(alice.GID)))
	return dir
}

// ext4 mounts a new ext4 filesystem of size bytes.
func ext4(t testing.TB, size int64, mkfs []string, options string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	write(t, image, "")
	must(t, os.Truncate(image, size))
	run(t, "mkfs.ext4", append(append([]string{"-q", "-F"}, mkfs...), image)...)
	dir := mount(t, "-o", "loop"+options, image)
	must(t, os.Remove(filepath.Join(dir, "lost+found")))
	return dir
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// random is n bytes that do not repeat.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// exchange gives each of two files the other's name, in one step.
func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// swap exchanges a and b, again and again, whether it can or not.
func swap(a, b string) (stop func()) {
	return alongside(User{}, func() error { _ = exchange(a, b); return nil })
}

// swapAs exchanges a and b, again and again, with the rights of u.
func swapAs(u User, a, b string) (stop func()) {
	return alongside(u, func() error { return exchange(a, b) })
}

// alongside calls do, again and again, with the rights of u, until it fails.
func alongside(u User, do func() error) (stop func()) {
	done, stopped := make(chan struct{}), make(chan error)
	go func() {
		stopped <- linux.DoAs(linux.FSIdentity{UID: u.UID, GID: u.GID, Groups: u.Groups}, func() error {
			for {
				select {
				case <-done:
					return nil
				default:
				}
				if err := do(); err != nil {
					return err
				}
			}
		})
	}()
	return func() {
		close(done)
		if err := <-stopped; err != nil {
			panic(err)
		}
	}
}

// harass calls act, again and again, with the rights of alice; it has been
// called when harass returns.
func harass(act func()) (stop func()) {
	var once sync.Once
	first := make(chan struct{})
	stop = alongside(alice, func() error {
		act()
		once.Do(func() { close(first) })
		return nil
	})
	<-first
	return stop
}
