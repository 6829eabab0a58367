package api

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
)

// alice is the user of tests of files: with rights of her own, and a group.
const (
	aliceUID, aliceGID, aliceGroup = 41001, 41101, 41999
	bobUID, bobGID                 = 41002, 41102
)

// site is a served api, with alice as the default user.
type site struct {
	t    *testing.T
	base string // URL
	home string // of alice
	log  *syncBuffer
	http *http.Client // does not compress by itself, nor follow
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newSite serves with alice's home at home; leaks are for the caller to check.
func newSite(t *testing.T, home string, confined bool) *site {
	t.Helper()
	return newSiteOf(t, home, confined, nil)
}

// newSiteOf is newSite with a bound for threads, nil for the usual one.
func newSiteOf(t *testing.T, home string, confined bool, threads *slots) *site {
	t.Helper()
	etc := t.TempDir()
	passwd, group := filepath.Join(etc, "passwd"), filepath.Join(etc, "group")
	writeFile(t, passwd, fmt.Sprintf("root:x:0:0::/root:/bin/sh\nalice:x:%d:%d::%s:/bin/sh\nbob:x:%d:%d::%s:/bin/sh\n",
		aliceUID, aliceGID, home, bobUID, bobGID, home))
	writeFile(t, group, fmt.Sprintf("root:x:0:\nalice:x:%d:\nteam:x:%d:alice\n", aliceGID, aliceGroup))
	s := &site{t: t, home: home, log: &syncBuffer{}}
	server := httptest.NewServer(New(Config{
		Version:    "0.9.0",
		Settings:   guest.NewStore(guest.Settings{User: "alice"}),
		Accounts:   guest.NewAccounts(passwd, group),
		Log:        slog.New(slog.NewTextHandler(s.log, nil)),
		UserAccess: confined,
		threads:    threads,
	}))
	s.base = server.URL
	s.http = &http.Client{
		Transport: &http.Transport{DisableCompression: true},
		Timeout:   time.Minute,
	}
	t.Cleanup(func() {
		s.http.CloseIdleConnections()
		server.Close()
	})
	return s
}

// bothModes runs f with root's reach and with the user's own, each in a new
// home of alice.
func bothModes(t *testing.T, f func(t *testing.T, s *site)) {
	for _, confined := range []bool{false, true} {
		t.Run(fmt.Sprintf("confined=%v", confined), func(t *testing.T) {
			home := homeDir(t)
			leaktest.Check(t)
			f(t, newSite(t, home, confined))
		})
	}
}

// homeDir is a new directory of alice that she can reach.
func homeDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chown(dir, aliceUID, aliceGID))
	return dir
}

// reply is an answer, read to its end.
type reply struct {
	*http.Response
	body string
}

// files is the URL of /files with a query of names and values.
func (s *site) files(query ...string) string {
	q := make(url.Values)
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	return s.base + "/files?" + q.Encode()
}

// do makes a request with headers of names and values.
func (s *site) do(method, target string, body io.Reader, headers ...string) reply {
	s.t.Helper()
	r, err := s.try(method, target, body, headers...)
	must(s.t, err)
	return r
}

func (s *site) try(method, target string, body io.Reader, headers ...string) (reply, error) {
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		return reply{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := s.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return reply{res, string(text)}, err
}

func (s *site) get(path string, headers ...string) reply {
	s.t.Helper()
	return s.do("GET", s.files("path", path), nil, headers...)
}

// put uploads as application/octet-stream.
func (s *site) put(path, contents string, headers ...string) reply {
	s.t.Helper()
	return s.do("POST", s.files("path", path), strings.NewReader(contents), append([]string{"Content-Type", octets}, headers...)...)
}

const octets = rawType

// want fails unless r has the status, and as an error the form of errors.
func (r reply) want(t testing.TB, status int) reply {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("%s %s: %s, want %d: %.300s", r.Request.Method, r.Request.URL, r.Status, status, r.body)
	}
	if status >= 400 && r.Request.Method != "HEAD" {
		form := fmt.Sprintf(`{"code":%d,"message":"`, status)
		if r.Header.Get("Content-Type") != "application/json" || !strings.HasPrefix(r.body, form) {
			t.Fatalf("%s %s: the error is %q", r.Request.Method, r.Request.URL, r.body)
		}
	}
	return r
}

func (r reply) wantHeader(t testing.TB, name, value string) {
	t.Helper()
	if got := strings.Join(r.Header[http.CanonicalHeaderKey(name)], "|"); got != value {
		t.Errorf("%s %s: %s %q, want %q", r.Request.Method, r.Request.URL, name, got, value)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t testing.TB, path, contents string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(contents), 0o644))
}

func wantContents(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if string(got) != want {
		t.Errorf("%s holds %d bytes, %.80q, want %d, %.80q", path, len(got), got, len(want), want)
	}
}

// wantNames fails unless dir holds just these names: no temporary files either.
func wantNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	got := make([]string, len(entries))
	for i, e := range entries {
		got[i] = e.Name()
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func wantOwner(t testing.TB, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// noise is n bytes that do not shrink.
func noise(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(b)
}

// prose is n bytes that do.
func prose(n int) string {
	return strings.Repeat("The kernel copies what nobody has to look at. ", n/46+1)[:n]
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// mounted mounts a filesystem in a new directory of alice.
func mounted(t testing.TB, args ...string) string {
	t.Helper()
	dir := homeDir(t)
	command(t, "mount", append(args, dir)...)
	t.Cleanup(func() { command(t, "umount", dir) })
	must(t, os.Chown(dir, aliceUID, aliceGID))
	return dir
}

// ext4 mounts a new ext4 filesystem of size bytes.
func ext4(t testing.TB, size int64, mkfs ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	writeFile(t, image, "")
	must(t, os.Truncate(image, size))
	command(t, "mkfs.ext4", append(append([]string{"-q", "-F"}, mkfs...), image)...)
	dir := mounted(t, "-o", "loop", image)
	must(t, os.Remove(filepath.Join(dir, "lost+found")))
	return dir
}

// running starts a program, which stop ends.
func running(t testing.TB, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(name, args...)
	must(t, cmd.Start())
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
