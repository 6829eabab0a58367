package linux

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// What a background job inherits ignored, programs started by it must not.
func TestDefaultIgnoredSignals(t *testing.T) {
	leaktest.Check(t)
	exe, err := os.Executable()
	must(t, err)
	run := func(env string) uint64 {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c",
			`trap "" HUP INT QUIT TSTP TTIN TTOU USR1 RTMIN+3 2>/dev/null; exec "$0"`, exe)
		if env == "" {
			cmd.Args[2] = strings.Replace(cmd.Args[2], `"$0"`, "cat /proc/self/status", 1)
		}
		cmd.Env = append(os.Environ(), helperEnv+"="+env)
		out, err := cmd.Output()
		must(t, err)
		return statusMask(t, string(out), "SigIgn")
	}
	inherited := signalBit(unix.SIGINT) | signalBit(unix.SIGTSTP) | signalBit(unix.SIGQUIT)
	if got := run(""); got&inherited != inherited {
		t.Fatalf("the shell ignores %x, the test needs %x", got, inherited)
	}
	if got := run("default-signals"); got != 0 {
		t.Errorf("still ignored after exec: %x", got)
	}
}

func TestDefaultIgnoredSignalsKeepsHandlers(t *testing.T) {
	must(t, DefaultIgnoredSignals())
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	// The runtime handles these for itself in every program.
	want := signalBit(unix.SIGSEGV) | signalBit(unix.SIGURG)
	if got := statusMask(t, string(status), "SigCgt"); got&want != want {
		t.Errorf("handlers %x, want %x among them", got, want)
	}
}

func TestNormalThread(t *testing.T) {
	leaktest.Check(t)
	type state struct {
		mask         uint64
		nice, ioprio int
	}
	var before, after state
	look := func() (s state) {
		text, err := os.ReadFile("/proc/thread-self/status")
		if err != nil {
			t.Error(err)
			return s
		}
		s.mask = statusMask(t, string(text), "SigBlk")
		raw, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
		s.nice = 20 - raw // getpriority(2): the call itself answers 20-nice
		prio, _, _ := unix.RawSyscall(unix.SYS_IOPRIO_GET, IOPrioProcess, 0, 0)
		s.ioprio = int(prio)
		return s
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		blocked := unix.Sigset_t{}
		blocked.Val[0] = signalBit(unix.SIGINT) | signalBit(unix.SIGTSTP)
		if err := errors.Join(
			unix.PthreadSigmask(unix.SIG_BLOCK, &blocked, nil),
			unix.Setpriority(unix.PRIO_PROCESS, 0, 7),
		); err != nil {
			t.Error(err)
			return
		}
		const idle = 3 << 13
		unix.RawSyscall(unix.SYS_IOPRIO_SET, IOPrioProcess, 0, idle)
		before = look()
		if err := NormalThread(); err != nil {
			t.Error(err)
		}
		after = look()
	}()
	<-done
	if before.mask == 0 || before.nice != 7 || before.ioprio != 3<<13 {
		t.Fatalf("the thread was not odd before: %+v", before)
	}
	if want := (state{mask: 0, nice: 0, ioprio: 2<<13 | 4}); after != want {
		t.Errorf("thread is %+v, want %+v", after, want)
	}
}

func TestCloseOnExecFrom(t *testing.T) {
	leaktest.Check(t)
	file := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(file, []byte("secret"), 0o600))
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=close-on-exec")
	cmd.ExtraFiles = []*os.File{f} // descriptor 3, as a careless parent leaves it
	if out, err := cmd.Output(); err == nil || len(out) > 0 {
		t.Errorf("descriptor 3 came through exec: %q, %v", out, err)
	}
}

// A pidfd names one process for good.
func TestPidfdOfFinishedProcess(t *testing.T) {
	leaktest.Check(t)
	cmd := exec.Command("/bin/sleep", "60")
	must(t, cmd.Start())
	fd, err := OpenPidfd(cmd.Process.Pid)
	must(t, err)
	defer unix.Close(fd)
	must(t, SignalPidfd(fd, unix.SIGTERM))
	if err := cmd.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("child ended with %v", err)
	}
	if err := SignalPidfd(fd, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("signal after the end: %v, want ESRCH", err)
	}
	if _, err := OpenPidfd(1 << 30); !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("open of no process: %v", err)
	}
}

func TestSubreap(t *testing.T) {
	must(t, Subreap())
	var on int32
	must(t, unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&on)), 0, 0, 0))
	if on != 1 {
		t.Error("not a subreaper")
	}
	must(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0))
}

func TestTCPStateOfLivePeer(t *testing.T) {
	leaktest.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	out, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	defer out.Close()
	in, err := ln.Accept()
	must(t, err)
	defer in.Close()
	_, err = out.Write([]byte("x"))
	must(t, err)
	_, err = in.Read(make([]byte, 1))
	must(t, err)
	conn, err := out.(*net.TCPConn).SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) {
		h, err := TCPState(fd)
		if err != nil || h.Unanswered != 0 || h.LastAck > patience {
			t.Errorf("state %+v, %v; want nothing unanswered", h, err)
		}
	}))
}
