package filesystem

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEveryKindOfEntry compares permissions with the standard library's.
func TestEveryKindOfEntry(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		special(t, dir)
		write(t, filepath.Join(dir, "file"), "")
		must(t, unix.Mknod(filepath.Join(dir, "block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 99))))
		must(t, unix.Chmod(filepath.Join(dir, "file"), 0o6711))
		must(t, unix.Chmod(filepath.Join(dir, "dir"), 0o1777))
		entries, err := list(v, "", 1)
		must(t, err)
		for _, e := range entries {
			st, err := os.Lstat(e.Path)
			must(t, err)
			if e.Mode != st.Mode() {
				t.Errorf("%s is %v, want %v", e.Name, e.Mode, st.Mode())
			}
			want := map[string]Type{"file": TypeFile, "dir": TypeDirectory}[e.Name]
			if e.Type != want {
				t.Errorf("%s has type %v, want %v", e.Name, e.Type, want)
			}
		}
	})
}

// TestTreeDeeperThanPaths: what no path can name is not listed, and neither
// packed nor copied in part.
func TestTreeDeeperThanPaths(t *testing.T) {
	modes(t, func(t *testing.T, v *View, _ string) {
		dir := mount(t, "-t", "tmpfs", "none")
		v.User.Home = dir
		chain(t, dir, 3000, alice, func(int) bool { return false })
		entries, err := list(v, "", 1<<31)
		must(t, err)
		if last := entries[len(entries)-1]; len(last.Path) < pathMax-2 || len(last.Path) > pathMax+2 {
			t.Errorf("the last of %d paths has %d bytes", len(entries), len(last.Path))
		}
		wantErr(t, v.Pack(io.Discard, ""), ErrInvalid)
		tmpfs := mount(t, "-t", "tmpfs", "none")
		_, err = v.Move("d", filepath.Join(tmpfs, "d"))
		wantErr(t, err, ErrInvalid)
		wantNames(t, tmpfs)
		_, err = v.Move("d", "e")
		must(t, err)
		must(t, v.Remove("e"))
		wantNames(t, dir)
	})
}

// TestMoveFilesOfOthers: root keeps their owner between filesystems; the user
// cannot, and gets the file as its own, without set-ID bits.
func TestMoveFilesOfOthers(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		path := filepath.Join(dir, "f")
		write(t, path, "x")
		must(t, os.Chown(path, int(bob.UID), int(bob.GID)))
		must(t, unix.Chmod(path, 0o4755))
		tmpfs := mount(t, "-t", "tmpfs", "none")
		e, err := v.Move("f", filepath.Join(tmpfs, "f"))
		must(t, err)
		if v.Confined {
			wantOwner(t, e.Path, alice)
		} else {
			wantOwner(t, e.Path, bob)
		}
		if setuid := lstat(t, e.Path).Mode&unix.S_ISUID != 0; setuid == v.Confined {
			t.Errorf("permissions %v", e.Mode)
		}
	})
}

// TestErrorTexts are what a client reads: the operation, the path, the reason,
// each once.
func TestErrorTexts(t *testing.T) {
	dir := userDir(t)
	v := as(alice, dir, false)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	_, stat := v.Stat("missing")
	_, write := upload(v, "d", "x")
	_, short := v.Write("s", strings.NewReader("x"), Upload{Size: 2})
	_, long := v.Stat(strings.Repeat("n", 300))
	for err, want := range map[error]string{
		stat:                                    "stat " + dir + "/missing: no such file or directory",
		write:                                   "write " + dir + "/d: is a directory",
		short:                                   "write " + dir + "/s: read contents: unexpected EOF after 1 of 2 bytes",
		long:                                    "stat " + dir + "/" + strings.Repeat("n", 300) + ": file name too long",
		v.Unpack("u", archive(t, file("../x"))): `unpack ../x: unusable archive: name contains ".."`,
		v.Unpack("d", strings.NewReader("short")): "unpack: read contents: unexpected EOF",
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}
