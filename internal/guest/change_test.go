package guest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeClock runs with the machine's, off by some time.
type fakeClock struct {
	off  time.Duration
	fail error
	sets int
}

func (c *fakeClock) Now() time.Time { return time.Now().Add(c.off) }

func (c *fakeClock) Set(t time.Time) error {
	if c.fail != nil {
		return c.fail
	}
	c.sets++
	c.off = time.Until(t).Round(time.Millisecond)
	return nil
}

func TestAdjust(t *testing.T) {
	for off, set := range map[time.Duration]bool{
		0:                      false,
		-49 * time.Millisecond: false, -60 * time.Millisecond: true, -time.Hour: true, -100 * 365 * 24 * time.Hour: true,
		4900 * time.Millisecond: false, 5100 * time.Millisecond: true, time.Hour: true,
	} {
		c := &fakeClock{off: off}
		by, err := adjust(c, time.Now())
		if err != nil || (c.sets == 1) != set {
			t.Errorf("off by %v: set %d times, %v", off, c.sets, err)
		}
		if want := -off; set && (by-want).Abs() > time.Second || !set && by != 0 {
			t.Errorf("off by %v: set ahead by %v", off, by)
		}
	}
	c := &fakeClock{off: time.Hour, fail: unix.EPERM}
	if by, err := adjust(c, time.Now()); !errors.Is(err, unix.EPERM) || by != 0 {
		t.Errorf("refused: by %v, %v", by, err)
	}
}

// TestSystemClock sets the machine's clock to what it is anyway, or is refused.
func TestSystemClock(t *testing.T) {
	var c SystemClock
	if off := time.Until(c.Now()).Abs(); off > time.Second {
		t.Errorf("off by %v", off)
	}
	if err := c.Set(time.Unix(-1, 0)); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		t.Errorf("set to before 1970: %v", err)
	}
}

// machine makes one over a root directory of its own.
func machine(t *testing.T) (*Machine, *fakeClock, *fakeMounter, *bytes.Buffer) {
	t.Helper()
	clock, mounter, log := &fakeClock{}, &fakeMounter{there: make(map[string]string)}, &bytes.Buffer{}
	return NewMachine(MachineConfig{
		Settings: NewStore(Settings{User: "root", Env: map[string]string{"OLD": "1", "GONE": "1"}}),
		Clock:    clock, Mounter: mounter, Root: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}), clock, mounter, log
}

func ptr(s string) *string { return &s }

func TestApply(t *testing.T) {
	m, clock, _, log := machine(t)
	clock.off = -2 * time.Hour
	by, err := m.Apply(t.Context(), &Change{
		Token: NewToken(tokenText), User: "user", Workdir: "/work",
		Env:  map[string]*string{"NEW": ptr("2"), "OLD": ptr(""), "GONE": nil, "NEVER": nil},
		Time: time.Now(), Received: time.Now(), Events: netip.MustParseAddr("10.0.0.1"),
		Certificates: bundle(t, certificate(t, "one")),
	})
	if err != nil || by.Round(time.Minute) != 2*time.Hour {
		t.Fatalf("by %v, %v", by, err)
	}
	s := m.Settings.Load()
	want := map[string]string{"NEW": "2", "OLD": "", "WRENN_EVENTS_ADDRESS": "http://10.0.0.1"}
	if s.User != "user" || s.Workdir != "/work" || !s.Token.Matches(tokenText) || !maps.Equal(s.Env, want) {
		t.Errorf("settings %+v", s)
	}
	check(t, filepath.Join(m.Root, "etc/hosts"), "10.0.0.1\tevents.wrenn.local\n")
	if _, err := os.Stat(filepath.Join(m.Root, debianBundle)); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "ahead_by=") || strings.Contains(log.String(), tokenText) {
		t.Errorf("log: %s", log)
	}

	// Nothing but the token: cleared when it is not named.
	if by, err := m.Apply(t.Context(), &Change{}); err != nil || by != 0 {
		t.Errorf("by %v, %v", by, err)
	}
	if now := m.Settings.Load(); now.Token.IsSet() || now.User != "user" || now.Workdir != "/work" || !maps.Equal(now.Env, want) {
		t.Errorf("settings %+v", now)
	}
}

