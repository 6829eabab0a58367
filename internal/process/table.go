package process

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/linux"
	"github.com/wrenn/envd/internal/reap"
)

// ErrUnknown means that no process is called that.
var ErrUnknown = errors.New("process not found")

// ErrClosed is returned for a start while the table is being closed.
var ErrClosed = errors.New("shutting down")

// maxStarting bounds the starts under way: the others wait without descriptors,
// and do not hold a snapshot up.
const maxStarting = 16

// Config holds the limits of a table.
type Config struct {
	// Window is how much output is kept of each process, in bytes.
	Window int
	// Total bounds what is kept of all processes together, in bytes.
	Total int64
	// Retain is how long a process is kept after its end.
	Retain time.Duration
	// Ended, when not nil, is called after each end. It does not block.
	Ended func(*Process)
	// Forgotten, when not nil, is called when an ended process and its output
	// are kept no more. It does not block.
	Forgotten func()
	// Started, when not nil, is called after each start. It does not block.
	Started func()
	// Gate, when not nil, is passed by every start.
	Gate Gate
}

// Gate lets starts through, or does not. It may make them wait.
type Gate interface {
	// Enter lets a start through; leave says that it is over.
	Enter() (leave func(), err error)
}

// DefaultConfig is what the wire contract promises.
func DefaultConfig() Config {
	return Config{Window: 1 << 20, Total: 64 << 20, Retain: 30 * time.Second}
}

// Table owns all processes: those that run, those that ended less than
// Config.Retain ago, and those that left descendants behind. Numbers are never
// reused inside: a pid or tag leads to the newest process of that name.
type Table struct {
	cfg    Config
	reaper *reap.Reaper
	groups Groups
	budget *Budget
	poller *poller
	id     func() string  // random; makes marks unique among daemons
	turns  chan struct{}  // an element for each start under way
	starts sync.WaitGroup // that Close did not refuse
	wg     sync.WaitGroup // the poller and timers

	lingering atomic.Int32 // readers that wait in pull
	unsettled atomic.Int32 // processes of which something is left
	started   atomic.Uint64
	failed    atomic.Uint64

	mu      sync.Mutex
	closing bool                  // guarded by mu, as is all below
	serial  uint64                // of the newest process
	all     map[uint64]*Process   // by serial
	pids    map[int]*Process      // the newest of each pid
	tags    map[string][]*Process // oldest first
	expiry  []*Process            // ended, oldest first
	timer   *time.Timer           // runs expire; nil while nothing is to expire
	resting bool                  // nothing expires; see Quiesce
}

// Groups answers where commands get their cgroups, nil where cgroup v2 is not
// usable. It may wait until that is known: the first start then waits as well.
type Groups func() *cgroup.Hierarchy

// OpenTable makes an empty table. Close ends it.
func OpenTable(cfg Config, reaper *reap.Reaper, groups Groups) (*Table, error) {
	poller, err := newPoller()
	if err != nil {
		return nil, err
	}
	t := &Table{
		cfg: cfg, reaper: reaper, groups: groups,
		budget: newBudget(cfg.Total),
		poller: poller,
		id:     sync.OnceValue(rand.Text),
		turns:  make(chan struct{}, maxStarting),
		all:    make(map[uint64]*Process),
		pids:   make(map[int]*Process),
		tags:   make(map[string][]*Process),
	}
	poller.start = sync.OnceFunc(func() { t.wg.Go(poller.run) })
	return t, nil
}

// Start runs spec. It returns the process and a cursor that sees all of its
// output; the caller closes the cursor. Errors are *StartError, ErrClosed or
// what the gate says.
func (t *Table) Start(spec *Spec) (*Process, *Cursor, error) {
	p, cursor, err := t.start(spec)
	if err != nil {
		t.failed.Add(1)
	} else {
		t.started.Add(1)
	}
	return p, cursor, err
}

// Counts are how many starts there were.
type Counts struct{ Started, Failed uint64 }

// Counts answers the starts so far.
func (t *Table) Counts() Counts { return Counts{Started: t.started.Load(), Failed: t.failed.Load()} }

