// Package daemon puts the parts together: it opens them in order, runs them as
// a group and closes them in reverse.
//
// Run is the whole life of the daemon. The parts' goroutines belong to the
// group: when one part ends, or a signal asks for it, all are closed, newest
// first, within a budget of time.
package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/api"
	"github.com/wrenn/envd/internal/boot"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/metrics"
	"github.com/wrenn/envd/internal/mmds"
	"github.com/wrenn/envd/internal/ports"
	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/reap"
	"github.com/wrenn/envd/internal/server"
	"github.com/wrenn/envd/internal/snapshot"
	"github.com/wrenn/envd/internal/watch"
)

// Config is what the command line says.
type Config struct {
	Version string
	Commit  string
	Port    int
	// VsockPort and Unix are served as well; 0 and "" are none.
	VsockPort uint
	Unix      string
	// Firecracker: inside a microVM, with a host in front.
	Firecracker bool
	// Command is run through the shell at start-up; "" for none.
	Command    string
	CgroupRoot string
	// ForwardIP is where loopback ports become reachable; the zero Addr for
	// nowhere.
	ForwardIP netip.Addr
	// Clock is the wall clock; nil means the machine's.
	Clock guest.Clock
	// UserAccess limits what requests do to files to what the user may do.
	UserAccess bool
	// Output limits what is kept of processes' output.
	Output process.Config
	Log    *slog.Logger
}

const (
	// partGrace is what each part gets to close in order: processes between
	// SIGTERM and SIGKILL, and then requests to end.
	partGrace = 2 * time.Second
	// quietSpell without an end of a process is when memory is given back.
	quietSpell = 3 * time.Second
)

// Run serves until a signal or ctx ends it. As the init of a machine, which is
// PID 1 inside Firecracker, it prepares the machine first and takes it down in
// the end: then it does not return.
func Run(ctx context.Context, cfg Config) (err error) {
	log := cfg.Log
	end := &end{isInit: cfg.Firecracker && os.Getpid() == 1}
	ctx, end.cancel = context.WithCancel(ctx)
	defer end.cancel()
	if end.isInit {
		defer end.down(log, &err)
		defer end.onSignal()()
		boot.Up(log)
	}
	unix.Umask(0o022)

	// What a request does not need is prepared when the server runs already.
	var g group
	defer g.close()
	reaper, err := reap.Open()
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	g.add("reaper", reaper.Run, func(context.Context) error { return reaper.Close() })
	ground := newGround()
	runGround := func(ctx context.Context) error { return ground.run(ctx, cfg.Firecracker, log) }
	g.add("cgroups", runGround, func(context.Context) error { return ground.close() })

	settings := guest.NewStore(guest.Settings{User: "root", Env: guest.SandboxEnv(cfg.Firecracker)})
	accounts := guest.NewAccounts("/etc/passwd", "/etc/group")

	coordinator := snapshot.New(snapshotConfig(ground, log))
	trim := newTrimmer(quietSpell)
	coordinator.Register(trim)
	cfg.Output.Gate = coordinator
	cfg.Output.Ended = func(p *process.Process) {
		trim.touch()
		log.Debug("process ended", "pid", p.Pid(), "status", p.Exit().String(), "output", p.Written())
	}
	var forwarder *ports.Forwarder
	cfg.Output.Started = func() {
		if forwarder != nil {
			forwarder.Touch()
		}
	}
	table, err := process.OpenTable(cfg.Output, reaper, ground.hierarchy)
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	coordinator.Register(table)

	if forwarder, err = openPorts(cfg, table); err != nil {
		table.Close(ctx) // nothing runs in it yet; the group does not have it
		return fmt.Errorf("start daemon: %w", err)
	}

	watchers := watch.NewSet[*api.Watched]()
	coordinator.Register(paused{watchers})
	var srv *server.Server
	usage := new(metrics.Usage)
	wire := api.Config{
		Usage: usage, Figures: func(t *metrics.Text) { figures(t, srv, reaper) },
		Version: cfg.Version, Settings: settings, Accounts: accounts, Processes: table, Watchers: watchers, Log: log,
		UserAccess: cfg.UserAccess, Cork: server.Cork, Ports: forwarder, Snapshot: coordinator, Restorer: coordinator,
		Machine: guest.NewMachine(guest.MachineConfig{
			Settings: settings, Clock: cfg.clock(), Mounter: mounter{reaper}, Log: log, Root: "/",
		}),
	}
	if cfg.Firecracker {
		who := newIdentity(mmds.New(mmds.Address).Fetch, settings, "/", log)
		g.add("identity", who.run, nil)
		coordinator.Register(who)
		wire.FromGuest, wire.Identities = server.FromGuest, who
	}
	if end.isInit {
		wire.Shutdown = end.begin
	}
	handler := api.New(wire)
	more, err := openListeners(cfg, end.isInit, log)
	if err == nil {
		srv, err = server.Open(net.JoinHostPort("", strconv.Itoa(cfg.Port)), handler, log, more...)
	}
	if err != nil {
		if forwarder != nil {
			_ = forwarder.Close() // it has not run
		}
		table.Close(ctx) // nothing runs in it yet; the group does not have it
		return fmt.Errorf("start daemon: %w", err)
	}
	coordinator.Serve(srv)
	// Closed in reverse: first processes, so that readers get their ends.
	g.add("memory", trim.run, nil)
	g.add("server", srv.Run, func(ctx context.Context) error { return srv.Close(ctx, process.ErrClosed) })
	if forwarder != nil {
		coordinator.Register(forwarder)
		g.add("ports", forwarder.Run, func(context.Context) error { return forwarder.Close() })
	}
	g.add("watchers", nil, func(context.Context) error { return watchers.Close() })
	g.add("processes", nil, func(context.Context) error { return end.processes(table) })
	g.add("snapshot", nil, func(context.Context) error { coordinator.Close(); return nil })
	g.start(ctx, "server")

	ground.await()
	if !end.isInit {
		defer end.onSignal()()
	}
	defer forgetSignals()()
	g.start(ctx)
	if err := guest.WriteSandbox("/", cfg.Firecracker); err != nil {
		log.Warn("files do not say whether this is a sandbox; the environment does", "error", err)
	}
	ground.prepare(cfg.CgroupRoot, log)
	log.Info("envd is ready", "version", cfg.Version, "commit", cfg.Commit, "address", srv.Addr().String(), "firecracker", cfg.Firecracker)
	if cfg.Command != "" {
		run := func() error { return runCommand(table, settings, accounts, cfg.Command) }
		if err := startCommand(ctx, coordinator, run); err != nil {
			log.Error("start-up command did not start", "error", err)
		}
	}
	handler.Warm()
	beginUsage(usage)
	return g.wait(ctx, log)
}

func (cfg Config) clock() guest.Clock {
	if cfg.Clock == nil {
		return guest.SystemClock{}
	}
	return cfg.Clock
}
