package daemon

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/boot"
	"github.com/wrenn/envd/internal/process"
)

// ending are the signals that end the daemon. It handles them all, since the
// kernel drops for PID 1 what has no handler.
var ending = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT}

// end is how the daemon is told to end: by a signal, or by a host's request. As
// init that ends the machine as well.
type end struct {
	cancel context.CancelFunc // of the context that the daemon runs under
	isInit bool
	// started is when the daemon did, after the kernel.
	started time.Duration

	mu      sync.Mutex
	begun   bool          // guarded by mu, as is all below; the first word counts
	grace   time.Duration // between SIGTERM and SIGKILL
	restart bool          // the machine, rather than to power it off
}

// begin ends the daemon: processes get grace between SIGTERM and SIGKILL.
func (e *end) begin(grace time.Duration, restart bool) {
	e.mu.Lock()
	if !e.begun {
		e.begun, e.grace, e.restart = true, grace, restart
	}
	e.mu.Unlock()
	e.cancel()
}

// processes ends those of the table and, as init, all others.
func (e *end) processes(table *process.Table) error {
	deadline := e.deadline()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if !e.isInit {
		table.Close(ctx)
		return nil
	}
	boot.Terminate()
	table.Close(ctx)
	return boot.Kill(deadline)
}

// deadline is until when processes may end by themselves. Without a word, such
// as when a part of the daemon fails, it is the usual one.
func (e *end) deadline() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.begun {
		return time.Now().Add(partGrace)
	}
	return time.Now().Add(e.grace)
}

// onSignal begins the end when a signal asks for it. Ctrl-Alt-Del, which comes
// to init as SIGINT, is a restart; hosts without a power button press it.
func (e *end) onSignal() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, ending...)
	if e.isInit {
		signal.Notify(signals, unix.SIGPWR)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case sig := <-signals:
			e.begin(partGrace, e.isInit && sig == unix.SIGINT)
		case <-quit:
		}
	}()
	return func() { signal.Stop(signals); close(quit); <-done }
}

// down ends the machine that the daemon was init of, whatever became of the
// daemon: its error, or a panic on the way. It does not return.
func (e *end) down(log *slog.Logger, err *error) {
	if v := recover(); v != nil {
		log.Error("the daemon panicked", "panic", v, "stack", string(debug.Stack()))
	} else if *err != nil {
		log.Error("the daemon has ended", "error", *err)
	}
	e.mu.Lock()
	restart := e.restart
	e.mu.Unlock()
	boot.Down(restart, log)
}