func (t *Table) start(spec *Spec) (*Process, *Cursor, error) {
	if err := spec.validate(); err != nil {
		return nil, nil, err
	}
	path, err := spec.find()
	if err != nil {
		return nil, nil, cmp.Or(spec.checkDir(), err) // which may be why
	}
	t.turns <- struct{}{}
	defer func() { <-t.turns }()
	if t.cfg.Gate != nil {
		leave, err := t.cfg.Gate.Enter()
		if err != nil {
			return nil, nil, fmt.Errorf("start: %w", err)
		}
		defer leave()
	}
	// Close waits for starts that it did not refuse.
	t.mu.Lock()
	if t.closing {
		t.mu.Unlock()
		return nil, nil, ErrClosed
	}
	t.serial++
	serial := t.serial
	t.starts.Add(1)
	t.mu.Unlock()
	defer t.starts.Done()
	return t.launch(spec, path, serial)
}

// launch makes the process and what it needs, or nothing.
func (t *Table) launch(spec *Spec, path string, serial uint64) (_ *Process, _ *Cursor, err error) {
	group, err := t.group(spec)
	if err != nil {
		return nil, nil, err
	}
	p := &Process{
		Name: spec.Name, Tag: spec.Tag, HasTag: spec.HasTag, Started: time.Now(),
		serial: serial, table: t, group: group,
		terminal: spec.Terminal != nil, tty: -1,
		out:     newOutput(t.cfg.Window, t.budget),
		exited:  make(chan struct{}),
		settled: make(chan struct{}),
		overdue: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			p.discard()
		}
	}()
	files, err := openStdio(spec)
	if err != nil {
		return nil, nil, err
	}
	defer files.closeChild()
	if err := p.connect(files); err != nil {
		return nil, nil, &StartError{Kind: Internal, Text: "terminal", Err: err}
	}
	cmd := reap.Command{
		Path: path, Args: append([]string{spec.Name}, spec.Args...), Env: spec.Env, Dir: spec.Dir,
		User:  spec.User,
		Stdin: files.child[0], Stdout: files.child[1], Stderr: files.child[2],
		TTY: spec.Terminal != nil,
	}
	if group != nil {
		cmd.Cgroup = group.Dir()
		defer group.Entered()
	} else {
		p.mark = t.id() + "-" + strconv.FormatUint(serial, 10)
		cmd.Env = append(slices.DeleteFunc(slices.Clone(cmd.Env), isMark), markName+"="+p.mark)
	}
	cursor := p.out.attachFirst(p.pumps)
	t.reaper.Hush() // for the reader, who lingers
	if p.child, err = t.reaper.Start(cmd); err != nil {
		if group != nil && group.Removed() {
			err = &StartError{Kind: Internal, Text: "somebody removed the command group", Err: err}
		}
		return nil, nil, spec.startError(path, err)
	}
	if p.terminal {
		p.tty = files.takeTTY()
	}
	files.closeChild() // else the output of a program that is over has no end yet
	p.out.carry(spec.Label, spec.LabelCost)
	t.register(p)
	if spec.Timeout > 0 {
		p.after(spec.Timeout, p.timeOut)
	}
	// The program may be over already, on one processor mostly. Then the reader
	// finds the end at its first look, and the answer is one write.
	t.reaper.Reap()
	p.child.AfterExit(p.leaderExited)
	return p, cursor, nil
}

// discard gives up what a process that did not start had acquired.
func (p *Process) discard() {
	for _, pump := range p.pumps {
		pump.end()
	}
	if p.input != nil {
		_ = p.input.close()
	}
	if p.group != nil {
		p.group.Discard()
	}
}

// group makes the cgroup for spec; nil where there are none.
func (t *Table) group(spec *Spec) (*cgroup.Group, error) {
	groups := t.groups()
	if groups == nil {
		if spec.Limits != (cgroup.Limits{}) {
			return nil, &StartError{Kind: Unmet, Text: "limits need cgroup v2", Err: cgroup.ErrUnusable}
		}
		return nil, nil //nolint:nilnil // nil is a group that is not there
	}
	g, err := groups.Create(spec.class(), spec.Limits)
	switch {
	case errors.Is(err, cgroup.ErrNoController):
		return nil, &StartError{Kind: Unmet, Text: "limits", Err: err}
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE):
		return nil, &StartError{Kind: Exhausted, Text: "too many commands", Err: err}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return nil, &StartError{Kind: Invalid, Text: "limits", Err: err}
	case err != nil:
		return nil, &StartError{Kind: Internal, Text: "command group", Err: err}
	}
	return g, nil
}

