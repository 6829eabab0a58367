package daemon

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCalmMonitor checks that it is the monitor that gets the slack: the thread
// that sleeps for microseconds while others work. Another would hand it on to
// commands, and be late itself.
func TestCalmMonitor(t *testing.T) {
	tid, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	slack := func(tid int) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	others := slack(os.Getpid())
	var naps int
	for end := time.Now().Add(10 * time.Second); naps < 20; { // this loop is the work
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", tid))
		if err != nil {
			t.Fatal(err)
		}
		switch call, _, _ := strings.Cut(strings.TrimSpace(string(b)), " "); call {
		case fmt.Sprint(unix.SYS_NANOSLEEP):
			naps++
		case fmt.Sprint(unix.SYS_FUTEX), "running":
		default:
			t.Fatalf("thread %d is in system call %s", tid, call)
		}
		if time.Now().After(end) {
			t.Fatalf("thread %d napped %d times", tid, naps)
		}
	}
	if err := calmMonitor(); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[int]string{tid: "500000", os.Getpid(): others} {
		if got := slack(id); got != want {
			t.Errorf("thread %d has a slack of %s ns, want %s", id, got, want)
		}
	}
}
