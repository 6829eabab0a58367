package wire

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	fs "github.com/wrenn/envd/gen/filesystem"
)

// The user that the scenarios about rights act as, and one beside it.
const (
	user, userID   = "daemon", 1
	other, otherID = "bin", 2
)

// userDir is a new directory that belongs to user and that all may enter.
func userDir(t *testing.T) string {
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chown(dir, userID, userID))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path, contents string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(contents), 0o644))
}

func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st.Uid, st.Gid
}

func TestStat(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), userDir(t)
		at := time.Unix(1234567890, 987654321)
		writeFile(t, dir+"/file", "12345")
		must(t, os.Chown(dir+"/file", 54321, 54322))
		must(t, os.Chmod(dir+"/file", 0o640|os.ModeSetuid))
		must(t, os.Chtimes(dir+"/file", at, at))
		must(t, unix.Setxattr(dir+"/file", "user.e2b.lang", []byte("go"), 0))
		must(t, unix.Setxattr(dir+"/file", "user.other", []byte("x"), 0))
		must(t, os.Mkdir(dir+"/sub", 0o700))
		must(t, unix.Mkfifo(dir+"/fifo", 0o600))
		must(t, os.Symlink("file", dir+"/hop"))
		must(t, os.Symlink("hop", dir+"/link"))
		must(t, os.Symlink("sub", dir+"/tosub"))
		must(t, os.Symlink("nowhere", dir+"/broken"))
		must(t, os.Symlink("cycle", dir+"/cycle"))
		for _, want := range []*fs.EntryInfo{
			{Name: "file", Type: fs.FileType_FILE_TYPE_FILE, Size: 5, Mode: 0o640, Permissions: "urw-r-----", Owner: "54321", Group: "54322", Metadata: map[string]string{"lang": "go"}},
			{Name: "sub", Type: fs.FileType_FILE_TYPE_DIRECTORY, Mode: 0o700, Permissions: "drwx------", Owner: "root", Group: "root"},
			{Name: "fifo", Mode: 0o600, Permissions: "prw-------", Owner: "root", Group: "root"},
			{Name: "link", Type: fs.FileType_FILE_TYPE_FILE, Mode: 0o640, Permissions: "Lrwxrwxrwx", Owner: "root", Group: "root", SymlinkTarget: proto.String(dir + "/file"), Metadata: map[string]string{"lang": "go"}},
			{Name: "tosub", Type: fs.FileType_FILE_TYPE_DIRECTORY, Mode: 0o700, Permissions: "Lrwxrwxrwx", Owner: "root", Group: "root", SymlinkTarget: proto.String(dir + "/sub")},
			{Name: "broken", Permissions: "Lrwxrwxrwx", Owner: "root", Group: "root", SymlinkTarget: proto.String(dir + "/broken")},
			{Name: "cycle", Permissions: "Lrwxrwxrwx", Owner: "root", Group: "root", SymlinkTarget: proto.String(dir + "/cycle")},
		} {
			e, err := c.stat(ctx, dir+"/"+want.Name)
			if err != nil {
				t.Errorf("%s: %v", want.Name, err)
				continue
			}
			if want.Name == "file" && !e.ModifiedTime.AsTime().Equal(at) {
				t.Errorf("modified %v, expected %v", e.ModifiedTime.AsTime(), at)
			}
			want.Path = dir + "/" + want.Name
			if want.Type != fs.FileType_FILE_TYPE_FILE || want.SymlinkTarget != nil {
				want.Size = e.Size // whatever the file system says
			}
			want.ModifiedTime = e.ModifiedTime
			if !proto.Equal(e, want) {
				t.Errorf("got %v, expected %v", e, want)
			}
		}
		for _, missing := range []string{dir + "/none", dir + "/none/below", dir + "/file/below"} {
			_, err := c.stat(ctx, missing)
			c.wantCode(err, connect.CodeNotFound)
		}
	})
}

func TestPaths(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx := as(bounded(t), user) // whose home is /usr/sbin
		for path, want := range map[string]string{
			"": "/usr/sbin", "~": "/usr/sbin", "~/": "/usr/sbin", "~/..": "/usr", "..": "/usr", "../bin/sh": "/usr/bin/sh",
			"/usr/./lib/../bin": "/usr/bin", "/": "/",
		} {
			if e, err := c.stat(ctx, path); err != nil || e.Path != want {
				t.Errorf("%q: %v, %v; expected %s", path, e, err, want)
			}
		}
		for _, bad := range []string{"~root", "~root/x", "a\x00b", strings.Repeat("a", 300), strings.Repeat("/a", 3000)} {
			_, err := c.stat(ctx, bad)
			if connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("%.20q: %v", bad, err)
			}
		}
	})
}

