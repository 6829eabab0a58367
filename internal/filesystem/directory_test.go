package filesystem

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeDir(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		e, err := v.MakeDir("a/b/c")
		must(t, err)
		if e.Path != filepath.Join(dir, "a/b/c") || e.Type != TypeDirectory || e.Perm != 0o755 {
			t.Errorf("entry %+v", e)
		}
		for _, p := range []string{"a", "a/b", "a/b/c"} {
			wantOwner(t, filepath.Join(dir, p), alice)
		}
		write(t, filepath.Join(dir, "file"), "")
		must(t, os.Symlink("a", filepath.Join(dir, "link")))
		must(t, os.Symlink("nowhere", filepath.Join(dir, "broken")))
		for path, want := range map[string]error{
			"a/b": fs.ErrExist, "link": fs.ErrExist, "": fs.ErrExist, "/": fs.ErrExist,
			"file": ErrNotDirectory, "broken": ErrNotDirectory, "file/below": ErrNotDirectory, "~x": ErrInvalid,
		} {
			_, err := v.MakeDir(path)
			wantErr(t, err, want)
		}
	})
}

func TestRemove(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		_, err := v.MakeDir("tree/a/b")
		must(t, err)
		write(t, filepath.Join(dir, "keep"), "")
		must(t, os.Symlink(dir, filepath.Join(dir, "tree/a/up")))
		must(t, unix.Mkfifo(filepath.Join(dir, "tree/a/b/fifo\n\xff"), 0o600))
		must(t, os.Symlink("keep", filepath.Join(dir, "link")))
		if v.Confined {
			must(t, os.Chown(filepath.Join(dir, "tree/a/b"), int(alice.UID), -1))
		}
		for _, path := range []string{"tree", "link", "missing", "tree/x/y", "keep/below"} {
			must(t, v.Remove(path))
		}
		wantNames(t, dir, "keep")
		for _, path := range []string{"", "/", "~x"} {
			wantErr(t, v.Remove(path), ErrInvalid)
		}
	})
}

// TestListWhileEntriesVanish removes what the listing is about to look at.
func TestListWhileEntriesVanish(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		for i := range 50 {
			_, err := v.MakeDir(fmt.Sprintf("d%02d/sub", i))
			must(t, err)
		}
		seen := 0
		must(t, v.List(dir, 3, func(e Entry) error {
			seen++
			if e.Name == "d10" {
				for i := 10; i < 50; i++ {
					must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("d%02d", i))))
				}
			}
			return nil
		}))
		if seen != 21 {
			t.Errorf("%d entries, want 10 directories of 2 and the one that went", seen)
		}
	})
}
