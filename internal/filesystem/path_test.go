package filesystem

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	for _, test := range []struct {
		name, home, workdir, path, want string
	}{
		{"absolute", "/home/a", "", "/x/y", "/x/y"},
		{"home", "/home/a", "", "~", "/home/a"},
		{"below home", "/home/a", "", "~/x", "/home/a/x"},
		{"home with a slash", "/home/a", "", "~/", "/home/a"},
		{"relative", "/home/a", "/work", "x/y", "/home/a/x/y"},
		{"dot", "/home/a", "/work", ".", "/home/a"},
		{"tilde inside", "/home/a", "", "x/~", "/home/a/x/~"},
		{"empty", "/home/a", "/work", "", "/work"},
		{"empty without workdir", "/home/a", "", "", "/home/a"},
		{"relative workdir", "/home/a", "w", "", "/home/a/w"},
		{"workdir at home", "/home/a", "~/w", "", "/home/a/w"},
		{"no home", "", "", "x", "/x"},
		{"no home at all", "", "", "", "/"},
		{"relative home", "a", "", "~", "/a"},
		{"unclean", "/home/a", "", "/x//y/./../z/", "/x/z"},
		{"above the root", "/home/a", "", "../../../../x", "/x"},
		{"newline and bytes", "/home/a", "", "a\nb\xff", "/home/a/a\nb\xff"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := User{Home: test.home, Workdir: test.workdir}
			got, err := u.Resolve(test.path)
			must(t, err)
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	for _, path := range []string{"~bob", "~bob/x", "~~", "a\x00b", "/\x00"} {
		u := User{Home: "/home/a"}
		if got, err := u.Resolve(path); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %q, %v", path, got, err)
		}
	}
	u := User{Home: "/"}
	for _, path := range []string{"", "/", "~", "/x/.."} {
		if got, err := u.resolveNamed(path); !errors.Is(err, ErrInvalid) {
			t.Errorf("named %q: got %q, %v", path, got, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, path := range []string{"", "~", "~/x", "~b", "x", "/", "../..", "a\x00", "//a/./b/..", "~/../x", "\xff\n"} {
		f.Add("/home/a", "/work", path)
	}
	f.Fuzz(func(t *testing.T, home, workdir, path string) {
		u := User{Home: home, Workdir: workdir}
		got, err := u.Resolve(path)
		if err != nil {
			if got != "" || !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %q, %v", got, err)
			}
			return
		}
		if !filepath.IsAbs(got) || got != filepath.Clean(got) {
			t.Fatalf("%q is not clean and absolute", got)
		}
		if strings.IndexByte(got, 0) >= 0 {
			t.Fatalf("%q became %q", path, got)
		}
		if strings.HasPrefix(path, "/") && got != filepath.Clean(path) {
			t.Fatalf("%q became %q", path, got)
		}
		// What was resolved means the same when it comes back.
		if again, err := u.Resolve(got); err != nil || again != got {
			t.Fatalf("%q again is %q, %v", got, again, err)
		}
	})
}
