package linux

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv names the part that the re-executed test binary plays.
const helperEnv = "LINUX_TEST_HELPER"

// patience is how long an expected event may take on a busy machine.
const patience = 10 * time.Second

func TestMain(m *testing.M) {
	switch part := os.Getenv(helperEnv); part {
	case "":
		os.Exit(m.Run())
	case "default-signals":
		if err := DefaultIgnoredSignals(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		execCat("/proc/self/status")
	case "close-on-exec":
		if err := CloseOnExecFrom(3); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		execCat("/proc/self/fd/3")
	default:
		fmt.Fprintln(os.Stderr, "unknown helper", part)
		os.Exit(2)
	}
}

// execCat becomes cat, which shows what exec lets through.
func execCat(file string) {
	err := unix.Exec("/bin/cat", []string{"cat", file}, os.Environ())
	fmt.Fprintln(os.Stderr, "exec cat:", err)
	os.Exit(1)
}

// statusMask reads a signal mask line of a /proc/pid/status text.
func statusMask(t *testing.T, status, key string) uint64 {
	t.Helper()
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return mask
		}
	}
	t.Fatalf("no %s in %q", key, status)
	return 0
}

func signalBit(sig unix.Signal) uint64 { return 1 << (sig - 1) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCloseOnExec checks the flag without touching the file's mode.
func wantCloseOnExec(t *testing.T, f *os.File) {
	t.Helper()
	flags := fcntl(t, f, unix.F_GETFD)
	if flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("%s is not close-on-exec", f.Name())
	}
}

func nonblocking(t *testing.T, f *os.File) bool {
	t.Helper()
	return fcntl(t, f, unix.F_GETFL)&unix.O_NONBLOCK != 0
}

// fcntl asks through SyscallConn: Fd would change the mode that it looks at.
func fcntl(t *testing.T, f *os.File, cmd int) (v int) {
	t.Helper()
	control(t, f, func(fd uintptr) error {
		var err error
		v, err = unix.FcntlInt(fd, cmd, 0)
		return err
	})
	return v
}

func control(t *testing.T, f *os.File, do func(fd uintptr) error) {
	t.Helper()
	conn, err := f.SyscallConn()
	must(t, err)
	var doErr error
	must(t, conn.Control(func(fd uintptr) { doErr = do(fd) }))
	must(t, doErr)
}