// connect hands our side of the process's files over, to pumps and as its
// input.
func (p *Process) connect(files *stdio) error {
	bell := make(chan struct{}, 1)
	p.bell = bell
	add := func(s Stream, fd int, file io.Closer) {
		p.pumps = append(p.pumps, p.table.poller.open(s, fd, file, p.out, bell, p.pumpEnded))
		p.open++
	}
	p.out.pull = p.pull
	if master := files.master; master != nil {
		fd, err := descriptor(master)
		if err != nil {
			files.closeOurs()
			return err
		}
		p.input = newTerminalInput(master)
		add(Terminal, fd, master)
		return nil
	}
	if files.ours[0] >= 0 {
		p.input = newInput(files.ours[0])
	}
	add(Stdout, int(files.ours[1]), files.ours[1])
	add(Stderr, int(files.ours[2]), files.ours[2])
	return nil
}

// descriptor is the number of an open file, whose owner keeps it open.
func descriptor(f *os.File) (fd int, err error) {
	conn, err := f.SyscallConn()
	if err == nil {
		err = conn.Control(func(n uintptr) { fd = int(n) })
	}
	if err != nil {
		return -1, fmt.Errorf("read output: %w", err)
	}
	return fd, nil
}

// pull reads what there is, for a reader that is alone. To linger makes it wait
// a moment for something: in a fast stream the next piece is on its way, and
// the end of a command that has just begun may be. Handing over to the poller
// or the reaper and back costs more than to wait for it.
func (p *Process) pull(linger time.Duration) {
	p.mu.Lock()
	pumps := p.pumps
	p.mu.Unlock()
	if linger > 0 {
		p.linger(linger, pumps)
	}
	for _, pump := range pumps {
		pump.pull()
	}
}

// linger waits for output or the leader's end. The end of the output comes while
// the leader is on its way out, and to hand over then would be in vain.
func (p *Process) linger(limit time.Duration, pumps []*pump) {
	defer p.table.lingering.Add(-1)
	if p.table.lingering.Add(1) > maxLingering {
		return
	}
	fds := make([]int, 0, 3)
	for _, pump := range pumps {
		fds = append(fds, pump.fd) // closed meanwhile: no matter what it names now
	}
	if linux.AwaitInput(limit, append(fds, p.child.Pidfd())...) {
		p.table.reaper.Reap()
	}
}

// after calls f after d unless stop is called first. Close waits for it.
func (t *Table) after(d time.Duration, f func()) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return func() {}
	}
	t.wg.Add(1)
	timer := time.AfterFunc(d, func() {
		defer t.wg.Done()
		f()
	})
	return func() {
		if timer.Stop() {
			t.wg.Done()
		}
	}
}

// register makes p known.
func (t *Table) register(p *Process) {
	t.unsettled.Add(1)
	if t.cfg.Started != nil {
		t.cfg.Started()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[p.serial] = p
	t.pids[p.Pid()] = p
	if p.HasTag {
		t.tags[p.Tag] = append(t.tags[p.Tag], p)
	}
}

// ByPid finds the process with that pid, the newest if there were several.
func (t *Table) ByPid(pid int) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pids[pid]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%w: pid %d", ErrUnknown, pid)
}

// ByTag finds the newest running process with that tag, else the newest ended.
func (t *Table) ByTag(tag string) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	same := t.tags[tag]
	for _, p := range slices.Backward(same) {
		if p.Running() {
			return p, nil
		}
	}
	if len(same) > 0 {
		return same[len(same)-1], nil
	}
	return nil, fmt.Errorf("%w: tag %q", ErrUnknown, tag)
}

// List answers all processes, oldest first; without ended those whose leader
// runs.
func (t *Table) List(ended bool) []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*Process, 0, len(t.all))
	for _, p := range t.all {
		if ended || p.Running() {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *Process) int { return cmp.Compare(a.serial, b.serial) })
	return list
}

