package api

import (
	"bufio"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
)

// initRig serves /init over fakes of what is around the daemon.
type initRig struct {
	t        *testing.T
	handler  http.Handler
	settings *guest.Store
	root     string
	ids      *fakeIdentities
	restorer *fakeRestorer
	clock    *heldClock
	mounter  *blockingMounter
	log      *strings.Builder
}

func newInitRig(t *testing.T) *initRig {
	t.Helper()
	r := &initRig{
		t: t, root: t.TempDir(), ids: &fakeIdentities{}, restorer: &fakeRestorer{}, clock: &heldClock{}, log: &strings.Builder{},
		mounter: &blockingMounter{begun: make(chan struct{}, 100)},
	}
	cfg := accessConfig(t, "")
	cfg.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.Machine = guest.NewMachine(guest.MachineConfig{
		Settings: cfg.Settings, Clock: r.clock, Mounter: r.mounter, Log: cfg.Log, Root: r.root,
	})
	cfg.Identities, cfg.Restorer = r.ids, r.restorer
	r.settings, r.handler = cfg.Settings, New(cfg)
	return r
}

// post sends a body and answers the response.
func (r *initRig) post(ctx context.Context, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", "/init", strings.NewReader(body)))
	return w
}

// want posts a body and checks the status.
func (r *initRig) want(status int, body string) *httptest.ResponseRecorder {
	r.t.Helper()
	w := r.post(r.t.Context(), body)
	if w.Code != status {
		r.t.Errorf("%s: status %d %s, want %d", body, w.Code, w.Body, status)
	}
	return w
}

type fakeIdentities struct {
	mu        sync.Mutex
	id        guest.Identity
	err       error
	published []guest.Identity
	again     int
	store     *guest.Store
}

func (f *fakeIdentities) Fetch(ctx context.Context) (guest.Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(f.err, context.DeadlineExceeded) {
		<-ctx.Done()
		return guest.Identity{}, ctx.Err()
	}
	return f.id, f.err
}

func (f *fakeIdentities) Publish(id guest.Identity) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.published = append(f.published, id)
	if f.store != nil {
		f.store.Update(func(s *guest.Settings) { s.Identify(id) })
	}
}

func (f *fakeIdentities) Again() { f.again++ }

type fakeRestorer struct {
	pending, jumped bool
	calls           []bool // with evidence of a restore
}

func (f *fakeRestorer) Pending() bool { return f.pending }

func (f *fakeRestorer) Jumped(by time.Duration) { f.jumped = by.Abs() > time.Second }

func (f *fakeRestorer) Restore(_ context.Context, another bool) bool {
	evidence := another || f.jumped
	f.calls = append(f.calls, evidence)
	restored := f.pending || evidence
	f.pending, f.jumped = false, false
	return restored
}

// heldClock stands off from the machine's by some time.
type heldClock struct{ off time.Duration }

func (c *heldClock) Now() time.Time        { return time.Now().Add(c.off) }
func (c *heldClock) Set(t time.Time) error { c.off = time.Until(t); return nil }

// blockingMounter never answers.
type blockingMounter struct{ begun chan struct{} }

func (m *blockingMounter) Mount(ctx context.Context, _ guest.Mount, _ netip.Addr, _ bool) error {
	m.begun <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (m *blockingMounter) Unmount(context.Context, guest.Mount) error { return nil }

func TestInit(t *testing.T) {
	leaktest.Check(t)
	r := newInitRig(t)
	w := r.want(204, "")
	if w.Header().Get("X-Envd-Version") != "0.9.0" || w.Header().Get("Cache-Control") != "no-store" || w.Body.Len() > 0 {
		t.Errorf("%v %q", w.Header(), w.Body)
	}
	r.want(204, `{"accessToken":"tok","defaultUser":"nosuch","defaultWorkdir":"~/w","envVars":{"A":"1","B":"2"},"hyperloopIp":"10.0.0.1","unknown":[1]}`)
	s := r.settings.Load()
	if !s.Token.Matches("tok") || s.User != "nosuch" || s.Workdir != "~/w" {
		t.Errorf("settings %+v", s)
	}
	if b, err := os.ReadFile(filepath.Join(r.root, "etc/hosts")); err != nil || string(b) != "10.0.0.1\tevents.wrenn.local\n" {
		t.Errorf("hosts %q, %v", b, err)
	}
	// Variables are merged; null takes one away.
	r.want(204, `{"accessToken":"tok","envVars":{"A":null,"C":"3"},"hyperloopIP":"10.0.0.2"}`)
	want := map[string]string{"B": "2", "C": "3", "WRENN_EVENTS_ADDRESS": "http://10.0.0.2"}
	if got := r.settings.Load().Env; !maps.Equal(got, want) {
		t.Errorf("environment %v", got)
	}
	// The environment is there to read, with the token.
	req := httptest.NewRequest("GET", "/envs", nil)
	req.Header.Set(tokenHeader, "tok")
	w = httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	if w.Code != 200 || w.Body.String() != `{"B":"2","C":"3","WRENN_EVENTS_ADDRESS":"http://10.0.0.2"}` ||
		w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("/envs: %d %q %v", w.Code, w.Body, w.Header())
	}
	if strings.Contains(r.log.String(), "tok\"") || strings.Contains(r.log.String(), "=tok") {
		t.Errorf("the log has the token: %s", r.log)
	}
}

