package filesystem

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Here alice swaps names in a directory of hers while the daemon, with root's
// reach, works there for her. What is not hers stays what it is.

// private makes a file and a directory of root that nobody else may read, and
// that alice can give other names.
func private(t *testing.T, dir string) (file, tree string) {
	t.Helper()
	file, tree = filepath.Join(dir, "private"), filepath.Join(dir, "private.d")
	must(t, os.WriteFile(file, []byte("secret"), 0o600))
	must(t, os.Mkdir(tree, 0o700))
	must(t, os.WriteFile(filepath.Join(tree, "f"), []byte("secret"), 0o644))
	return file, tree
}

// wantPrivate fails unless root alone can reach the secrets below dir, whatever
// their names are now.
func wantPrivate(t *testing.T, dir string) {
	t.Helper()
	var walk func(path string, kept bool)
	walk = func(path string, kept bool) {
		st := lstat(t, path)
		kept = kept || st.Uid == 0 && st.Mode&0o077 == 0
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			names, err := os.ReadDir(path)
			must(t, err)
			for _, n := range names {
				walk(filepath.Join(path, n.Name()), kept)
			}
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			must(t, err)
			if !kept && bytes.Contains(b, []byte("secret")) {
				t.Fatalf("others reach the secret in %s: owner %d, mode %o", path, st.Uid, st.Mode)
			}
		}
	}
	walk(dir, false)
}

func empty(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		names, err := os.ReadDir(dir)
		must(t, err)
		for _, n := range names {
			must(t, os.RemoveAll(filepath.Join(dir, n.Name())))
		}
	}
}

// TestMoveWhileTheCopyIsSwapped: as soon as something incomplete appears in the
// destination, alice puts what is root's in its place, or a link to that.
func TestMoveWhileTheCopyIsSwapped(t *testing.T) {
	src, dir := userDir(t), mount(t, "-t", "tmpfs", "none")
	v := as(alice, dir, false)
	from := filepath.Join(src, "from")
	for kind, makeIt := range map[string]func() error{
		"fifo":      func() error { return errors.Join(unix.Mkfifo(from, 0), os.Chmod(from, 0o666)) },
		"link":      func() error { return os.Symlink("/nowhere", from) },
		"directory": func() error { return os.Mkdir(from, 0o755) },
	} {
		t.Run(kind, func(t *testing.T) {
			swapped := 0
			for i := 0; i < 300 && !t.Failed(); i++ {
				empty(t, src, dir)
				file, tree := private(t, dir)
				must(t, makeIt())
				must(t, os.Lchown(from, int(alice.UID), int(alice.GID)))
				stop := harass(func() {
					names, err := os.ReadDir(dir)
					for _, n := range names {
						if !strings.HasPrefix(n.Name(), tempPrefix) {
							continue
						}
						path := filepath.Join(dir, n.Name())
						switch i % 3 {
						case 0:
							if err = os.Rename(path, filepath.Join(dir, "away")); err == nil {
								err = os.Symlink(file, path)
							}
						case 1:
							err = exchange(path, file)
						case 2:
							err = exchange(path, tree)
						}
						if err == nil {
							swapped++
						}
					}
				})
				_, err := v.Move(from, "to")
				stop()
				if err == nil {
					wantOwner(t, filepath.Join(dir, "to"), alice)
				}
				wantPrivate(t, dir)
			}
			if swapped == 0 {
				t.Error("nothing was swapped")
			}
			t.Logf("swapped %d times", swapped)
		})
	}
}

// TestMoveWhileTheSourceIsSwapped: what moved has the owner and the mode of
// what its contents came from.
func TestMoveWhileTheSourceIsSwapped(t *testing.T) {
	src, dir := userDir(t), mount(t, "-t", "tmpfs", "none")
	v := as(alice, dir, false)
	mine := filepath.Join(src, "mine")
	for kind, makeIt := range map[string]func() error{
		"private":   func() error { return os.WriteFile(mine, []byte("what is alice's"), 0o644) },
		"private.d": func() error { return os.Mkdir(mine, 0o755) },
	} {
		t.Run(kind, func(t *testing.T) {
			moved := map[string]int{}
			for i := 0; i < 500 && !t.Failed(); i++ {
				empty(t, src, dir)
				private(t, src)
				must(t, makeIt())
				must(t, os.Chown(mine, int(alice.UID), int(alice.GID)))
				stop := harass(func() { _ = exchange(mine, filepath.Join(src, kind)) })
				e, err := v.Move(mine, "to")
				stop()
				if err == nil {
					moved[e.Owner]++
				}
				wantPrivate(t, dir)
			}
			if len(moved) != 2 {
				t.Errorf("moved, by owner: %v; want some of each", moved)
			}
		})
	}
}

