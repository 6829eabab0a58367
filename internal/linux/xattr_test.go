package linux

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestXattrs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	link := file + "-link"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"user.a": "1", "user.empty": "", "user.large": strings.Repeat("v", 2000)}
	for name, value := range want {
		if err := unix.Setxattr(file, name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		x    Xattrs
		path string
		want map[string]string
	}{
		{Xattrs{}, file, want},
		{Xattrs{Follow: true}, link, want},
		{Xattrs{}, link, nil},
		{Xattrs{}, "/proc/self/status", nil}, // no attributes at all
	} {
		var names []string
		err := test.x.Each(unix.AT_FDCWD, test.path, func(name string) error {
			value, err := test.x.Value(unix.AT_FDCWD, test.path, name)
			if string(value) != test.want[name] {
				t.Errorf("%s is %q", name, value)
			}
			names = append(names, name)
			return err
		})
		if err != nil || len(names) != len(test.want) {
			t.Errorf("%s has %q, %v", test.path, slices.Sorted(slices.Values(names)), err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var x Xattrs
	got := make(map[string]string)
	err = x.Each(int(f.Fd()), "", func(name string) error {
		value, err := x.Value(int(f.Fd()), "", name)
		got[name] = string(value)
		return err
	})
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("the open file has %q, %v", got, err)
	}
	if err := new(Xattrs).Each(unix.AT_FDCWD, file+"-missing", nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing file: %v", err)
	}
}

// TestXattrsOfOlderKernels takes the way that is left before Linux 6.13.
func TestXattrsOfOlderKernels(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(dir, "f"), "user.a", nil, 0); err != nil {
		t.Fatal(err)
	}
	dirfd, err := OpenAt(unix.AT_FDCWD, dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	for _, x := range []Xattrs{{}, {Follow: true}} {
		buf := make([]byte, xattrBuffer)
		n, err := x.list(procPath(dirfd, "f"), buf)
		if err != nil || string(buf[:n]) != "user.a\x00" {
			t.Errorf("follow %v: %q, %v", x.Follow, buf[:max(n, 0)], err)
		}
	}
}
