package reap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// A child sees descriptors 0, 1 and 2 only, whatever else is open.
func TestChildSeesThreeDescriptors(t *testing.T) {
	r := open(t)
	for range 20 {
		ours, childs, err := linux.PipeForReading()
		must(t, err)
		defer ours.Close()
		defer childs.Close()
	}
	// Others are being opened and closed, and other children started, meanwhile.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	dir, other := t.TempDir(), command(t, "/bin/true")
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			f, err := os.Create(filepath.Join(dir, "f"))
			if err != nil {
				t.Error(err)
				return
			}
			_ = f.Close()
			if c, err := r.Start(other); err == nil {
				c.Status()
			}
		}
	})
	for range 20 {
		// The fourth is the directory that ls reads.
		if got := output(t, r, command(t, "/bin/ls", "/proc/self/fd")); got != "0\n1\n2\n3\n" {
			t.Errorf("child sees descriptors %q", got)
		}
	}
	close(stop)
	wg.Wait()
}

// Children never keep the daemon's groups, whoever they run as.
func TestCredentialAlwaysSetsGroups(t *testing.T) {
	before, err := unix.Getgroups()
	must(t, err)
	must(t, unix.Setgroups([]int{4, 20})) // root's, in the daemon
	defer func() { must(t, unix.Setgroups(before)) }()
	r := open(t)
	for name, tt := range map[string]struct {
		user Credential
		want string
	}{
		"none":      {Credential{UID: 65534, GID: 65534}, "Uid 65534 65534 65534 65534 Gid 65534 65534 65534 65534 Groups"},
		"some":      {Credential{UID: 1234, GID: 1235, Groups: []uint32{1235, 7}}, "Uid 1234 1234 1234 1234 Gid 1235 1235 1235 1235 Groups 7 1235"},
		"root none": {Credential{}, "Uid 0 0 0 0 Gid 0 0 0 0 Groups"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := shell(t, `while read k v; do case $k in Uid:|Gid:|Groups:) echo $k $v;; esac; done </proc/self/status`)
			cmd.User = tt.user
			got := strings.Join(strings.Fields(strings.ReplaceAll(output(t, r, cmd), ":", "")), " ")
			if got != tt.want {
				t.Errorf("child runs as %q, want %q", got, tt.want)
			}
		})
	}
}

// The ids of a daemon that is two at once are not for its children.
func TestCredentialOfADaemonWithTwo(t *testing.T) {
	done := make(chan string)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: its ids end with it
		_, _, noGroup := unix.RawSyscall(unix.SYS_SETRESGID, 1235, 0, 0)
		_, _, noUser := unix.RawSyscall(unix.SYS_SETRESUID, 1234, 0, 0)
		if noGroup != 0 || noUser != 0 {
			t.Error(noGroup, noUser)
			return
		}
		cmd := shell(t, `while read k v; do case $k in Uid:|Gid:) echo $k $v;; esac; done </proc/self/status`)
		cmd.User = Credential{UID: 1234, GID: 1235}
		done <- output(t, open(t), cmd)
	}()
	if got, want := strings.Join(strings.Fields(<-done), " "), "Uid: 1234 1234 1234 1234 Gid: 1235 1235 1235 1235"; got != want {
		t.Errorf("child is %q, want %q", got, want)
	}
}

// grandchildren prints what children see that a program forks at once, before
// anything outside could have touched them.
const grandchildren = `for i in 1 2 3; do (cat /proc/self/oom_score_adj; cut -d" " -f19 /proc/self/stat) & done; wait`

// Priority and score are in force before the program's own code can fork: none
// of 150 grandchildren misses them, though the daemon itself is protected and
// its threads are niced.
func TestGrandchildrenInheritPriorities(t *testing.T) {
	const rounds = 50
	own := protect(t)
	r := open(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the odd thread ends with us
		const idle = 3 << 13
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 9)
		unix.RawSyscall(unix.SYS_IOPRIO_SET, 1, 0, idle)
		right := 0
		for range rounds {
			got := strings.Fields(output(t, r, shell(t, grandchildren)))
			if strings.Join(sortedFields(got), " ") == "0 0 0 100 100 100" {
				right += 3
			} else {
				t.Errorf("grandchildren see %q", got)
			}
		}
		t.Logf("%d of %d grandchildren", right, 3*rounds)
	}()
	<-done
	if b, _ := os.ReadFile("/proc/self/oom_score_adj"); strings.TrimSpace(string(b)) != own {
		t.Errorf("the daemon's own score is %q after the starts", b)
	}
}

func TestChildIOPriority(t *testing.T) {
	r := open(t)
	c := start(t, r, command(t, "/bin/sleep", "60"))
	prio, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, 1, uintptr(c.Pid()), 0)
	if errno != 0 || prio != 2<<13|4 {
		t.Errorf("I/O priority %#x, %v; want best effort, level 4", prio, errno)
	}
	must(t, c.Signal(unix.SIGKILL))
	status(t, c)
}

func sortedFields(f []string) []string {
	var zeros, rest []string
	for _, s := range f {
		if s == "0" {
			zeros = append(zeros, s)
		} else {
			rest = append(rest, s)
		}
	}
	return append(zeros, rest...)
}

// protect gives the test's process a score of its own, as the daemon has. It
// answers the score.
func protect(t *testing.T) string {
	t.Helper()
	const file = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(file)
	must(t, err)
	own := "-900"
	if os.WriteFile(file, []byte(own), 0) != nil {
		own = "50" // without CAP_SYS_RESOURCE
		must(t, os.WriteFile(file, []byte(own), 0))
	}
	t.Cleanup(func() { must(t, os.WriteFile(file, before, 0)) })
	return own
}

