package filesystem

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// chain makes directories "d" inside each other below dir, for u. In every
// level that side picks it makes a directory and a file beside the next.
func chain(t *testing.T, dir string, levels int, u User, side func(level int) bool) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	makeDir := func(name string) {
		must(t, unix.Mkdirat(fd, name, 0o755))
		must(t, unix.Fchownat(fd, name, int(u.UID), int(u.GID), 0))
	}
	for level := range levels {
		makeDir("d")
		if side(level) {
			makeDir("a")
			makeDir("z")
			must(t, unix.Mknodat(fd, "file", unix.S_IFREG|0o644, 0))
		}
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}

// limitDescriptors lets the process have n descriptors until the test ends.
func limitDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}, nil))
	t.Cleanup(func() { must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil)) })
}

// TestRemoveVeryDeep: depth costs no descriptors, and what lies beside the way
// down goes, too.
func TestRemoveVeryDeep(t *testing.T) {
	modes(t, func(t *testing.T, v *View, _ string) {
		dir := mount(t, "-t", "tmpfs", "none")
		v.User.Home = dir
		chain(t, dir, 10_000, alice, func(level int) bool { return level%10 == 0 })
		limitDescriptors(t, 2*openLevels)
		must(t, v.Remove("d"))
		for _, name := range []string{"a", "file", "z"} {
			must(t, v.Remove(name))
		}
		wantNames(t, dir)
	})
}

// TestRemoveLargeDirectory has more than one batch of names, directories among
// them.
func TestRemoveLargeDirectory(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		must(t, os.Mkdir(dir+"/large", 0o700))
		for i := range 3 * removeBatch {
			if name := fmt.Sprintf("%s/large/%d", dir, i); i%10 == 0 {
				must(t, os.Mkdir(name, 0o700))
				must(t, os.Chown(name, int(alice.UID), int(alice.GID)))
			} else {
				write(t, name, "")
			}
		}
		must(t, os.Chown(dir+"/large", int(alice.UID), int(alice.GID)))
		must(t, v.Remove("large"))
		wantNames(t, dir)
	})
}

// TestRemoveGoesOn: what the user may not remove is named, with its path, and
// everything else goes, at any depth and behind many that stay.
func TestRemoveGoesOn(t *testing.T) {
	for _, depth := range []int{2, 3 * openLevels} {
		t.Run(fmt.Sprint("depth=", depth), func(t *testing.T) {
			dir := userDir(t)
			v := as(alice, dir, true)
			chain(t, dir, depth, alice, func(level int) bool { return level > 0 })
			bottom := dir + strings.Repeat("/d", depth)
			must(t, os.Mkdir(bottom+"/root", 0o755))
			for i := range removeBatch + 1 {
				write(t, fmt.Sprintf("%s/root/%d", bottom, i), "")
				write(t, fmt.Sprintf("%s/alice%d", bottom, i), "")
			}
			err := v.Remove("d")
			wantErr(t, err, fs.ErrPermission)
			if want := "remove " + bottom + "/root/"; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v", err)
			}
			for path := dir; path != bottom; path += "/d" {
				wantNames(t, path, "d")
			}
			wantNames(t, bottom, "root")
		})
	}
}

// TestRemoveEmptyUnreadable: to remove an empty directory takes no right to it.
func TestRemoveEmptyUnreadable(t *testing.T) {
	dir := userDir(t)
	v := as(alice, dir, true)
	must(t, os.MkdirAll(dir+"/d/closed", 0o700))
	must(t, os.Chown(dir+"/d", int(alice.UID), int(alice.GID)))
	must(t, v.Remove("d"))
	wantNames(t, dir)
}

// TestRemoveMoved: a directory that is moved away while the tree below it is
// being removed leads to no other directory.
func TestRemoveMoved(t *testing.T) {
	dir := userDir(t)
	chain(t, dir, 2*openLevels, alice, func(int) bool { return false })
	must(t, os.Mkdir(dir+"/elsewhere", 0o755))
	write(t, dir+"/elsewhere/keep", "")
	before := descriptors(t)
	r := removal{top: unix.AT_FDCWD, root: dir + "/d"}
	r.remove(r.top, r.root)
	for len(r.levels) < openLevels+20 {
		r.step()
	}
	// Its parent is parked.
	must(t, os.Rename(dir+strings.Repeat("/d", openLevels+10), dir+"/elsewhere/d"))
	for len(r.levels) > 0 {
		r.step()
	}
	wantErr(t, r.err, fs.ErrNotExist)
	wantNames(t, dir, "d", "elsewhere")
	wantNames(t, dir+"/elsewhere", "d", "keep")
	wantNames(t, dir+"/elsewhere/d")
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	return len(names)
}
