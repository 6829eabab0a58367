package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/mmds"
)

// patience is how long an expected event may take on a busy machine.
const patience = 10 * time.Second

// askRig runs an identity that asks a fake service.
type askRig struct {
	*identity
	t     *testing.T
	asked chan chan mmds.Metadata // a call; closed to fail it
	root  string
}

func newAskRig(t *testing.T) *askRig {
	t.Helper()
	leaktest.Check(t)
	r := &askRig{t: t, asked: make(chan chan mmds.Metadata), root: t.TempDir()}
	settings := guest.NewStore(guest.Settings{Env: guest.SandboxEnv(true)})
	r.identity = newIdentity(r.fetchFake, settings, r.root, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

var errFake = errors.New("no answer")

func (r *askRig) fetchFake(ctx context.Context) (mmds.Metadata, error) {
	reply := make(chan mmds.Metadata)
	select {
	case r.asked <- reply:
	case <-ctx.Done():
		return mmds.Metadata{}, ctx.Err()
	}
	select {
	case m, ok := <-reply:
		if !ok {
			return m, errFake
		}
		return m, nil
	case <-ctx.Done():
		return mmds.Metadata{}, ctx.Err()
	}
}

// answer waits for a call and answers it, with an error for nil.
func (r *askRig) answer(m *mmds.Metadata) {
	r.t.Helper()
	select {
	case reply := <-r.asked:
		if m == nil {
			close(reply)
			return
		}
		reply <- *m
	case <-time.After(patience):
		r.t.Fatal("nobody asks")
	}
}

// quiet checks that nobody asks for a while.
func (r *askRig) quiet() {
	r.t.Helper()
	select {
	case reply := <-r.asked:
		close(reply)
		r.t.Error("asked")
	case <-time.After(4 * askEager):
	}
}

// known waits until the instance is published.
func (r *askRig) known(instance string) {
	r.t.Helper()
	for end := time.Now().Add(patience); r.settings.Load().Identity.Instance != instance; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("identity %+v, want %s", r.settings.Load().Identity, instance)
		}
	}
}

// TestIdentityAskedUntilKnown checks the whole: errors, nothing yet, the
// answer, and silence from then on.
func TestIdentityAskedUntilKnown(t *testing.T) {
	r := newAskRig(t)
	began := time.Now()
	r.answer(nil)
	r.answer(&mmds.Metadata{})
	r.answer(&mmds.Metadata{EnvID: "t", AccessTokenHash: "h"}) // of nobody yet
	r.answer(&mmds.Metadata{InstanceID: "i-1", EnvID: "t-1"})
	if took := time.Since(began); took < 3*askEager {
		t.Errorf("asked 4 times in %v", took)
	}
	r.known("i-1")
	if env := r.settings.Load().Env; env["WRENN_SANDBOX_ID"] != "i-1" || env["E2B_TEMPLATE_ID"] != "t-1" {
		t.Errorf("environment %v", env)
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(r.root, "run/wrenn/.WRENN_SANDBOX_ID"))
		if string(b) == "i-1" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("file %q, %v", b, err)
		}
	}
	r.quiet()
	r.Again()
	r.answer(nil)
	r.answer(&mmds.Metadata{InstanceID: "i-2"})
	r.known("i-2")
	r.quiet()
}

// TestIdentityRests checks that nothing is asked between Quiesce and Resume,
// and that a try under way is given up.
func TestIdentityRests(t *testing.T) {
	r := newAskRig(t)
	var slow chan mmds.Metadata
	select {
	case slow = <-r.asked:
	case <-time.After(patience):
		t.Fatal("nobody asks")
	}
	if err := r.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case slow <- mmds.Metadata{InstanceID: "before the snapshot"}:
		t.Error("the try goes on")
	default:
	}
	r.quiet()
	r.Resume()
	r.answer(&mmds.Metadata{InstanceID: "after"})
	r.known("after")
	for range 2 { // once known, there is nothing to stop or to go on with
		if err := r.Quiesce(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.Resume()
	}
	r.Resume()
	r.quiet()
}

// TestIdentityEndsAtRest checks that a daemon that is prepared can be stopped.
func TestIdentityEndsAtRest(t *testing.T) {
	r := newAskRig(t)
	if err := r.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
}
