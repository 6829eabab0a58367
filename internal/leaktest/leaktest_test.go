package leaktest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorder is a test that notes how it fails, and has its clean-ups run by end.
type recorder struct {
	testing.TB
	cleanups []func()
	failures []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Fatalf(f string, a ...any) { r.Errorf(f, a...) }
func (r *recorder) Errorf(f string, a ...any) { r.failures = append(r.failures, fmt.Sprintf(f, a...)) }

// end runs the clean-ups and returns what the test failed with.
func (r *recorder) end() string {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return strings.Join(r.failures, "\n")
}

func TestLeaks(t *testing.T) {
	for _, tc := range []struct {
		name string
		leak func(t *testing.T) // leaks until the end of t
		want string             // of the report, a regular expression
	}{
		{"goroutine", leakGoroutine, `goroutine \d+ \[chan receive\]:\n\t.*leaktest\.blockHere\(`},
		{"file", func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "left"))
			mustClose(t, f, err)
		}, `descriptor \d+ → /.*/left`},
		{"listener", func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			mustClose(t, l, err)
		}, `descriptor \d+ → socket:\[\d+\] 127\.0\.0\.1:\d+`},
		{"connection", leakConnection, `descriptor \d+ → socket:\[\d+\] 127\.0\.0\.1:\d+ connected to 127\.0\.0\.1:\d+`},
		{"unix socket", func(t *testing.T) {
			l, err := net.Listen("unix", "@leaktest")
			mustClose(t, l, err)
		}, `descriptor \d+ → socket:\[\d+\] unix "@leaktest"`},
		{"IPv6 socket", func(t *testing.T) {
			leakDescriptor(t, func() (int, error) {
				return unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			})
		}, `descriptor \d+ → socket:\[\d+\] \[::\]:0`},
		{"netlink socket", func(t *testing.T) {
			leakDescriptor(t, func() (int, error) {
				return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
			})
		}, `descriptor \d+ → socket:\[\d+\] Netlink`},
		{"epoll beside the runtime's", func(t *testing.T) {
			leakDescriptor(t, func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) })
		}, `descriptor \d+ → anon_inode:\[eventpoll\]`},
		{"child", func(t *testing.T) { leakChild(t) }, `child \d+ \(sleep\) in state [RSD] sleep 60`},
		{"zombie", leakZombie, `child \d+ \(sleep\) in state Z`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &recorder{}
			check(r, 100*time.Millisecond)
			tc.leak(t)
			report := r.end()
			if !regexp.MustCompile(tc.want).MatchString(report) {
				t.Errorf("report:\n%s\nwant a match of %s", report, tc.want)
			}
			if n := strings.Count(report, "\n") - strings.Count(report, "\n\t"); n > 2 {
				t.Errorf("%d leaks in the report:\n%s", n, report)
			}
		})
	}
}

func TestNoLeaks(t *testing.T) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, r *recorder)
	}{
		{"what was there before", func(*testing.T, *recorder) {}},
		{"first signal.Notify", func(*testing.T, *recorder) {
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGUSR1)
			signal.Stop(c)
		}},
		{"later clean-up", func(t *testing.T, r *recorder) {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			r.Cleanup(func() { _ = f.Close() })
		}},
		{"slow end", func(t *testing.T, _ *recorder) {
			cmd := exec.Command("sleep", "0.2")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() { _ = cmd.Wait() }()
		}},
		{"parallel subtests", func(t *testing.T, _ *recorder) {
			t.Run("group", func(t *testing.T) {
				for range 3 {
					t.Run("", func(t *testing.T) { t.Parallel() })
				}
			})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leakGoroutine(t)
			leakConnection(t)
			leakChild(t)
			r := &recorder{}
			Check(r)
			tc.run(t, r)
			if report := r.end(); report != "" {
				t.Error(report)
			}
		})
	}
}

// TestCheck is the real thing: it fails if Check finds what is not there.
func TestCheck(t *testing.T) {
	Check(t)
	done := make(chan struct{})
	go close(done)
	<-done
}

func TestParseStat(t *testing.T) {
	const after = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	for _, tc := range []struct{ stat, id, text string }{
		{"12 (cat)" + after, "child 12 of 4711", "child 12 (cat) in state S"},
		{"12 (a ) b (c)" + after, "child 12 of 4711", "child 12 (a ) b (c) in state S"},
		{"12 (cat", "", ""},
		{"12 (cat) S 1 2", "", ""},
		{"", "", ""},
	} {
		id, text, err := parseStat(tc.stat)
		if id != tc.id || text != tc.text || (err == nil) == (tc.id == "") {
			t.Errorf("parseStat(%q) = %q, %q, %v; want %q, %q", tc.stat, id, text, err, tc.id, tc.text)
		}
	}
}

func leakGoroutine(t *testing.T) {
	release, done := make(chan struct{}), make(chan struct{})
	go blockHere(release, done)
	t.Cleanup(func() {
		close(release)
		<-done
	})
}

// blockHere is a name to look for in a report.
func blockHere(release <-chan struct{}, done chan<- struct{}) {
	<-release
	close(done)
}

func leakConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	mustClose(t, c, err)
	peer, err := l.Accept()
	mustClose(t, peer, err)
}

func leakDescriptor(t *testing.T, open func() (int, error)) {
	t.Helper()
	fd, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
}

func leakChild(t *testing.T) *os.Process {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process
}

func leakZombie(t *testing.T) {
	p := leakChild(t)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	// WNOWAIT waits for the end and leaves the zombie.
	if err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// mustClose closes what was opened at the end of t.
func mustClose(t *testing.T, c interface{ Close() error }, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
}