// A daemon started in the background, with signals ignored and blocked, does
// not pass that on: its children could not be interrupted from a terminal.
func TestDefaultDispositionsWhateverTheDaemonInherited(t *testing.T) {
	r := open(t)
	exe, err := os.Executable()
	must(t, err)
	// The shell ignores, the helper then blocks.
	cmd := shell(t, `trap "" INT QUIT TSTP TTIN TTOU HUP PIPE; exec "$0"`)
	cmd.Args = append(cmd.Args, exe)
	cmd.Env = append(cmd.Env, helperEnv+"=blocking", promptExit)
	text := output(t, r, cmd)
	for _, key := range []string{"SigIgn", "SigBlk"} {
		if got := statusLine(text, key); got != "0000000000000000" {
			t.Errorf("%s is %s in the child of the daemon", key, got)
		}
	}
}

// The mask of the forking thread does not reach the child.
func TestEmptyMaskFromAnyThread(t *testing.T) {
	r := open(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		set := unix.Sigset_t{}
		set.Val[0] = 1<<(unix.SIGINT-1) | 1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTERM-1)
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
			t.Error(err)
			return
		}
		if got := statusLine(output(t, r, command(t, "/bin/cat", "/proc/self/status")), "SigBlk"); strings.Trim(got, "0") != "" {
			t.Errorf("the child blocks %s", got)
		}
	}()
	<-done
}

func statusLine(text, key string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func TestChildLeadsASession(t *testing.T) {
	r := open(t)
	c := start(t, r, command(t, "/bin/sleep", "60"))
	sid, err := unix.Getsid(c.Pid())
	if err != nil || sid != c.Pid() {
		t.Errorf("session %d, %v; want %d", sid, err, c.Pid())
	}
	must(t, c.Signal(unix.SIGKILL))
	status(t, c)
}

// A failed start is an errno, leaves nothing and does not disturb the reaper:
// the half-made child is never seen as an orphan.
func TestFailedStartLeavesNothing(t *testing.T) {
	r := open(t)
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	must(t, os.WriteFile(text, []byte("no program\n"), 0o755))
	file, err := os.Open(text)
	must(t, err)
	defer file.Close()
	orphans := r.Orphans()
	for name, tt := range map[string]struct {
		change func(*Command)
		want   error
	}{
		"missing":    {func(c *Command) { c.Path = "/nonexistent" }, unix.ENOENT},
		"not exec":   {func(c *Command) { c.Path = text; must(t, os.Chmod(text, 0o644)) }, unix.EACCES},
		"bad format": {func(c *Command) { c.Path = text; must(t, os.Chmod(text, 0o755)) }, unix.ENOEXEC},
		"cwd":        {func(c *Command) { c.Dir = "/nonexistent" }, unix.ENOENT},
		"NUL":        {func(c *Command) { c.Args = []string{"a\x00b"} }, unix.EINVAL},
		"no cgroup":  {func(c *Command) { c.Cgroup = file }, unix.EBADF},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, "/bin/true")
			tt.change(&cmd)
			for range 20 {
				if c, err := r.Start(cmd); !errors.Is(err, tt.want) {
					t.Fatalf("start: %v, %v; want %v", c, err, tt.want)
				}
			}
		})
	}
	status(t, start(t, r, command(t, "/bin/true")))
	if n := r.Orphans() - orphans; n != 0 {
		t.Errorf("%d failed starts counted as orphans", n)
	}
	if len(r.children) != 0 {
		t.Errorf("%d children left registered", len(r.children))
	}
}

// An orphan of an orphan comes to us, not to PID 1.
func TestOrphansComeToTheReaper(t *testing.T) {
	r := open(t)
	before := r.Orphans()
	pid := strings.TrimSpace(output(t, r, shell(t, `setsid sh -c 'sleep 60 >/dev/null & echo $!'`)))
	n, err := strconv.Atoi(pid)
	must(t, err)
	eventually(t, "the orphan to be ours", func() bool { return parentOf(t, n) == os.Getpid() })
	must(t, unix.Kill(n, unix.SIGKILL))
	eventually(t, "the orphan to be reaped", func() bool { return gone(n) })
	eventually(t, "the orphan to be counted", func() bool { return r.Orphans() > before })
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	must(t, err)
	n, err := strconv.Atoi(statusLine(string(b), "PPid"))
	must(t, err)
	return n
}

// Also where the standard library has to fork, a program on a file system whose
// server never answers holds up its own start alone.
func TestForkExecOnADeadFileSystem(t *testing.T) {
	r := open(t)
	r.old.Store(true)
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	must(t, err)
	dir := t.TempDir()
	must(t, unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0", server.Fd())))
	ended := make(chan error, 1)
	cmd := command(t, filepath.Join(dir, "program"))
	go func() { _, err := r.Start(cmd); ended <- err }()
	for range 3 {
		status(t, start(t, r, command(t, "/bin/true")))
		runtime.GC()
		time.Sleep(10 * time.Millisecond) // it is at the file system
	}
	select {
	case err := <-ended:
		t.Errorf("the file system has answered: %v", err)
	default:
	}
	must(t, server.Close()) // who waits for an answer has an error
	if err := <-ended; err == nil {
		t.Error("it has started")
	}
	must(t, unix.Unmount(dir, unix.MNT_DETACH))
}