// TestMoveWhileTheCopiedIsSwapped: as soon as the destination is there, alice
// puts what is root's in the place of the source, which is to be removed.
func TestMoveWhileTheCopiedIsSwapped(t *testing.T) {
	src, dir := userDir(t), mount(t, "-t", "tmpfs", "none")
	v := as(alice, dir, false)
	mine, to := filepath.Join(src, "mine"), filepath.Join(dir, "to")
	swapped := 0
	for i := 0; i < 1000 && !t.Failed(); i++ {
		empty(t, src, dir)
		_, tree := private(t, src)
		must(t, os.Mkdir(mine, 0o755))
		must(t, os.Chown(mine, int(alice.UID), int(alice.GID)))
		stop := harass(func() {
			if unix.Access(to, unix.F_OK) == nil && exchange(mine, tree) == nil {
				swapped++
			}
		})
		_, _ = v.Move(mine, to)
		stop()
		if unix.Access(filepath.Join(mine, "f"), unix.F_OK) != nil && unix.Access(filepath.Join(tree, "f"), unix.F_OK) != nil {
			t.Error("root's directory was removed, and not moved")
		}
	}
	if swapped == 0 {
		t.Error("nothing was swapped")
	}
	t.Logf("swapped %d times", swapped)
}

// TestUnpackWhileADirectoryIsSwapped: before the archive ends, which in one case
// describes its directory once more, alice puts root's in the place of that.
func TestUnpackWhileADirectoryIsSwapped(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("again=%v", again), func(t *testing.T) {
			dir := userDir(t)
			_, tree := private(t, dir)
			r, w := io.Pipe()
			unpacked := make(chan error, 1)
			go func() { unpacked <- as(alice, dir, false).Unpack(dir, r) }()
			made := &tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, PAXRecords: map[string]string{paxXattr + "user.k": "v"}}
			tw := tar.NewWriter(w)
			must(t, tw.WriteHeader(made))
			// It is obeyed before the next is read.
			must(t, tw.WriteHeader(&tar.Header{Name: "f", Mode: 0o644}))
			must(t, exchange(filepath.Join(dir, "d"), tree))
			if again {
				must(t, tw.WriteHeader(made))
			}
			must(t, tw.Close())
			must(t, w.Close())
			must(t, <-unpacked)
			wantPrivate(t, dir)
			if n, err := unix.Getxattr(filepath.Join(dir, "d"), "user.k", nil); err == nil {
				t.Errorf("root's directory has an attribute of %d bytes", n)
			}
		})
	}
}

// TestUnpackForOthersWhileADirectoryIsSwapped: alice takes part in what root, or
// bob, unpacks in a directory of hers.
func TestUnpackForOthersWhileADirectoryIsSwapped(t *testing.T) {
	for name, u := range map[string]User{"root": {}, "bob": bob} {
		t.Run(name, func(t *testing.T) { testUnpackForOthers(t, u) })
	}
}

func testUnpackForOthers(t *testing.T, u User) {
	dir := userDir(t)
	d := filepath.Join(dir, "d")
	swapped := 0
	for i := 0; i < 300 && !t.Failed(); i++ {
		empty(t, dir)
		_, tree := private(t, dir)
		must(t, os.Chown(tree, int(u.UID), int(u.GID)))
		packed := archive(t, directory("d/"))
		stop := harass(func() {
			if exchange(d, tree) == nil {
				swapped++
			}
		})
		_ = as(u, dir, false).Unpack(dir, packed)
		stop()
		for _, path := range []string{d, tree} {
			st := lstat(t, path)
			if _, err := os.Stat(filepath.Join(path, "f")); err == nil && st.Mode != unix.S_IFDIR|0o700 {
				t.Errorf("the private directory has mode %o", st.Mode)
			}
		}
	}
	if swapped == 0 {
		t.Error("nothing was swapped")
	}
}