// TestInitBadBody checks that nothing of a bad request is applied.
func TestInitBadBody(t *testing.T) {
	r := newInitRig(t)
	before := r.settings.Load()
	for _, field := range []string{
		`"accessToken":5`, `"accessToken":"a\nb"`, `"accessToken":" a"`, `"accessToken":"a\u0000"`, `"defaultUser":{}`,
		`"defaultWorkdir":"~other"`, `"defaultWorkdir":"a\u0000"`, `"envVars":[]`, `"envVars":{"A":1}`, `"envVars":{"":"x"}`,
		`"envVars":{"A=B":"x"}`, `"envVars":{"A\u0000":"x"}`, `"envVars":{"A":"\u0000"}`,
		`"timestamp":"yesterday"`, `"timestamp":5`, `"timestamp":"0001-01-01T00:00:01Z"`, `"timestamp":"9999-01-01T00:00:00Z"`,
		`"hyperloopIP":"events.example"`, `"hyperloopIP":"10.0.0.256"`, `"hyperloopIp":"fe80::1%eth0"`,
		`"volumeMounts":[{"nfs_target":"x","path":"/a"}]`, `"volumeMounts":[{"nfs_target":"h:/x","path":"a"}]`, `"volumeMounts":"x"`,
		`"volumeMounts":[{"nfs_target":"h:/x","path":"/a"},{"nfs_target":"h:/y","path":"/a/"}]`,
		`"caBundle":"hello"`, `"lifecycleID":7`,
	} {
		w := r.want(400, `{"accessToken":"tok","envVars":{"A":"1"},"defaultUser":"u",`+field+`}`)
		checkErrorCode(t, w, 400)
	}
	for _, body := range []string{`{`, `[]`, `"x"`, `{"envVars":{"A":"1"}} x`, "\xff", `{"accessToken":"secret-of-mine"x}`} {
		w := r.want(400, body)
		checkErrorCode(t, w, 400)
		if strings.Contains(w.Body.String(), "secret-of-mine") {
			t.Errorf("the answer quotes the body: %s", w.Body)
		}
	}
	r.want(413, `{"caBundle":"`+strings.Repeat("x", maxInitBody)+`"}`)
	if r.settings.Load() != before || len(r.restorer.calls) > 0 {
		t.Error("something was applied")
	}
}

func checkErrorCode(t *testing.T, w *httptest.ResponseRecorder, code int) {
	t.Helper()
	if !strings.HasPrefix(w.Body.String(), fmt.Sprintf(`{"code":%d,"message":"`, code)) {
		t.Errorf("body %q", w.Body)
	}
}

// TestInitNothingAsked checks the ways to ask for nothing.
func TestInitNothingAsked(t *testing.T) {
	r := newInitRig(t)
	before := r.settings.Load()
	for _, body := range []string{"", "null", "{}", `{"accessToken":"","defaultUser":"","defaultWorkdir":"","envVars":{},"timestamp":"","hyperloopIP":"","volumeMounts":[],"lifecycleID":"","caBundle":""}`, `{"timestamp":"0001-01-01T00:00:00Z","envVars":null}`} {
		r.want(204, body)
	}
	if now := r.settings.Load(); now.User != before.User || now.Token.IsSet() || len(now.Env) > 0 || r.clock.off != 0 {
		t.Errorf("settings %+v, clock off by %v", now, r.clock.off)
	}
	if left, _ := os.ReadDir(r.root); len(left) > 0 {
		t.Errorf("files %v", left)
	}
}