func TestApplyEventsIPv6(t *testing.T) {
	m, _, _, _ := machine(t)
	if _, err := m.Apply(t.Context(), &Change{Events: netip.MustParseAddr("fd00::1")}); err != nil {
		t.Fatal(err)
	}
	if got := m.Settings.Load().Env["WRENN_EVENTS_ADDRESS"]; got != "http://[fd00::1]" {
		t.Errorf("address %q", got)
	}
	check(t, filepath.Join(m.Root, "etc/hosts"), "fd00::1\tevents.wrenn.local\n")
}

// What waited for its turn is not late by that.
func TestApplyCountsTheWait(t *testing.T) {
	m, clock, _, _ := machine(t)
	waited := 10 * time.Second
	if by, err := m.Apply(t.Context(), &Change{Time: time.Now().Add(-waited), Received: time.Now().Add(-waited)}); by != 0 || err != nil || clock.sets != 0 {
		t.Errorf("by %v, %v", by, err)
	}
}

// A container must not set the clock; everything else is done.
func TestApplyClockRefused(t *testing.T) {
	m, clock, _, log := machine(t)
	clock.fail = unix.EPERM
	by, err := m.Apply(t.Context(), &Change{User: "user", Time: time.Now().Add(time.Hour), Received: time.Now()})
	if by != 0 || err != nil || m.Settings.Load().User != "user" || !strings.Contains(log.String(), "WARN") {
		t.Errorf("by %v, %v, %s", by, err, log)
	}
}

// TestApplyAllOrNothing checks that a step that fails leaves the settings.
func TestApplyAllOrNothing(t *testing.T) {
	for name, breakIt := range map[string]func(m *Machine, f *fakeMounter) error{
		"hosts": func(m *Machine, _ *fakeMounter) error {
			return os.MkdirAll(filepath.Join(m.Root, "etc/hosts/x"), 0o755)
		},
		"certificates": func(m *Machine, _ *fakeMounter) error {
			return os.MkdirAll(filepath.Join(m.Root, debianBundle, "x"), 0o755)
		},
		"mount": func(_ *Machine, f *fakeMounter) error { f.fail = "10.0.0.9:/b"; return nil },
	} {
		m, clock, mounter, _ := machine(t)
		if err := breakIt(m, mounter); err != nil {
			t.Fatal(err)
		}
		before := m.Settings.Load()
		_, err := m.Apply(t.Context(), &Change{
			Token: NewToken(tokenText), User: "user", Env: map[string]*string{"A": ptr("1")},
			Time: time.Now().Add(time.Hour), Received: time.Now(), Events: netip.MustParseAddr("10.0.0.1"),
			Certificates: bundle(t, certificate(t, "one")),
			Mounts:       []Mount{mount(t, "10.0.0.9:/a", "/mnt/a"), mount(t, "10.0.0.9:/b", "/mnt/b")},
		})
		if err == nil || m.Settings.Load() != before || clock.sets != 0 {
			t.Errorf("%s: %v, settings changed %v, clock set %d times", name, err, m.Settings.Load() != before, clock.sets)
		}
		if name == "mount" && len(mounter.there) > 0 {
			t.Errorf("mounts left: %v", mounter.there)
		}
	}
}

// fakeMounter keeps a table of mounts.
type fakeMounter struct {
	fail, hang string // sources

	mu    sync.Mutex
	there map[string]string // source by path
	calls []string
}

func (f *fakeMounter) Mount(ctx context.Context, m Mount, addr netip.Addr, keep bool) error {
	if m.Source == f.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.Source == f.fail {
		return errors.New("refused")
	}
	word := "mount "
	if keep {
		word = "keep "
	}
	f.calls = append(f.calls, word+m.Source+" at "+addr.String())
	f.there[m.Path] = m.Source
	return nil
}

func (f *fakeMounter) Unmount(_ context.Context, m Mount) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "unmount "+m.Source)
	delete(f.there, m.Path)
	return nil
}

