package filesystem

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMove(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		_, err := upload(v, "f", "new")
		must(t, err)
		e, err := v.Move("f", "made/for/it/g")
		must(t, err)
		if e.Path != filepath.Join(dir, "made/for/it/g") || e.Size != 3 {
			t.Errorf("entry %+v", e)
		}
		wantOwner(t, filepath.Join(dir, "made/for"), alice)
		_, err = upload(v, "old", "old")
		must(t, err)
		_, err = v.Move("made/for/it/g", "old")
		must(t, err)
		wantContents(t, filepath.Join(dir, "old"), "new")
		_, err = v.Move("old", "old")
		must(t, err)
		wantNames(t, dir, "made", "old")
	})
}

func TestMoveErrors(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		_, err := v.MakeDir("full/sub")
		must(t, err)
		_, err = v.MakeDir("dir")
		must(t, err)
		_, err = upload(v, "file", "")
		must(t, err)
		for _, test := range []struct {
			from, to string
			want     error
		}{
			{"missing", "made/x", fs.ErrNotExist},
			{"file/below", "made/x", fs.ErrNotExist},
			{"", "x", ErrInvalid},
			{"file", "", ErrInvalid},
			{"/", "x", ErrInvalid},
			{"file", "~x/y", ErrInvalid},
			{"dir", "dir/below", ErrInvalid},
			{"dir", "full", fs.ErrExist},
			{"file", "dir", ErrIsDirectory},
			{"dir", "file", ErrNotDirectory},
			{"dir", "file/x", ErrNotDirectory},
		} {
			_, err := v.Move(test.from, test.to)
			if err == nil {
				t.Errorf("%s to %s succeeds", test.from, test.to)
			} else {
				wantErr(t, err, test.want)
			}
		}
		wantNames(t, dir, "dir", "file", "full")
	})
}

// describeTree is what Move must keep of each entry below dir, by path.
func describeTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := make(map[string]string)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		st := lstat(t, path)
		line := fmt.Sprintf("mode %o owner %d:%d dev %d modified %d.%09d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			must(t, err)
			buf := make([]byte, 100)
			n, _ := unix.Getxattr(path, "user.e2b.k", buf)
			line += fmt.Sprintf(" links %d xattr %q contents %q", st.Nlink, buf[:max(n, 0)], b)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			line += " to " + target
		}
		rel, _ := filepath.Rel(dir, path)
		tree[rel] = line
		return nil
	}))
	return tree
}

func wantSameTree(t *testing.T, got, want map[string]string) {
	t.Helper()
	for path := range want {
		if got[path] != want[path] {
			t.Errorf("%q\n got %s\nwant %s", path, got[path], want[path])
		}
	}
	for path := range got {
		if want[path] == "" {
			t.Errorf("%q is new", path)
		}
	}
}

// makeTree makes one of everything below dir, with alice as owner of all if
// she has to move it herself.
func makeTree(t *testing.T, dir string, u User, others bool) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "sub/empty"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "read-only"), 0o755))
	for name, contents := range map[string]string{
		"file": "contents", "empty": "", "sub/new\nline": "n", "sub/\xff\xfe": "bytes",
		"read-only/f": "locked", strings.Repeat("n", 255): "long",
	} {
		write(t, filepath.Join(dir, name), contents)
	}
	must(t, unix.Setxattr(filepath.Join(dir, "file"), "user.e2b.k", []byte("v"), 0))
	must(t, os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "sub/hard")))
	must(t, os.Symlink("sub/hard", filepath.Join(dir, "soft")))
	must(t, os.Symlink("/nowhere/\xff", filepath.Join(dir, "sub/broken")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		return os.Lchown(path, int(u.UID), int(u.GID))
	}))
	must(t, os.Chmod(filepath.Join(dir, "file"), 0o750|fs.ModeSetuid))
	must(t, os.Chmod(filepath.Join(dir, "sub"), 0o700|fs.ModeSticky))
	if others {
		must(t, unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))))
		must(t, os.Lchown(filepath.Join(dir, "soft"), 7, 8))
		must(t, os.Chown(filepath.Join(dir, "empty"), int(bob.UID), int(bob.GID)))
	}
	for _, name := range []string{"file", "empty", "fifo", "soft", "sub/empty", "sub", "read-only"} {
		times := []unix.Timespec{{Sec: 1000, Nsec: 1}, {Sec: 2000, Nsec: 123456789}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), times, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func TestMoveAcrossFilesystems(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		makeTree(t, filepath.Join(dir, "tree"), alice, !v.Confined)
		want := describeTree(t, filepath.Join(dir, "tree"))
		tmpfs := mount(t, "-t", "tmpfs", "none")
		_, err := v.Move("tree", filepath.Join(tmpfs, "made/tree"))
		must(t, err)
		wantSameTree(t, describeTree(t, filepath.Join(tmpfs, "made/tree")), want)
		wantNames(t, filepath.Join(tmpfs, "made"), "tree")
		wantNames(t, dir)
		// And back, onto an empty directory.
		_, err = v.MakeDir("tree")
		must(t, err)
		_, err = v.Move(filepath.Join(tmpfs, "made/tree"), "tree")
		must(t, err)
		wantSameTree(t, describeTree(t, filepath.Join(dir, "tree")), want)
	})
}

