package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/linux"
)

// ground is what commands stand on: a process that they inherit nothing wrong
// from, and cgroups. It is prepared when the server answers already; a command
// that comes earlier hurries it and waits.
type ground struct {
	wanted chan struct{}     // closed when a command waits
	want   func()            // closes it
	ready  chan struct{}     // closed when prepared
	groups *cgroup.Hierarchy // nil where cgroup v2 is not usable; valid once ready
}

func newGround() *ground {
	g := &ground{wanted: make(chan struct{}), ready: make(chan struct{})}
	g.want = sync.OnceFunc(func() { close(g.wanted) })
	return g
}

// firstAnswers is how long the server has the processors for itself: who waits
// for the port to open asks /health first, and a small machine has one.
const firstAnswers = 5 * time.Millisecond

// await returns once it is time to prepare.
func (g *ground) await() {
	timer := time.NewTimer(firstAnswers)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.wanted:
	}
}

// prepare does it, once. The signals that this process handles are subscribed
// to before.
func (g *ground) prepare(root string, log *slog.Logger) {
	defer close(g.ready)
	if err := prepareSelf(); err != nil {
		log.Warn("children may inherit descriptors or ignored signals", "error", err)
	}
	if err := protectSelf(); err != nil {
		log.Info("the daemon may be killed when memory runs out", "reason", err)
	}
	if err := calmMonitor(); err != nil {
		log.Debug("commands take longer", "reason", err)
	}
	groups, err := cgroup.Open(root)
	if err != nil {
		log.Info("commands are tracked without cgroups: what sheds its parent, session and environment escapes a kill", "reason", err)
		return
	}
	g.groups = groups
	log.Info("commands are tracked by cgroup", "root", root, "controllers", groups.Controllers())
}

// hierarchy waits for prepare; it is the table's Groups.
func (g *ground) hierarchy() *cgroup.Hierarchy {
	g.want()
	<-g.ready
	return g.groups
}

// trim removes the groups that were made ahead.
func (g *ground) trim() {
	select {
	case <-g.ready:
		if g.groups != nil {
			g.groups.Trim()
		}
	default: // nothing has been started
	}
}

// run runs the hierarchy, if there is one. With force the daemon joins it
// wherever it was started.
func (g *ground) run(ctx context.Context, force bool, log *slog.Logger) error {
	select {
	case <-g.ready:
	case <-ctx.Done():
		return nil
	}
	if g.groups == nil {
		<-ctx.Done()
		return nil
	}
	if err := g.groups.Join(force); err != nil {
		log.Info("commands may use up what the daemon needs", "reason", err)
	}
	return g.groups.Run(ctx)
}

// close gives the hierarchy up. prepare has returned, or will not be called.
func (g *ground) close() error {
	if g.groups == nil {
		return nil
	}
	return g.groups.Close()
}

// ignored are handled and forgotten. SIG_IGN would do for the daemon, but
// children would inherit it.
var ignored = []os.Signal{unix.SIGPIPE, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM}

// crashing end a Go program with its stacks when somebody sends them. Faults of
// its own, which the kernel tells by the same signals, do so all the same.
// SIGABRT is left for whoever wants just that.
var crashing = []os.Signal{
	unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV,
	unix.SIGSTKFLT, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGSYS,
}

// forgetSignals handles those until stop is called.
func forgetSignals(those ...os.Signal) (stop func()) {
	drop := make(chan os.Signal, 1)
	signal.Notify(drop, those...)
	return func() { signal.Stop(drop) }
}

// prepareSelf makes the daemon's process what its children need: nothing of how
// it was started itself may reach them.
func prepareSelf() error {
	return errors.Join(linux.CloseOnExecFrom(3), linux.DefaultIgnoredSignals())
}

// protectSelf makes the daemon the last to be killed when memory runs out. The
// machine's init never is. It takes CAP_SYS_RESOURCE.
func protectSelf() error {
	if linux.MachineInit() {
		return nil
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		return fmt.Errorf("protect daemon from the OOM killer: %w", err)
	}
	return nil
}
