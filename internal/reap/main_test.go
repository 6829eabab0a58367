package reap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/linux"
)

// helperEnv names the part that the re-executed test binary plays.
const helperEnv = "REAP_TEST_HELPER"

// promptExit spares helpers the second that the race detector sleeps at exit.
const promptExit = "GORACE=atexit_sleep_ms=0"

// patience is how long an expected event may take on a busy machine.
const patience = 10 * time.Second

func TestMain(m *testing.M) {
	switch part := os.Getenv(helperEnv); part {
	case "":
		// As the daemon does: what the test's parent left open is not ours.
		if err := linux.CloseOnExecFrom(3); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case "blocking":
		os.Exit(blockingMain())
	case "dispositions":
		os.Exit(dispositionsMain())
	case "limit", "limit by forkexec":
		os.Exit(limitMain(part != "limit"))
	case "without clone3", "without close_range":
		os.Exit(lackingMain(refused[part]))
	default:
		fmt.Fprintln(os.Stderr, "unknown helper", part)
		os.Exit(2)
	}
}

// blockingMain becomes dispositionsMain with signals blocked.
func blockingMain() int {
	runtime.LockOSThread() // exec keeps the mask of the thread that calls it
	set := unix.Sigset_t{}
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTSTP, unix.SIGTERM, unix.SIGCHLD} {
		set.Val[0] |= 1 << (sig - 1)
	}
	err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
	if err == nil {
		err = os.Setenv(helperEnv, "dispositions")
	}
	if err == nil {
		err = unix.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// dispositionsMain is a daemon that was itself started with ignored and blocked
// signals: its caller sets them. It does what the daemon does and starts a
// child, whose masks it passes on.
func dispositionsMain() int {
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM)
	if err := linux.DefaultIgnoredSignals(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return daemonMain(func(r *Reaper) int {
		c, err := r.Start(Command{
			Path: "/bin/cat", Args: []string{"cat", "/proc/self/status"}, Dir: "/",
			Stdin: 0, Stdout: 1, Stderr: 2,
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return c.Status().Wait.ExitStatus()
	})
}

// daemonMain runs f with a reaper, for its exit code.
func daemonMain(f func(*Reaper) int) int {
	r, err := Open()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Run(ctx) })
	code := f(r)
	cancel()
	wg.Wait()
	if err := r.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// open makes a reaper that runs until the test ends, with the leak check
// around it.
func open(t testing.TB) *Reaper {
	t.Helper()
	leaktest.Check(t)
	r, err := Open()
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		must(t, r.Close())
	})
	return r
}

// command is argv with nothing to read and its output thrown away.
func command(t testing.TB, argv ...string) Command {
	t.Helper()
	file, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = file.Close() })
	null := linux.Descriptor(file.Fd())
	return Command{
		Path: argv[0], Args: argv, Dir: "/", Env: []string{"PATH=/usr/bin:/bin"},
		Stdin: null, Stdout: null, Stderr: null,
	}
}

func shell(t testing.TB, script string) Command {
	t.Helper()
	return command(t, "/bin/sh", "-c", script)
}

func start(t testing.TB, r *Reaper, cmd Command) *Child {
	t.Helper()
	c, err := r.Start(cmd)
	must(t, err)
	return c
}

// output runs cmd to its end and answers what it and its children wrote.
func output(t testing.TB, r *Reaper, cmd Command) string {
	t.Helper()
	d, write, err := linux.PipeForReading()
	must(t, err)
	read := d.File("output")
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, 2
	c, err := r.Start(cmd)
	_ = write.Close()
	must(t, err)
	must(t, read.SetReadDeadline(time.Now().Add(patience)))
	text, err := io.ReadAll(read)
	must(t, err)
	if s := status(t, c); s.Wait != 0 {
		t.Errorf("%q: wait status %#x", cmd.Args, s.Wait)
	}
	return string(text)
}

// status waits for the end of c.
func status(t testing.TB, c *Child) Status {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatalf("child %d has not ended", c.Pid())
	}
	return c.Status()
}

// eventually waits for something that has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// children counts our child processes, zombies included.
func children(t testing.TB) int {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	n := 0
	for _, list := range lists {
		b, _ := os.ReadFile(list) // the thread may be gone
		n += len(strings.Fields(string(b)))
	}
	return n
}

func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// limitMain is a daemon that prints its limit on open files, and then has a child
// print its own.
func limitMain(old bool) int {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(own.Cur)
	return daemonMain(func(r *Reaper) int {
		r.old.Store(old)
		c, err := r.Start(Command{
			Path: "/bin/sh", Args: []string{"sh", "-c", "ulimit -S -n; ulimit -H -n"}, Dir: "/",
			Stdin: 0, Stdout: 1, Stderr: 2,
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return c.Status().Wait.ExitStatus()
	})
}

// refused are calls that old kernels have not, by the part of a helper.
var refused = map[string]uint32{"without clone3": unix.SYS_CLONE3, "without close_range": unix.SYS_CLOSE_RANGE}

// lackingMain is a daemon whose kernel lacks the call with that number.
func lackingMain(number uint32) int {
	if err := refuse(number); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return daemonMain(func(r *Reaper) int {
		c, err := r.Start(Command{
			Path: "/bin/sh", Args: []string{"sh", "-c", "exit 7"}, Dir: "/",
			Stdin: 0, Stdout: 1, Stderr: 2,
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Print(c.Status().Wait.ExitStatus(), " ", r.old.Load(), " ", r.Orphans())
		return 0
	})
}

// refuse has the kernel answer ENOSYS to a call, as a container's does.
func refuse(number uint32) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}
