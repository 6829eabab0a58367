package daemon

import (
	"log/slog"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/snapshot"
)

// TestStartCommandAfterPrepare checks that a host which prepares a guest before
// its start-up command has begun does not lose the command.
func TestStartCommandAfterPrepare(t *testing.T) {
	leaktest.Check(t)
	c := snapshot.New(snapshot.Config{Sync: func() error { return nil }, Shrink: func() {}, Log: slog.New(slog.DiscardHandler)})
	c.Prepare(snapshot.Freeze{})
	refused, started := make(chan struct{}), make(chan error, 1)
	tries := 0
	go func() {
		started <- startCommand(t.Context(), c, func() error {
			leave, err := c.Enter()
			if tries++; tries == 1 {
				close(refused)
			}
			if err == nil {
				leave()
			}
			return err
		})
	}()
	<-refused
	select {
	case err := <-started:
		t.Fatalf("started while prepared: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	c.Return(true)
	if err := <-started; err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
}