func TestMoveAcrossFilesystemsErrors(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		tmpfs := mount(t, "-t", "tmpfs", "-o", "size=1m", "none")
		must(t, os.MkdirAll(filepath.Join(tmpfs, "full/x"), 0o755))
		_, err := v.MakeDir("tree")
		must(t, err)
		_, err = v.Move("tree", filepath.Join(tmpfs, "full"))
		wantErr(t, err, fs.ErrExist)
		_, err = upload(v, "tree/big", string(random(2<<20)))
		must(t, err)
		_, err = v.Move("tree", filepath.Join(tmpfs, "tree"))
		wantErr(t, err, ErrNoSpace)
		wantNames(t, tmpfs, "full")
		wantNames(t, filepath.Join(dir, "tree"), "big")
		if v.Confined {
			must(t, os.WriteFile(filepath.Join(dir, "tree/secret"), nil, 0o600))
			must(t, v.Remove("tree/big"))
			_, err = v.Move("tree", filepath.Join(tmpfs, "tree"))
			wantErr(t, err, fs.ErrPermission)
			wantNames(t, tmpfs, "full")
			wantNames(t, filepath.Join(dir, "tree"), "secret")
		}
	})
}

// TestMoveAcrossFilesystemsWhileReplaced: a file that is replaced while it is
// copied leaves its replacement behind.
func TestMoveAcrossFilesystemsWhileReplaced(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		tmpfs := mount(t, "-t", "tmpfs", "none")
		from, next := filepath.Join(dir, "f"), filepath.Join(dir, "next")
		old := string(random(8 << 20))
		_, err := upload(v, from, old)
		must(t, err)
		_, err = upload(v, next, "new")
		must(t, err)
		stop := harass(func() {
			if names, _ := os.ReadDir(tmpfs); len(names) > 0 {
				_ = os.Rename(next, from) // once
			}
		})
		_, err = v.Move(from, filepath.Join(tmpfs, "f"))
		stop()
		must(t, err)
		wantContents(t, filepath.Join(tmpfs, "f"), old)
		wantContents(t, from, "new")
	})
}

// TestMoveSparseAcrossFilesystems moves 5 GiB of holes around 8 KiB.
func TestMoveSparseAcrossFilesystems(t *testing.T) {
	dir, tmpfs := userDir(t), mount(t, "-t", "tmpfs", "-o", "size=4m", "none")
	const size = 5 << 30
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	must(t, f.Truncate(size))
	for _, off := range []int64{0, size/2 + 1} {
		_, err := f.WriteAt([]byte("data"), off)
		must(t, err)
	}
	must(t, f.Close())
	start := time.Now()
	e, err := as(alice, dir, false).Move("sparse", filepath.Join(tmpfs, "sparse"))
	must(t, err)
	if st := lstat(t, e.Path); e.Size != size || st.Blocks*blockBytes > 1<<20 {
		t.Errorf("size %d in %d blocks", e.Size, st.Blocks)
	}
	f, err = os.Open(e.Path)
	must(t, err)
	defer f.Close()
	got := make([]byte, 4)
	_, err = f.ReadAt(got, size/2+1)
	must(t, err)
	if string(got) != "data" {
		t.Errorf("read %q", got)
	}
	t.Logf("moved in %v", time.Since(start))
}
