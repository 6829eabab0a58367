package guest

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolvePath(t *testing.T) {
	for _, tt := range []struct{ home, path, workdir, want string }{
		{"/home/u", "~", "", "/home/u"},
		{"/home/u", "~/", "", "/home/u"},
		{"/home/u", "~/a/b", "/w", "/home/u/a/b"},
		{"/home/u", "~/../x", "", "/home/x"},
		{"/home/u", "a/b", "/w", "/home/u/a/b"},
		{"/home/u", "./a", "", "/home/u/a"},
		{"/home/u", "a~", "", "/home/u/a~"},
		{"/home/u", "a/~", "", "/home/u/a/~"},
		{"/home/u", "/a//b/../c/", "", "/a/c"},
		{"/home/u", "/../..", "", "/"},
		{"/home/u", "", "", "/home/u"},
		{"/home/u", "", "/work", "/work"},
		{"/home/u", "", "work", "/home/u/work"},
		{"/home/u", "", "~", "/home/u"},
		{"/home/u", "", "~/w", "/home/u/w"},
		{"/home/u", "..", "", "/home"},
		{"/home/u", " ", "", "/home/u/ "},
		{"", "", "", "/"},
		{"", "~", "", "/"},
		{"", "a", "", "/a"},
		{"home", "a", "", "/home/a"},
		{"/", "a", "", "/a"},
	} {
		got, err := Account{Home: tt.home}.ResolvePath(tt.path, tt.workdir)
		if got != tt.want || err != nil {
			t.Errorf("home %q, path %q, workdir %q: %q, %v; want %q", tt.home, tt.path, tt.workdir, got, err, tt.want)
		}
	}
	for _, path := range []string{"~other", "~other/x", "~~", "~.", "~ "} {
		if got, err := (Account{Home: "/h"}).ResolvePath(path, ""); !errors.Is(err, ErrOtherHome) {
			t.Errorf("path %q: %q, %v; want %v", path, got, err, ErrOtherHome)
		}
		if got, err := (Account{Home: "/h"}).ResolvePath("", path); !errors.Is(err, ErrOtherHome) {
			t.Errorf("workdir %q: %q, %v; want %v", path, got, err, ErrOtherHome)
		}
	}
}

func FuzzResolvePath(f *testing.F) {
	f.Add("/home/u", "~/x", "")
	f.Add("", "a/../..", "~")
	f.Add("rel", "", "w")
	f.Add("~x", "", "")
	f.Fuzz(func(t *testing.T, home, path, workdir string) {
		got, err := Account{Home: home}.ResolvePath(path, workdir)
		if err != nil {
			asked := path
			if asked == "" {
				asked = workdir
			}
			if !errors.Is(err, ErrOtherHome) || len(asked) < 2 || asked[0] != '~' || asked[1] == '/' {
				t.Errorf("home %q, path %q, workdir %q: %v", home, path, workdir, err)
			}
			return
		}
		if !filepath.IsAbs(got) || filepath.Clean(got) != got {
			t.Errorf("home %q, path %q, workdir %q: %q is not absolute and clean", home, path, workdir, got)
		}
		if strings.HasPrefix(path, "/") && got != filepath.Clean(path) {
			t.Errorf("absolute path %q became %q", path, got)
		}
		if again, err := (Account{Home: home}).ResolvePath(got, workdir); again != got || err != nil {
			t.Errorf("%q resolves to %q, %v", got, again, err)
		}
	})
}