func TestFilesystemUser(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx := as(bounded(t), "nosuchuser")
		_, err := c.stat(ctx, "/")
		c.wantCode(err, connect.CodeUnauthenticated)
		_, err = c.listDir(ctx, "/", 1)
		c.wantCode(err, connect.CodeUnauthenticated)
		_, err = c.tryWatch(ctx, &fs.WatchDirRequest{Path: "/"})
		c.wantCode(err, connect.CodeUnauthenticated)
	})
}

func paths(list []*fs.EntryInfo) []string {
	out := []string{}
	for _, e := range list {
		out = append(out, e.Path)
	}
	return out
}

func TestListDir(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), userDir(t)
		must(t, os.MkdirAll(dir+"/b/deep/deeper", 0o755))
		writeFile(t, dir+"/a", "")
		writeFile(t, dir+"/b/deep/file", "x")
		writeFile(t, dir+"/b.txt", "")
		must(t, os.Symlink("b", dir+"/link"))
		must(t, os.Mkdir(dir+"/empty", 0o755))
		for _, row := range []struct {
			path  string
			depth uint32
			want  []string
		}{
			{"", 0, []string{"/a", "/b", "/b.txt", "/empty", "/link"}},
			{"", 1, []string{"/a", "/b", "/b.txt", "/empty", "/link"}},
			{"", 2, []string{"/a", "/b", "/b/deep", "/b.txt", "/empty", "/link"}},
			{"", 1 << 31, []string{"/a", "/b", "/b/deep", "/b/deep/deeper", "/b/deep/file", "/b.txt", "/empty", "/link"}},
			{"/link", 2, []string{"/link/deep", "/link/deep/deeper", "/link/deep/file"}},
			{"/empty", 1, []string{}},
		} {
			list, err := c.listDir(ctx, dir+row.path, row.depth)
			must(t, err)
			for i := range row.want {
				row.want[i] = dir + row.want[i]
			}
			if got := paths(list); !slices.Equal(got, row.want) {
				t.Errorf("%q %d deep: %q, expected %q", row.path, row.depth, got, row.want)
			}
			for _, e := range list {
				if one, err := c.stat(ctx, e.Path); err != nil || !proto.Equal(one, e) {
					t.Errorf("listed as %v, but stat says %v, %v", e, one, err)
				}
			}
		}
		_, err := c.listDir(ctx, dir+"/a", 1)
		c.wantCode(err, connect.CodeInvalidArgument)
		_, err = c.listDir(ctx, dir+"/none", 1)
		c.wantCode(err, connect.CodeNotFound)
	})
}

// TestOddNames checks that no name makes its directory unlistable.
func TestOddNames(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), userDir(t)
		names := map[string]string{
			"\xff\xfe.bin": "\uFFFD.bin", "new\nline": "new\nline", `quo"te\`: `quo"te\`, "\x01\x7f": "\x01\x7f",
			"日本語": "日本語", "\u2028<&>": "\u2028<&>", strings.Repeat("n", 255): strings.Repeat("n", 255),
		}
		var want []string
		for name, shown := range names {
			writeFile(t, dir+"/"+name, "")
			must(t, os.Chtimes(dir+"/"+name, time.Unix(1<<33, 0), time.Unix(1<<33, 0)))
			want = append(want, dir+"/"+shown)
		}
		must(t, os.Symlink("\xff\xfe.bin", dir+"/~link"))
		list, err := c.listDir(ctx, dir, 1)
		must(t, err)
		got := paths(list)
		link := list[len(list)-1]
		slices.Sort(got)
		want = append(want, dir+"/~link")
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got %q, expected %q", got, want)
		}
		if !slices.ContainsFunc(list, func(e *fs.EntryInfo) bool { return e.GetSymlinkTarget() == dir+"/\uFFFD.bin" }) {
			t.Errorf("the link is %v", link)
		}
	})
}

// TestListDirWhole checks that a large listing arrives whole.
func TestListDirWhole(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		const n = 2000 // more than one buffer
		ctx, dir := bounded(t), userDir(t)
		for i := range n {
			writeFile(t, fmt.Sprintf("%s/%s-%05d", dir, strings.Repeat("x", i%200), i), "")
		}
		list, err := c.listDir(ctx, dir, 1)
		must(t, err)
		if len(list) != n || !slices.IsSorted(paths(list)) {
			t.Fatalf("%d entries, sorted %v; expected %d", len(list), slices.IsSorted(paths(list)), n)
		}
		for _, e := range list {
			if e.Type != fs.FileType_FILE_TYPE_FILE || e.Permissions != "-rw-r--r--" || e.Owner != "root" || !strings.HasSuffix(e.Path, e.Name) {
				t.Fatalf("entry %v", e)
			}
		}
	})
}

