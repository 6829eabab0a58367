package vfork

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"
)

const helperEnv = "VFORK_TEST_HELPER=1"

func TestMain(m *testing.M) {
	if os.Getenv("VFORK_TEST_HELPER") != "" {
		fmt.Print(os.Args[1])
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// list is calls, and what they point to.
type list struct {
	calls []Call
	kept  []any
}

func (l *list) add(mayFail uintptr, number uintptr, args ...uintptr) {
	c := Call{Number: number, MayFail: mayFail}
	copy(c.Args[:], args)
	l.calls = append(l.calls, c)
}

func (l *list) text(s string) uintptr {
	p, err := syscall.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	l.kept = append(l.kept, p)
	return uintptr(unsafe.Pointer(p))
}

func (l *list) vector(s ...string) uintptr {
	p, err := syscall.SlicePtrFromStrings(s)
	if err != nil {
		panic(err)
	}
	l.kept = append(l.kept, &p[0])
	return uintptr(unsafe.Pointer(&p[0]))
}

// start makes a process with these calls, and waits for its end.
func (l *list) start(t *testing.T, files int) (*Process, syscall.WaitStatus) {
	t.Helper()
	p := new(Process)
	if errno := p.Start(-1, files, l.calls); errno != 0 {
		t.Fatalf("start: %v", syscall.Errno(errno))
	}
	runtime.KeepAlive(l)
	if p.Pid == 0 || p.Pidfd <= 2 {
		t.Errorf("pid %d, pidfd %d", p.Pid, p.Pidfd)
	}
	if err := syscall.Close(int(p.Pidfd)); err != nil {
		t.Errorf("close pidfd: %v", err)
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(int(p.Pid), &ws, 0, nil); err != nil || pid != int(p.Pid) {
		t.Fatalf("wait: %d, %v", pid, err)
	}
	return p, ws
}

// TestStart checks that the calls are made in turn, on past those that may fail,
// with all of their arguments, and that the program comes last.
func TestStart(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	var l list
	const missing = 1 << 16 // no such call
	l.add(1, missing)
	l.add(1, syscall.SYS_CHDIR, l.text("/nonexistent"))
	l.add(0, syscall.SYS_DUP3, w.Fd(), 1, 0)
	l.add(0, syscall.SYS_WRITE, 1, l.text("one "), 4)
	l.add(0, syscall.SYS_EXECVE, l.text(exe), l.vector("helper", "two"), l.vector(helperEnv, "GORACE=atexit_sleep_ms=0"))
	p, ws := l.start(t, int(w.Fd())+1)
	_ = w.Close()
	text, err := io.ReadAll(r)
	if string(text) != "one two" || err != nil || p.Errno != 0 {
		t.Errorf("printed %q, %v; errno %v", text, err, syscall.Errno(p.Errno))
	}
	if ws.ExitStatus() != 3 {
		t.Errorf("wait status %#x", ws)
	}
}

// TestFailedCall checks that the first call that fails is told, and ends it.
func TestFailedCall(t *testing.T) {
	var l list
	l.add(0, syscall.SYS_SETSID)
	l.add(1, syscall.SYS_CHDIR, l.text("/nonexistent"))
	l.add(0, syscall.SYS_CHDIR, l.text(strings.Repeat("x", 300)))
	l.add(0, syscall.SYS_CHDIR, l.text("/nonexistent"))
	p, ws := l.start(t, 3)
	if p.Step != 2 || syscall.Errno(p.Errno) != syscall.ENAMETOOLONG {
		t.Errorf("call %d failed with %v", p.Step, syscall.Errno(p.Errno))
	}
	if ws.ExitStatus() != 127 {
		t.Errorf("wait status %#x", ws)
	}
}

// TestDescriptors checks that the process has the low descriptors and no other,
// and that what it does with its own leaves this one's alone.
func TestDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	low, high := min(r.Fd(), w.Fd()), max(r.Fd(), w.Fd())
	var l list
	l.add(0, syscall.SYS_CLOSE, low)
	l.add(0, syscall.SYS_CLOSE, high)
	if p, _ := l.start(t, int(high)); p.Step != 1 || syscall.Errno(p.Errno) != syscall.EBADF {
		t.Errorf("call %d failed with %v", p.Step, syscall.Errno(p.Errno))
	}
	if _, err := w.WriteString("x"); err != nil {
		t.Errorf("the descriptors of this process: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if text, err := io.ReadAll(r); string(text) != "x" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
}

// TestNoProcess checks a clone that fails.
func TestNoProcess(t *testing.T) {
	var l list
	l.add(0, syscall.SYS_SETSID)
	p := new(Process)
	if errno := p.Start(1<<20, 3, l.calls); syscall.Errno(errno) != syscall.EBADF || p.Pid != 0 {
		t.Errorf("in a cgroup that is none: %v, pid %d", syscall.Errno(errno), p.Pid)
	}
}

// TestPidBeforeItRuns checks that the pid is there while the process is still on
// its way, and that Go code runs meanwhile, on the one processor it has.
func TestPidBeforeItRuns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var l list
	l.add(0, syscall.SYS_READ, r.Fd(), l.text("x"), 1) // waits
	l.add(0, syscall.SYS_CLOSE, 1<<20)
	p := new(Process)
	done := make(chan syscall.Errno)
	go func() { done <- syscall.Errno(p.Start(-1, int(r.Fd())+1, l.calls)) }()
	for atomic.LoadInt32(&p.Pid) == 0 {
		runtime.Gosched()
	}
	runtime.GC() // would wait for a thread that runs Go code
	pid := int(atomic.LoadInt32(&p.Pid))
	if _, err := w.WriteString("x"); err != nil {
		t.Error(err)
	}
	if errno := <-done; errno != 0 {
		t.Fatalf("start: %v", errno)
	}
	_ = w.Close()
	if p.Step != 1 || syscall.Errno(p.Errno) != syscall.EBADF {
		t.Errorf("call %d failed with %v", p.Step, syscall.Errno(p.Errno))
	}
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Errorf("wait: %v", err)
	}
	_ = syscall.Close(int(p.Pidfd))
}

func TestFileLimit(t *testing.T) {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil || FileLimit == 0 || FileLimit > now.Max {
		t.Errorf("%d, of at most %d, %v", FileLimit, now.Max, err)
	}
}