func mount(t *testing.T, source, path string) Mount {
	t.Helper()
	m, err := ParseMount(source, path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestParseMount(t *testing.T) {
	for _, row := range []struct{ source, path, host, clean string }{
		{"10.0.0.1:/export", "/mnt", "10.0.0.1", "/mnt"},
		{"host.example:/a/b c", "/mnt//x/../y/", "host.example", "/mnt/y"},
		{"[fd00::1]:/export", "/mnt", "fd00::1", "/mnt"},
		{"[::]:/:/", "/mnt", "::", "/mnt"},
		{"10.0.0.1:/", "/mnt", "10.0.0.1", "/mnt"},
	} {
		if m, err := ParseMount(row.source, row.path); err != nil || m != (Mount{row.source, row.host, row.clean}) {
			t.Errorf("%q on %q: %+v, %v", row.source, row.path, m, err)
		}
	}
	for _, row := range [][2]string{
		{"", "/mnt"},
		{"10.0.0.1", "/mnt"},
		{"10.0.0.1:export", "/mnt"},
		{":/export", "/mnt"},
		{"a,b:/export", "/mnt"},
		{"fd00::1:/export", "/mnt"},
		{"[fd00::1:/export", "/mnt"},
		{"[10.0.0.1]:/x", "/mnt"},
		{"[fd00::1]/export", "/mnt"},
		{"[fe80::1%lo]:/x", "/mnt"},
		{"a/b:/x", "/mnt"},
		{"a:/x\x00", "/mnt"},
		{"10.0.0.1:/x", ""},
		{"10.0.0.1:/x", "mnt"},
		{"10.0.0.1:/x", "/"},
		{"10.0.0.1:/x", "/mnt/.."},
		{"10.0.0.1:/x", "/m\x00"},
	} {
		if m, err := ParseMount(row[0], row[1]); !errors.Is(err, ErrMountTarget) {
			t.Errorf("%q on %q: %+v, %v", row[0], row[1], m, err)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add("10.0.0.1:/export", "/mnt")
	f.Add("[fd00::1]:/export", "/mnt/x/..")
	f.Fuzz(func(t *testing.T, source, path string) {
		m, err := ParseMount(source, path)
		if err != nil {
			return
		}
		if !filepath.IsAbs(m.Path) || m.Path == "/" || m.Host == "" || strings.ContainsAny(m.Host, ",/ ") || strings.Contains(m.Path+m.Source, "\x00") {
			t.Errorf("%q on %q: %+v", source, path, m)
		}
	})
}

func TestMountOptions(t *testing.T) {
	m := mount(t, "10.0.0.1:/x", "/mnt")
	for addr, want := range map[string]string{
		"10.0.0.1": "addr=10.0.0.1,vers=3,proto=tcp,port=2049,mountvers=3,mountproto=tcp,mountport=2049,nolock,noacl",
		"fd00::1":  "addr=fd00::1,vers=3,proto=tcp6,port=2049,mountvers=3,mountproto=tcp6,mountport=2049,nolock,noacl",
	} {
		if got := m.Options(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

// TestMountsLifecycle checks what happens to a mount that is there: nothing is
// mounted for real here, so each has to be looked at by the mounter.
func TestMountsLifecycle(t *testing.T) {
	m, _, f, _ := machine(t)
	for _, row := range []struct {
		source, lifecycle string
		want              string
	}{
		{"10.0.0.1:/a", "one", "mount 10.0.0.1:/a at 10.0.0.1"},
		{"10.0.0.1:/a", "one", "keep 10.0.0.1:/a at 10.0.0.1"},
		{"10.0.0.1:/a", "two", "mount 10.0.0.1:/a at 10.0.0.1"},
		{"10.0.0.1:/b", "two", "mount 10.0.0.1:/b at 10.0.0.1"},
		{"10.0.0.1:/b", "two", "keep 10.0.0.1:/b at 10.0.0.1"},
		{"localhost:/b", "", "mount localhost:/b at "},
	} {
		f.calls = nil
		if _, err := m.Apply(t.Context(), &Change{Mounts: []Mount{mount(t, row.source, "/mnt/v")}, Lifecycle: row.lifecycle}); err != nil {
			t.Fatal(err)
		}
		if len(f.calls) != 1 || !strings.HasPrefix(f.calls[0], row.want) {
			t.Errorf("%s of %q: %q, want %q", row.source, row.lifecycle, f.calls, row.want)
		}
	}
	// No mounts wanted leaves those that are there.
	if _, err := m.Apply(t.Context(), &Change{Lifecycle: "three"}); err != nil || len(f.there) != 1 {
		t.Errorf("%v, there is %v", err, f.there)
	}
}

// TestMountsFailTogether checks that one that fails takes back the others of
// its call, but not those of earlier ones.
func TestMountsFailTogether(t *testing.T) {
	m, _, f, _ := machine(t)
	a, b, c := mount(t, "h1.invalid:/a", "/mnt/a"), mount(t, "10.0.0.1:/b", "/mnt/b"), mount(t, "10.0.0.1:/c", "/mnt/c")
	if _, err := m.Apply(t.Context(), &Change{Mounts: []Mount{b}}); err != nil {
		t.Fatal(err)
	}
	f.fail = "10.0.0.1:/d"
	_, err := m.Apply(t.Context(), &Change{Mounts: []Mount{b, c, mount(t, f.fail, "/mnt/d")}})
	if !errors.Is(err, ErrMount) || !strings.Contains(err.Error(), "10.0.0.1:/d on /mnt/d: refused") {
		t.Errorf("error %v", err)
	}
	if want := map[string]string{"/mnt/b": "10.0.0.1:/b"}; !maps.Equal(f.there, want) {
		t.Errorf("there is %v", f.there)
	}
	if _, err := m.Apply(t.Context(), &Change{Mounts: []Mount{a}}); !errors.Is(err, ErrMount) || !strings.Contains(err.Error(), "h1.invalid:/a") {
		t.Errorf("of an unknown host: %v", err)
	}
}

// TestMountsNested checks that what lies in another comes after it.
func TestMountsNested(t *testing.T) {
	m, _, f, _ := machine(t)
	list := []Mount{mount(t, "10.0.0.1:/3", "/m/a/b/c"), mount(t, "10.0.0.1:/2", "/m/a/b"), mount(t, "10.0.0.1:/1", "/m/a"), mount(t, "10.0.0.1:/0", "/m/ab")}
	if _, err := m.Apply(t.Context(), &Change{Mounts: list}); err != nil {
		t.Fatal(err)
	}
	at := func(n string) int { return slices.Index(f.calls, "mount 10.0.0.1:/"+n+" at 10.0.0.1") }
	if len(f.calls) != 4 || at("1") > at("2") || at("2") > at("3") {
		t.Errorf("order %q", f.calls)
	}
}

// TestMountsGiveUpWithTheCaller checks that a server which does not answer
// holds nobody up whose caller is gone.
func TestMountsGiveUpWithTheCaller(t *testing.T) {
	m, _, f, _ := machine(t)
	f.hang = "10.0.0.1:/a"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := m.Apply(ctx, &Change{Mounts: []Mount{mount(t, f.hang, "/mnt/a")}})
	if !errors.Is(err, ErrMount) || !strings.Contains(err.Error(), "no answer") || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestIdentify(t *testing.T) {
	st := NewStore(Settings{Env: SandboxEnv(true)})
	st.Update(func(s *Settings) { s.Identify(Identity{Instance: "i1", Template: "t1", TokenHash: "h"}) })
	want := map[string]string{
		"WRENN_SANDBOX": "true", "WRENN_SANDBOX_ID": "i1", "WRENN_TEMPLATE_ID": "t1",
		"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "i1", "E2B_TEMPLATE_ID": "t1",
	}
	if s := st.Load(); !maps.Equal(s.Env, want) || s.Identity.TokenHash != "h" {
		t.Errorf("%+v", s)
	}
}

func TestIdentityFiles(t *testing.T) {
	root := t.TempDir()
	for range 2 {
		if err := errors.Join(WriteSandbox(root, false), WriteIdentity(root, Identity{Instance: "i0"})); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(WriteSandbox(root, true), WriteIdentity(root, Identity{Instance: "i1", Template: "t1"})); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		"run/wrenn/.WRENN_SANDBOX": "true", "run/wrenn/.WRENN_SANDBOX_ID": "i1", "run/wrenn/.WRENN_TEMPLATE_ID": "t1",
		"run/e2b/.E2B_SANDBOX": "true", "run/e2b/.E2B_SANDBOX_ID": "i1", "run/e2b/.E2B_TEMPLATE_ID": "t1",
	}
	if got := tree(t, root); !maps.Equal(got, want) {
		t.Errorf("files %q", got)
	}
	for name := range want {
		if fi, err := os.Stat(filepath.Join(root, name)); err != nil || fi.Mode() != 0o644 {
			t.Errorf("%v, %v", fi, err)
		}
	}
}
