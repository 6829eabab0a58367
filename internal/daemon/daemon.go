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
	"slices"
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
	end := &end{isInit: cfg.Firecracker && os.Getpid() == 1}
	ctx, end.cancel = context.WithCancel(ctx)
	defer end.cancel()
	end.started = boot.Uptime()
	if end.isInit {
		defer end.down(cfg.Log, &err)
		// Both for good. Go ends a program by a signal that it has no use for,
		// and the kernel panics without its init, be it in its last second.
		forgetSignals(slices.Concat(ignored, crashing)...)
		end.onSignal()
		boot.Up(cfg.Log)
	}
	unix.Umask(0o022)
	d := &daemon{Config: cfg, end: end}
	defer d.group.close()
	if err := d.open(); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	return d.serve(ctx)
}

// daemon is the parts, which open makes. The group closes them.
type daemon struct {
	Config
	end   *end
	group group

	reaper      *reap.Reaper
	ground      *ground
	settings    *guest.Store
	accounts    *guest.Accounts
	coordinator *snapshot.Coordinator
	trim        *trimmer
	forwarder   *ports.Forwarder // nil where the kernel does not tell of ports
	table       *process.Table
	usage       *metrics.Usage
	handler     *api.Handler
	server      *server.Server
}

// open opens the parts. What no request needs is prepared by serve, when the
// server runs already. What may fail comes before the table, which is closed
// before the server so that readers get their ends.
func (d *daemon) open() (err error) {
	if d.reaper, err = reap.Open(); err != nil {
		return err
	}
	d.group.add("reaper", d.reaper.Run, func(context.Context) error { return d.reaper.Close() })
	d.ground = newGround()
	runGround := func(ctx context.Context) error { return d.ground.run(ctx, d.Firecracker, d.Log) }
	d.group.add("cgroups", runGround, func(context.Context) error { return d.ground.close() })
	d.coordinator = snapshot.New(snapshotConfig(d.ground, d.Log))
	if d.end.isInit {
		d.openClock() // the first to resume: commands go on with the right time
	}
	d.trim = newTrimmer(quietSpell, d.ground.trim)
	d.coordinator.Register(d.trim)
	d.group.add("memory", d.trim.run, nil)
	listeners, err := openListeners(d.Config, d.end.isInit)
	if err != nil {
		return err
	}
	d.group.add("listeners", nil, func(context.Context) error { closeAll(listeners); return nil })
	if err := d.openPorts(); err != nil {
		return err
	}
	if err := d.openTable(); err != nil {
		return err
	}
	d.openServer(listeners)
	d.group.add("processes", nil, func(context.Context) error { return d.end.processes(d.table) })
	d.group.add("snapshot", nil, func(context.Context) error { d.coordinator.Close(); return nil })
	return nil
}

// openClock keeps the clock at the host's, where the host shows one.
func (d *daemon) openClock() {
	clock := boot.OpenClock(d.coordinator.Jumped, d.Log)
	if clock == nil {
		return
	}
	d.coordinator.Register(clock)
	d.group.add("clock", clock.Run, func(context.Context) error { return clock.Close() })
}

func (d *daemon) openTable() (err error) {
	d.Output.Gate = d.coordinator
	d.Output.Started = d.started
	d.Output.Ended = d.ended
	d.Output.Forgotten = d.trim.touch // what was kept of it is free now
	if d.table, err = process.OpenTable(d.Output, d.reaper, d.ground.hierarchy); err != nil {
		return err
	}
	d.coordinator.Register(d.table)
	return nil
}

// started and ended hear of each process.
func (d *daemon) started() {
	if d.forwarder != nil {
		d.forwarder.Touch()
	}
}

func (d *daemon) ended(p *process.Process) {
	d.trim.touch()
	if d.Log.Enabled(context.Background(), slog.LevelDebug) { // to make the words takes longer than to drop them
		d.Log.Debug("process ended", "pid", p.Pid(), "status", p.Exit().String(), "output", p.Written())
	}
}

// openServer makes the server and what only its handlers need.
func (d *daemon) openServer(listeners []net.Listener) {
	d.settings = guest.NewStore(guest.Settings{User: "root", Env: guest.SandboxEnv(d.Firecracker)})
	d.accounts = guest.NewAccounts("/etc/passwd", "/etc/group")
	watchers := watch.NewSet[*api.Watched]()
	d.coordinator.Register(paused{watchers})
	d.usage = new(metrics.Usage)
	wire := api.Config{
		Version: d.Version, Settings: d.settings, Accounts: d.accounts, Processes: d.table, Watchers: watchers, Log: d.Log,
		UserAccess: d.UserAccess, Cork: server.Cork, Ports: d.forwarder, Snapshot: d.coordinator, Restorer: d.coordinator,
		Usage: d.usage, Figures: func(t *metrics.Text) { figures(t, d.server, d.reaper) },
		Machine: guest.NewMachine(guest.MachineConfig{
			Settings: d.settings, Clock: d.clock(), Mounter: mounter{d.reaper}, Log: d.Log, Root: "/",
		}),
	}
	if d.Firecracker {
		who := newIdentity(mmds.New(mmds.Address).Fetch, d.settings, "/", d.Log)
		d.group.add("identity", who.run, nil)
		d.coordinator.Register(who)
		wire.FromGuest, wire.Identities = server.FromGuest, who
	}
	if d.end.isInit {
		wire.Shutdown = d.end.begin
	}
	d.handler = api.New(wire)
	d.server = server.New(d.handler, d.Log, listeners...)
	d.coordinator.Serve(d.server)
	d.group.add("server", d.server.Run, func(ctx context.Context) error { return d.server.Close(ctx, process.ErrClosed) })
	d.group.add("watchers", nil, func(context.Context) error { return watchers.Close() })
}

// serve answers first and then prepares what commands need.
func (d *daemon) serve(ctx context.Context) error {
	d.group.start(ctx, "server")
	serving := boot.Uptime()
	d.ground.await()
	if !d.end.isInit {
		defer d.end.onSignal()()
		defer forgetSignals(ignored...)()
	}
	d.group.start(ctx)
	if err := guest.WriteSandbox("/", d.Firecracker); err != nil {
		d.Log.Warn("files do not say whether this is a sandbox; the environment does", "error", err)
	}
	d.ground.prepare(d.CgroupRoot, d.Log)
	if d.end.isInit {
		d.Log.Info("the machine is up", "served_after", serving, "of_which_envd", serving-d.end.started)
	}
	d.Log.Info("envd is ready", "version", d.Version, "commit", d.Commit, "address", d.server.Addr().String(), "firecracker", d.Firecracker)
	if d.Command != "" {
		run := func() error { return runCommand(d.table, d.settings, d.accounts, d.Command) }
		if err := startCommand(ctx, d.coordinator, run); err != nil {
			d.Log.Error("start-up command did not start", "error", err)
		}
	}
	d.handler.Warm()
	beginUsage(d.usage)
	return d.group.wait(ctx, d.Log)
}

func (cfg Config) clock() guest.Clock {
	if cfg.Clock == nil {
		return guest.SystemClock{}
	}
	return cfg.Clock
}
