package linux

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenBeneath(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o755),
		os.Symlink("a/b", filepath.Join(dir, "in")),
		os.Symlink("../a", filepath.Join(dir, "a/up")),
		os.Symlink(outside, filepath.Join(dir, "absolute")),
		os.Symlink("../..", filepath.Join(dir, "a/out")),
		os.Symlink("loop", filepath.Join(dir, "loop")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := OpenAt(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for path, want := range map[string]error{
		".": nil, "a/b": nil, "in": nil, "a/up/b": nil, "a/..": nil,
		"..": unix.EXDEV, "absolute": unix.EXDEV, "a/out": unix.EXDEV, "/etc": unix.EXDEV,
		"loop": unix.ELOOP, "missing": unix.ENOENT,
	} {
		fd, err := OpenBeneath(root, path, unix.O_PATH, 0)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err == nil {
			flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: descriptor survives exec", path)
			}
			_ = unix.Close(fd)
		}
	}
}