func TestInitAuthorization(t *testing.T) {
	hash := func(token string) string { return fmt.Sprintf("%x", sha512.Sum512([]byte(token))) }
	for _, row := range []struct {
		name       string
		set, said  string // token set; hash of the metadata service
		sent       string
		want       int
		noMetadata bool
	}{
		{"first", "", "", "new", 204, false},
		{"first, none sent", "", "", "", 204, false},
		{"equal", "old", "", "old", 204, false},
		{"equal, another said", "old", hash("new"), "old", 204, false},
		{"wrong", "old", "", "new", 401, false},
		{"none sent", "old", "", "", 401, false},
		{"as said", "old", hash("new"), "new", 204, false},
		{"as said, first", "", hash("new"), "new", 204, false},
		{"not as said, first", "", hash("new"), "other", 401, false},
		{"not as said", "old", hash("new"), "other", 401, false},
		{"none sent, one said", "", hash("new"), "", 401, false},
		{"none sent, none said", "old", hash(""), "", 204, false},
		{"one sent, none said", "", hash(""), "new", 401, false},
		{"capitals said", "", strings.ToUpper(hash("new")), "new", 401, false},
		{"token itself said", "", "new", "new", 401, false},
		{"no service, first", "", "", "new", 204, true},
		{"no service, wrong", "old", "", "new", 401, true},
		{"no service, equal", "old", "", "old", 204, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newInitRig(t)
			r.settings.Update(func(s *guest.Settings) { s.Token = guest.NewToken(row.set) })
			r.ids.id = guest.Identity{TokenHash: row.said}
			if row.noMetadata {
				r.ids.err = errors.New("no route")
			}
			before := r.settings.Load()
			w := r.want(row.want, fmt.Sprintf(`{"accessToken":%q,"defaultUser":"u"}`, row.sent))
			now := r.settings.Load()
			if row.want == 401 {
				checkError(t, w, 401, textUnauthorized)
				if now != before || len(r.restorer.calls) > 0 {
					t.Error("something was applied")
				}
				return
			}
			if row.sent != "" && !now.Token.Matches(row.sent) || row.sent == "" && now.Token.IsSet() || now.User != "u" {
				t.Errorf("settings %+v", now)
			}
		})
	}
}

// TestInitTimestampGuard checks that what is not newer changes nothing and
// still completes a restore.
func TestInitTimestampGuard(t *testing.T) {
	r := newInitRig(t)
	now := time.Now().UTC()
	body := func(at time.Time, user string) string {
		return fmt.Sprintf(`{"timestamp":%q,"defaultUser":%q}`, at.Format(time.RFC3339Nano), user)
	}
	for i, row := range []struct {
		at   time.Time
		want string // user afterwards
	}{
		{now, "0"},
		{now, "0"},                       // the same
		{now.Add(-time.Second), "0"},     // older
		{now.Add(time.Millisecond), "3"}, // newer
		{now, "3"},
	} {
		r.want(204, body(row.at, fmt.Sprint(i)))
		if got := r.settings.Load().User; got != row.want || len(r.restorer.calls) != i+1 {
			t.Errorf("call %d: user %s, want %s; %d restores", i, got, row.want, len(r.restorer.calls))
		}
	}
	r.want(204, `{"defaultUser":"untimed"}`)
	if got := r.settings.Load().User; got != "untimed" {
		t.Errorf("without a timestamp: user %s", got)
	}
	// After a restore the guard starts anew.
	r.restorer.pending = true
	r.want(204, body(now.Add(-time.Hour), "restored"))
	if got := r.settings.Load().User; got != "restored" {
		t.Errorf("after a restore: user %s", got)
	}
	r.want(204, body(now.Add(-2*time.Hour), "older"))
	if got := r.settings.Load().User; got != "restored" {
		t.Errorf("older than the first after the restore: user %s", got)
	}
}