func TestMakeDir(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := as(bounded(t), user), userDir(t)
		e, err := c.makeDir(ctx, dir+"/a/b/c")
		must(t, err)
		if e.Name != "c" || e.Path != dir+"/a/b/c" || e.Type != fs.FileType_FILE_TYPE_DIRECTORY || e.Owner != user || e.Permissions != "drwxr-xr-x" {
			t.Errorf("made %v", e)
		}
		for _, made := range []string{"/a", "/a/b", "/a/b/c"} {
			if uid, gid := owner(t, dir+made); uid != userID || gid != userID {
				t.Errorf("%s belongs to %d:%d", made, uid, gid)
			}
		}
		_, err = c.makeDir(ctx, dir+"/a/b")
		c.wantCode(err, connect.CodeAlreadyExists)
		writeFile(t, dir+"/file", "")
		_, err = c.makeDir(ctx, dir+"/file")
		c.wantCode(err, connect.CodeInvalidArgument)
		_, err = c.makeDir(ctx, dir+"/file/below")
		c.wantCode(err, connect.CodeInvalidArgument)
		_, err = c.makeDir(ctx, "~root")
		c.wantCode(err, connect.CodeInvalidArgument)
	})
}

func TestMove(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := as(bounded(t), user), userDir(t)
		file := func(name, contents string) {
			writeFile(t, dir+name, contents)
			must(t, os.Chown(dir+name, userID, userID))
		}
		file("/file", "contents")
		e, err := c.move(ctx, dir+"/file", dir+"/new/parents/file2")
		must(t, err)
		if e.Path != dir+"/new/parents/file2" || e.Size != 8 {
			t.Errorf("moved to %v", e)
		}
		if uid, _ := owner(t, dir+"/new/parents"); uid != userID {
			t.Errorf("the parents belong to %d", uid)
		}
		// Over a file, and a whole directory.
		file("/file3", "older")
		_, err = c.move(ctx, dir+"/new/parents/file2", dir+"/file3")
		must(t, err)
		_, err = c.move(ctx, dir+"/new", dir+"/newer")
		must(t, err)
		if b, err := os.ReadFile(dir + "/file3"); err != nil || string(b) != "contents" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := os.Stat(dir + "/newer/parents"); err != nil {
			t.Error(err)
		}
		for _, row := range []struct {
			from, to string
			code     connect.Code
		}{
			{dir + "/none", dir + "/x", connect.CodeNotFound},
			{"", dir + "/x", connect.CodeInvalidArgument},
			{dir + "/file3", "", connect.CodeInvalidArgument},
			{dir + "/newer", dir + "/newer/parents/below", connect.CodeInvalidArgument},
			{dir + "/file3", dir + "/newer", connect.CodeInvalidArgument},       // a directory in the way
			{dir + "/file3", dir + "/file3/below", connect.CodeInvalidArgument}, // a file in the way
		} {
			_, err := c.move(ctx, row.from, row.to)
			if connect.CodeOf(err) != row.code {
				t.Errorf("%q to %q: %v, expected %v", row.from, row.to, err, row.code)
			}
		}
	})
}

// TestMoveAcross checks a move between file systems.
func TestMoveAcross(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := as(bounded(t), user), userDir(t)
		elsewhere := ramDir(t)
		must(t, os.Chown(elsewhere, userID, userID))
		must(t, os.MkdirAll(dir+"/tree/sub", 0o750))
		writeFile(t, dir+"/tree/sub/file", "contents")
		for _, name := range []string{"/tree", "/tree/sub", "/tree/sub/file"} {
			must(t, os.Chown(dir+name, userID, userID))
		}
		e, err := c.move(ctx, dir+"/tree", elsewhere+"/parents/tree")
		must(t, err)
		if e.Type != fs.FileType_FILE_TYPE_DIRECTORY || e.Permissions != "drwxr-x---" {
			t.Errorf("moved to %v", e)
		}
		if b, err := os.ReadFile(elsewhere + "/parents/tree/sub/file"); err != nil || string(b) != "contents" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := os.Lstat(dir + "/tree"); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("the source is still there: %v", err)
		}
	})
}

