package life

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/leaktest"
)

// snapshotState asks for the state that the request finds.
func snapshotState(t *testing.T, c *caller) string {
	t.Helper()
	var status struct{ State string }
	if err := json.Unmarshal([]byte(c.must(t, 200, "GET", "/snapshot", "", "")), &status); err != nil {
		t.Fatal(err)
	}
	return status.State
}

// startTrue starts a program with no output, and answers why it did not.
func startTrue(t *testing.T, c *caller) error {
	t.Helper()
	cmd, err := client.New(c.base, client.Options{HTTP: c.http}).Start(t.Context(), &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "true"},
	})
	if err != nil {
		return err
	}
	for {
		e, err := cmd.Next(t.Context())
		if err != nil || e.GetEnd() != nil {
			return errors.Join(err, cmd.Close())
		}
	}
}

// TestGuestChangesNothingWhilePrepared checks that only the host's side brings
// the guest back: what runs inside, a container included, may look and may not
// start, and ports stay shut.
func TestGuestChangesNothingWhilePrepared(t *testing.T) {
	w := newWorld(t)
	leaktest.Check(t)
	runDaemon(t, &clock{})
	host := newCaller(t, "host", w.host, true, guest4)
	serveInGuest(t, "127.0.0.1:8099", "hello")
	await(t, "the port", func() bool { return fetch(w.host, forward+":8099") == "hello" })
	host.must(t, 204, "POST", "/snapshot/prepare", "", "")
	for _, inside := range []*caller{
		newCaller(t, "guest on loopback", nil, false, "127.0.0.1"),
		newCaller(t, "guest on its own address", nil, false, guest4),
		newCaller(t, "container", w.container, false, bridge4),
	} {
		inside.must(t, 200, "GET", "/health", "", "")
		if s := snapshotState(t, inside); s != "prepared" {
			t.Errorf("%s finds it %s", inside.name, s)
		}
		if err := startTrue(t, inside); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("%s starts: %v", inside.name, err)
		}
		inside.must(t, 403, "POST", "/snapshot/prepare", "", "")
	}
	if got := fetch(w.host, forward+":8099"); got != "" {
		t.Errorf("the port answers %q", got)
	}
	// A start is as good as any request.
	if err := startTrue(t, host); err != nil {
		t.Error(err)
	}
	await(t, "the port to come back", func() bool { return fetch(w.host, forward+":8099") == "hello" })
	if err := startTrue(t, newCaller(t, "guest", nil, false, "127.0.0.1")); err != nil {
		t.Error(err)
	}
}

// TestUnannouncedRestore checks freezes that no prepare came before: the clock
// tells, or the identity does; and that an init which meets neither is none.
func TestUnannouncedRestore(t *testing.T) {
	w := newWorld(t)
	leaktest.Check(t)
	guestClock := &clock{}
	w.be("sandbox-1", "template", "token")
	runDaemon(t, guestClock)
	host := newCaller(t, "host", w.host, true, guest4)
	initNow := func() {
		t.Helper()
		host.must(t, 204, "POST", "/init", "", `{"accessToken":"token","timestamp":"`+time.Now().Format(time.RFC3339Nano)+`"}`)
	}
	initNow()
	before := generation(t, host, "token")
	for _, step := range []struct {
		name     string
		change   func()
		restored bool
	}{
		{"a clock that is a little off", func() { guestClock.shift(-900 * time.Millisecond) }, false},
		{"a clock that is behind", func() { guestClock.shift(-1100 * time.Millisecond) }, true},
		{"a clock that is far ahead", func() { guestClock.shift(time.Hour) }, true},
		{"another sandbox", func() { w.be("sandbox-2", "template", "token") }, true},
		{"the same sandbox", func() {}, false},
	} {
		user := newCaller(t, "user", w.host, true, guest4)
		sleeper, err := client.New(user.base, client.Options{HTTP: user.http, Token: "token"}).Process.Start(t.Context(),
			connect.NewRequest(&pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "sleep", Args: []string{"1000"}}}))
		if err != nil || !sleeper.Receive() {
			t.Fatal(err, sleeper.Err())
		}
		pid := sleeper.Msg().GetEvent().GetStart().GetPid()
		step.change()
		initNow()
		after := generation(t, host, "token")
		switch {
		case step.restored:
			if after != before+1 {
				t.Errorf("%s: generation %d, then %d", step.name, before, after)
			}
			if sleeper.Receive() || connect.CodeOf(sleeper.Err()) != connect.CodeAborted {
				t.Errorf("%s: the stream ended with %v", step.name, sleeper.Err())
			}
		case after != before:
			t.Errorf("%s: generation %d, then %d", step.name, before, after)
		}
		before = after
		// What was not aborted gets its end.
		if _, err := client.New(host.base, client.Options{HTTP: host.http, Token: "token"}).Process.SendSignal(t.Context(),
			connect.NewRequest(&pb.SendSignalRequest{
				Process: &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: pid}}, Signal: pb.Signal_SIGNAL_SIGKILL,
			})); err != nil {
			t.Error(err)
		}
		if !step.restored && (!sleeper.Receive() || sleeper.Msg().GetEvent().GetEnd() == nil) {
			t.Errorf("%s: the stream ended with %v", step.name, sleeper.Err())
		}
		_ = sleeper.Close()
	}
}

// shift makes the clock be off by that much.
func (c *clock) shift(off time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = off
}