// A change that failed does not make the next try stale.
func TestInitFailureIsNotNewest(t *testing.T) {
	r := newInitRig(t)
	if err := os.MkdirAll(filepath.Join(r.root, "etc/hosts"), 0o755); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"timestamp":%q,"hyperloopIP":"10.0.0.1"}`, time.Now().Format(time.RFC3339Nano))
	r.want(500, body)
	if err := os.Remove(filepath.Join(r.root, "etc/hosts")); err != nil {
		t.Fatal(err)
	}
	r.want(204, body)
	if len(r.restorer.calls) != 1 || r.settings.Load().Env["WRENN_EVENTS_ADDRESS"] == "" {
		t.Errorf("%d restores, %+v", len(r.restorer.calls), r.settings.Load())
	}
}

// TestInitFindsRestores checks what counts as evidence of a restore that
// nobody prepared.
func TestInitFindsRestores(t *testing.T) {
	r := newInitRig(t)
	r.ids.store = r.settings
	step := func(off time.Duration, instance string, want bool) {
		t.Helper()
		r.clock.off = off
		r.ids.id = guest.Identity{Instance: instance}
		before := len(r.restorer.calls)
		r.want(204, fmt.Sprintf(`{"timestamp":%q}`, time.Now().Format(time.RFC3339Nano)))
		if len(r.restorer.calls) != before+1 || r.restorer.calls[before] != want {
			t.Errorf("clock off by %v, instance %q: %v", off, instance, r.restorer.calls[before:])
		}
	}
	step(0, "", false)
	step(0, "one", false) // the first is news, not a change
	step(0, "one", false)
	step(-500*time.Millisecond, "one", false)
	step(-2*time.Second, "one", true)
	step(4*time.Second, "one", false) // ahead within bounds: not set
	step(time.Hour, "one", true)
	step(0, "", false)
	step(0, "two", true)
	if got := r.settings.Load().Identity.Instance; got != "two" {
		t.Errorf("identity %q", got)
	}
}

// TestInitIdentityLater checks that the identity is asked for until it is known,
// when it could not be read at once: it may be another one by now.
func TestInitIdentityLater(t *testing.T) {
	r := newInitRig(t)
	r.ids.id.Instance = "one"
	r.want(204, "")
	if r.ids.again != 0 || len(r.ids.published) != 1 {
		t.Errorf("asked again %d times after an answer, published %v", r.ids.again, r.ids.published)
	}
	r.ids.id.Instance = "" // a host fills the service in after a restore
	r.want(204, "")
	if r.ids.again != 1 {
		t.Error("not asked again after an answer that names nobody")
	}
	r.ids.err = errors.New("no answer")
	r.want(204, "")
	if r.ids.again != 2 || len(r.ids.published) != 1 {
		t.Errorf("asked again %d times, published %v", r.ids.again, r.ids.published)
	}
}

// TestInitSlowMetadata checks that a service that does not answer holds a host
// up for a moment only.
func TestInitSlowMetadata(t *testing.T) {
	r := newInitRig(t)
	r.ids.err = context.DeadlineExceeded
	began := time.Now()
	r.want(204, `{"accessToken":"tok"}`)
	r.want(204, `{"accessToken":"tok"}`)
	if took := time.Since(began); took > authorityWait+identityWait+2*time.Second {
		t.Errorf("took %v", took)
	}
}

const hangingMount = `{"accessToken":"hung","volumeMounts":[{"nfs_target":"10.0.0.1:/x","path":"/mnt/x"}]}`

// TestInitVanishedCallers checks that callers who go away, in their turn or
// before it, hold nobody up, and change nothing.
func TestInitVanishedCallers(t *testing.T) {
	leaktest.Check(t)
	r := newInitRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.post(ctx, hangingMount) })
	<-r.mounter.begun // it has the turn
	for range 5 {
		wg.Go(func() { r.post(ctx, `{"accessToken":"waited"}`) })
	}
	last := make(chan *httptest.ResponseRecorder)
	go func() { last <- r.post(t.Context(), `{"defaultUser":"last"}`) }()
	cancel()
	wg.Wait()
	select {
	case w := <-last:
		if w.Code != 204 {
			t.Errorf("status %d %s", w.Code, w.Body)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("held up by callers that are gone")
	}
	if s := r.settings.Load(); s.User != "last" || s.Token.Matches("hung") {
		t.Errorf("settings %+v", s)
	}
}

// TestInitDoesNotPileUp checks that calls beyond those that may wait are
// refused at once.
func TestInitDoesNotPileUp(t *testing.T) {
	leaktest.Check(t)
	r := newInitRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { r.post(ctx, hangingMount) })
	<-r.mounter.begun
	const calls = 3 * mostWaiting
	codes := make(chan int, calls)
	for range calls {
		wg.Go(func() { codes <- r.post(ctx, "").Code })
	}
	for range calls - mostWaiting { // the others wait
		if code := <-codes; code != 503 {
			t.Errorf("status %d", code)
		}
	}
}

// TestInitMountTimeout names what did not answer, with status 400.
func TestInitMountError(t *testing.T) {
	r := newInitRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	w := r.post(ctx, hangingMount)
	if w.Code != 400 || !strings.Contains(w.Body.String(), "10.0.0.1:/x on /mnt/x") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestInitBodyTooSlow: who does not send the body is not waited for.
func TestInitBodyTooSlow(t *testing.T) {
	s := newInitService(accessConfig(t, ""))
	s.patience = 50 * time.Millisecond
	server := httptest.NewServer(s)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /init HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{")
	must(t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	defer res.Body.Close()
	if res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %s", res.Status)
	}
}

func FuzzInit(f *testing.F) {
	for _, s := range []string{
		"", "null", `{"accessToken":"a","envVars":{"A":null},"timestamp":"2026-01-01T00:00:00Z","hyperloopIp":"::1"}`,
		`{"volumeMounts":[{"nfs_target":"h:/x","path":"/a"}],"caBundle":"-----BEGIN CERTIFICATE-----"}`, `{"envVars":{"A=":""}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/init", strings.NewReader(string(body)))
		_, change, err := readInit(httptest.NewRecorder(), r, time.Now())
		if err != nil {
			if !errors.Is(err, errBadInit) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		for name, value := range change.Env {
			if name == "" || strings.ContainsAny(name, "=\x00") || value != nil && strings.Contains(*value, "\x00") {
				t.Errorf("%q: variable %q", body, name)
			}
		}
	})
}