func TestRemove(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := as(bounded(t), user), userDir(t)
		_, err := c.makeDir(ctx, dir+"/a/b/c")
		must(t, err)
		must(t, os.Symlink("/usr", dir+"/a/link"))
		must(t, os.Symlink("a", dir+"/toa"))
		must(t, c.remove(ctx, dir+"/toa"))
		if _, err := os.Stat(dir + "/a/b"); err != nil {
			t.Errorf("a link was followed: %v", err)
		}
		for range 2 { // and again: nothing is there
			must(t, c.remove(ctx, dir+"/a"))
		}
		must(t, c.remove(ctx, dir+"/none/below"))
		writeFile(t, dir+"/file", "")
		must(t, c.remove(ctx, dir+"/file/below"))
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 || list[0].Name() != "file" {
			t.Errorf("left are %v, %v", list, err)
		}
		if _, err := os.Stat("/usr/bin"); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"", "/", "/..", "~root"} {
			c.wantCode(c.remove(ctx, bad), connect.CodeInvalidArgument)
		}
	})
}

// TestReach checks what a user reaches in either mode: by default what the
// daemon does, with --user-access what it could itself.
func TestReach(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		ctx, dir := as(bounded(t), user), userDir(t)
		must(t, os.MkdirAll(dir+"/private/inside", 0o700)) // root's
		writeFile(t, dir+"/private/file", "")
		must(t, os.Mkdir(dir+"/shared", 0o775)) // of another user, and user's group
		must(t, os.Chown(dir+"/shared", otherID, userID))
		must(t, os.Chmod(dir+"/shared", 0o775))
		must(t, os.Mkdir(dir+"/sticky", 0o777))
		must(t, os.Chmod(dir+"/sticky", 0o777|os.ModeSticky))
		writeFile(t, dir+"/sticky/roots", "")
		p := dir + "/private"
		check := func(what string, err error, allowed bool) {
			t.Helper()
			switch allowed = allowed || !c.d.access; {
			case allowed && err != nil:
				t.Errorf("%s: %v", what, err)
			case !allowed && connect.CodeOf(err) != connect.CodePermissionDenied:
				t.Errorf("%s: %v, expected permission_denied", what, err)
			}
		}
		_, err := c.stat(ctx, p)
		check("stat a directory that may not be entered", err, true)
		_, err = c.stat(ctx, p+"/file")
		check("stat below it", err, false)
		_, err = c.listDir(ctx, p, 1)
		check("list it", err, false)
		_, err = c.makeDir(ctx, p+"/new/below")
		check("make a directory below it", err, false)
		_, err = c.makeDir(ctx, dir+"/shared/new")
		check("make a directory where the group may", err, true)
		_, err = c.move(ctx, p+"/file", dir+"/stolen")
		check("move out of it", err, false)
		writeFile(t, dir+"/mine", "")
		_, err = c.move(ctx, dir+"/mine", p+"/file2")
		check("move into it", err, false)
		_, err = c.tryWatch(ctx, &fs.WatchDirRequest{Path: p})
		check("watch it", err, false)
		err = c.unary(ctx, methodCreateWatcher, &fs.CreateWatcherRequest{Path: p}, &fs.CreateWatcherResponse{})
		check("create a watcher of it", err, false)
		check("remove what another has in a sticky directory", c.remove(ctx, dir+"/sticky/roots"), false)
		check("remove below it", c.remove(ctx, p+"/inside"), false)
		check("remove it", c.remove(ctx, p), !c.d.access)
		// A listing shows what may be seen and leaves out what may not.
		list, err := c.listDir(ctx, dir, 2)
		must(t, err)
		if got := slices.Contains(paths(list), p+"/inside"); c.d.access && got {
			t.Errorf("lists what may not be seen: %q", paths(list))
		}
	})
}

// TestListDirCutOff checks that a listing which cannot be finished looks
// broken, and not complete: its deadline passes while the client does not read.
func TestListDirCutOff(t *testing.T) {
	each(t, "connect-proto-http1", func(t *testing.T, c *call) {
		dir := ramDir(t)
		for i := range 20_000 { // more than the sockets' buffers hold
			must(t, unix.Mknod(fmt.Sprintf("%s/%s%05d", dir, strings.Repeat("n", 245), i), unix.S_IFREG, 0))
		}
		req, err := http.NewRequestWithContext(bounded(t), http.MethodPost, c.d.base+methodListDir, strings.NewReader(`{"path":"`+dir+`"}`))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Connect-Timeout-Ms", "300")
		deadline := time.After(600 * time.Millisecond)
		res, err := http1().Do(req)
		must(t, err)
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK { // the machine was too busy for it to begin
			return
		}
		<-deadline
		body, err := io.ReadAll(res.Body)
		if err == nil {
			t.Errorf("%d bytes came in good order, up to %.30q", len(body), body[max(0, len(body)-30):])
		}
	})
}