// ended starts the time for which p is kept.
func (t *Table) ended(p *Process) {
	t.budget.retire(p.out)
	if t.cfg.Ended != nil {
		t.cfg.Ended(p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.endedAt = time.Now()
	t.expiry = append(t.expiry, p)
	t.armLocked()
}

// armLocked makes the timer run when the oldest ended process is due.
func (t *Table) armLocked() {
	if t.timer != nil || len(t.expiry) == 0 || t.closing || t.resting {
		return
	}
	due := t.expiry[0].endedAt.Add(t.cfg.Retain)
	t.timer = time.AfterFunc(time.Until(due), t.expire)
}

// expire forgets what is due. Processes with something left stay; settled, or
// without cgroups the next turn, sees to them.
func (t *Table) expire() {
	var system *snapshot
	if t.groups() == nil { // known by now
		system = scan() // takes a while: not under the lock
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.resting {
		return // stopped while it fired
	}
	t.timer = nil
	now := time.Now()
	due := t.expiry
	for i, p := range t.expiry {
		if p.endedAt.Add(t.cfg.Retain).After(now) {
			due = t.expiry[:i]
			break
		}
	}
	t.expiry = slices.Clone(t.expiry[len(due):])
	for _, p := range due {
		switch {
		case !p.isSettled(): // settled forgets it
		case p.group == nil && len(p.tree().members(system)) > 0:
			p.endedAt = now
			t.expiry = append(t.expiry, p)
		default:
			t.forgetLocked(p)
		}
	}
	t.armLocked()
}

// Unsettled is how many processes run or have left something behind that does.
func (t *Table) Unsettled() int { return int(t.unsettled.Load()) }

// settled forgets p if its time is over.
func (t *Table) settled(p *Process) {
	t.unsettled.Add(-1)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.all[p.serial] != p || time.Since(p.endedAt) < t.cfg.Retain:
	case p.group == nil:
		// Who let go of the output may live on: expire looks for it.
		p.endedAt = time.Now()
		t.expiry = append(t.expiry, p)
		t.armLocked()
	default:
		t.forgetLocked(p)
	}
}

func (t *Table) forgetLocked(p *Process) {
	if t.all[p.serial] != p {
		return
	}
	delete(t.all, p.serial)
	if t.pids[p.Pid()] == p {
		delete(t.pids, p.Pid())
	}
	if p.HasTag {
		same := slices.DeleteFunc(t.tags[p.Tag], func(q *Process) bool { return q == p })
		if len(same) == 0 {
			delete(t.tags, p.Tag)
		} else {
			t.tags[p.Tag] = same
		}
	}
	t.budget.forget(p.out)
	p.stopTimers()
	if t.cfg.Forgotten != nil {
		t.cfg.Forgotten()
	}
	if len(t.all) == 0 {
		// Maps do not shrink by themselves.
		t.all, t.pids, t.tags = make(map[uint64]*Process), make(map[int]*Process), make(map[string][]*Process)
	}
}

// Quiesce stops the timer by which ended processes are forgotten, for a
// snapshot. Processes, their deadlines and their output go on.
func (t *Table) Quiesce(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resting = true
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	return nil
}

// Resume undoes Quiesce.
func (t *Table) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resting = false
	t.armLocked()
}

// closeGrace is what Close gives killed trees to be gone and their output to
// be read.
const closeGrace = time.Second

// Close ends all processes: SIGTERM to the leaders, SIGKILL to each tree once
// its leader is gone or ctx ends. Attached readers get the ends. It returns
// when all goroutines have.
func (t *Table) Close(ctx context.Context) {
	t.mu.Lock()
	t.closing = true
	if t.timer != nil {
		t.timer.Stop()
	}
	t.mu.Unlock()
	// What is being started needs the poller until it ends, as all else does.
	t.awaitStarts(ctx)

	list := t.List(true)
	for _, p := range list {
		_ = p.Signal(unix.SIGTERM)
		_ = p.Signal(unix.SIGCONT) // a stopped process could not obey
	}
	for _, p := range list {
		select {
		case <-p.exited:
		case <-ctx.Done():
		}
	}
	sys := scan()
	for _, p := range list {
		// Without cgroups a settled process may have left someone behind.
		if !p.isSettled() || p.group == nil && len(p.tree().members(sys)) > 0 {
			_ = p.Kill()
		}
	}
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	for _, p := range list {
		select {
		case <-p.settled:
		case <-grace.C:
			grace.Reset(0) // it is over for the others, too
		}
	}
	for _, p := range t.List(true) {
		p.stopTimers()
	}
	t.poller.close()
	t.wg.Wait()
}

// awaitStarts waits for the starts under way. What takes longer than ctx lasts
// does not get to its exec, and is killed.
func (t *Table) awaitStarts(ctx context.Context) {
	over := make(chan struct{})
	go func() { t.starts.Wait(); close(over) }()
	select {
	case <-over:
		return
	case <-ctx.Done():
		t.reaper.GiveUp()
	}
	select {
	case <-over:
	case <-time.After(closeGrace): // the kernel does not let go of it, and must not keep us
	}
}
