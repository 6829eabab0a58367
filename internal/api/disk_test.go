package api

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestFullDisk: what does not fit is 507. Where the size was known nothing has
// changed; else an atomic upload leaves no trace.
func TestFullDisk(t *testing.T) {
	const size = 4 << 20
	big, half := noise(5<<20), noise(2<<20)
	for name, disk := range map[string]func(t *testing.T) string{
		"tmpfs": func(t *testing.T) string {
			return mounted(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "none")
		},
		"ext4": func(t *testing.T) string { return ext4(t, size) },
		"overlay": func(t *testing.T) string {
			base := mounted(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "none")
			for _, d := range []string{"lower", "upper", "work"} {
				must(t, os.Mkdir(filepath.Join(base, d), 0o755))
			}
			return mounted(t, "-t", "overlay", "-o",
				fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base), "none")
		},
	} {
		for _, confined := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/confined=%v", name, confined), func(t *testing.T) {
				dir := disk(t)
				leaktest.Check(t)
				s := newSite(t, dir, confined)
				s.put("old", half, "X-Metadata-K", "v").want(t, 200)
				var before, after unix.Stat_t
				must(t, unix.Stat(filepath.Join(dir, "old"), &before))
				s.put("old", big).want(t, 507)
				s.put("a/new", big).want(t, 507)
				s.do("POST", s.files("path", "old", "atomic", "true"), strings.NewReader(big), "Content-Type", rawType).want(t, 507)
				s.do("PATCH", s.files("path", "old"), strings.NewReader(big), "Content-Range", fmt.Sprintf("bytes 1000-%d/*", 1000+len(big)-1)).want(t, 507)
				must(t, unix.Stat(filepath.Join(dir, "old"), &after))
				if before.Ctim != after.Ctim {
					t.Error("the old file was touched")
				}
				wantContents(t, filepath.Join(dir, "old"), half)
				wantNames(t, dir, "old")

				s.do("POST", s.files("path", "old", "atomic", "true"), io.MultiReader(strings.NewReader(big)), "Content-Type", rawType).want(t, 507)
				s.do("POST", s.files("path", "tree"), strings.NewReader(tarred(t, tarFile("f", big))), "Content-Type", "application/x-tar").want(t, 507)
				must(t, os.RemoveAll(filepath.Join(dir, "tree")))
				wantContents(t, filepath.Join(dir, "old"), half)
				s.postForm([]string{"path", "new"}, fileAs("f", big)).want(t, 507)
				s.do("POST", s.base+"/files/compose", strings.NewReader(`{"source_paths":["old","new"],"destination":"all"}`)).want(t, 507)
				wantNames(t, dir, "new", "old")
				must(t, os.Remove(filepath.Join(dir, "new")))
				s.put("small", "fits again").want(t, 200)
			})
		}
	}
}

func TestFullInodes(t *testing.T) {
	dir := ext4(t, 8<<20, "-N", "32")
	s := newSite(t, dir, false)
	status := 200
	for i := 0; status == 200 && i < 64; i++ {
		status = s.put(fmt.Sprintf("f%02d", i), "x").StatusCode
	}
	if status != 507 {
		t.Fatalf("status %d", status)
	}
	s.put("d/f", "x").want(t, 507)
	s.do("POST", s.files("path", "f00", "atomic", "true"), strings.NewReader("y"), "Content-Type", rawType).want(t, 507)
	s.put("f00", "in place").want(t, 200)
	wantContents(t, filepath.Join(dir, "f00"), "in place")
}

func TestReadOnlyFilesystem(t *testing.T) {
	dir := ext4(t, 4<<20)
	s := newSite(t, dir, false)
	s.put("f", "x").want(t, 200)
	command(t, "mount", "-o", "remount,ro", dir)
	s.get("f").want(t, 200)
	s.get("f", "Range", "bytes=0-0").want(t, 206)
	s.get("", "Accept", "application/gzip").want(t, 200)
	s.put("f", "y").want(t, 403)
	s.put("new", "y").want(t, 403)
	s.do("POST", s.files("path", "f", "atomic", "true"), strings.NewReader("y"), "Content-Type", rawType).want(t, 403)
	s.do("PATCH", s.files("path", "f"), strings.NewReader("y"), "Content-Range", "bytes 0-0/*").want(t, 403)
	s.do("POST", s.files("path", ""), strings.NewReader(tarred(t, tarFile("g", "x"))), "Content-Type", "application/x-tar").want(t, 400)
	s.do("POST", s.files("path", "~"), strings.NewReader(tarred(t, tarFile("g", "x"))), "Content-Type", "application/x-tar").want(t, 403)
}

// TestNoXattrs: ramfs keeps none of a user's attributes. Uploads succeed
// without, and the answer does not claim them.
func TestNoXattrs(t *testing.T) {
	for _, confined := range []bool{false, true} {
		dir := mounted(t, "-t", "ramfs", "none")
		must(t, os.Chmod(dir, 0o755))
		s := newSite(t, dir, confined)
		for _, atomic := range []string{"", "true"} {
			r := s.do("POST", s.files("path", "f", "atomic", atomic), strings.NewReader("x"), "Content-Type", rawType, "X-Metadata-K", "v").want(t, 200)
			if strings.Contains(r.body, "metadata") {
				t.Errorf("answer %s", r.body)
			}
		}
		s.get("", "Accept", "application/x-tar").want(t, 200)
	}
}

// TestRunningProgram: the kernel does not let a program that runs be written in
// place. It can be replaced.
func TestRunningProgram(t *testing.T) {
	s := newSite(t, homeDir(t), false)
	path := filepath.Join(s.home, "sleep")
	sleep, err := os.ReadFile("/bin/sleep")
	must(t, err)
	s.put("sleep", string(sleep)).want(t, 200)
	must(t, os.Chmod(path, 0o755))
	stop := running(t, path, "1000")
	defer stop()
	s.put("sleep", "x").want(t, 409)
	s.do("POST", s.files("path", "sleep", "atomic", "true"), strings.NewReader("x"), "Content-Type", rawType).want(t, 200)
	wantContents(t, path, "x")
}
