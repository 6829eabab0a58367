package process

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// helperEnv names the part that the re-executed test binary plays.
	helperEnv = "PROCESS_TEST_HELPER"
	// promptExit spares helpers the second that the race detector sleeps at exit.
	promptExit = "GORACE=atexit_sleep_ms=0"
)

// helpers are the programs that the test binary can be: what a shell cannot
// say, or not exactly. Each gets the arguments after the program's name.
var helpers = map[string]func(args []string){
	"escape":     escapeMain,
	"size":       sizeMain,
	"close-tty":  closeTTYMain,
	"interrupts": interruptsMain,
	"stdin-mode": stdinModeMain,
	"one-byte":   oneByteMain,
}

func TestMain(m *testing.M) {
	part := os.Getenv(helperEnv)
	if part == "" {
		// As the daemon does: what the test's parent left open is not ours.
		check(linux.CloseOnExecFrom(3))
		check(linux.DefaultIgnoredSignals())
		os.Exit(m.Run())
	}
	main, ok := helpers[part]
	if !ok {
		check(fmt.Errorf("no helper %q", part))
	}
	main(os.Args[1:])
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// escapeMain does what the search without cgroups cannot follow: it starts
// itself in a new session without the environment, prints its pid and ends.
func escapeMain(args []string) {
	attr := &os.ProcAttr{
		Env:   []string{helperEnv + "=escape"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &unix.SysProcAttr{Setsid: true},
	}
	if len(args) > 0 && args[0] == "escaped" {
		time.Sleep(time.Minute) // the test kills it
		return
	}
	exe, err := os.Executable()
	check(err)
	escaped, err := os.StartProcess(exe, []string{exe, "escaped"}, attr)
	check(err)
	fmt.Println(escaped.Pid)
}

// sizeMain prints the terminal's size, and again whenever it is told that it
// has changed.
func sizeMain([]string) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	for {
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		check(err)
		fmt.Printf("size %dx%d\n", ws.Col, ws.Row)
		<-changed
	}
}

// closeTTYMain lets go of its terminal for a while and comes back.
func closeTTYMain([]string) {
	for fd := range 3 {
		check(unix.Close(fd))
	}
	time.Sleep(50 * time.Millisecond) // the daemon sees the end, if it is one
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		os.Exit(9)
	}
	fmt.Fprintln(tty, "back")
	os.Exit(7)
}

// interruptsMain counts interrupts and ends after the third.
func interruptsMain([]string) {
	got := make(chan os.Signal, 3)
	signal.Notify(got, unix.SIGINT)
	fmt.Println("ready")
	for i := range 3 {
		<-got
		fmt.Println("interrupt", i+1)
	}
	os.Exit(3)
}

// stdinModeMain tells whether descriptors 0 to 2 block.
func stdinModeMain([]string) {
	for fd := range 3 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		check(err)
		fmt.Println(fd, flags&unix.O_NONBLOCK != 0)
	}
}

// oneByteMain writes the given number of bytes one by one, the streams taking
// turns.
func oneByteMain(args []string) {
	n, err := strconv.Atoi(args[0])
	check(err)
	for i := range n {
		_, err := unix.Write(1+i%2, []byte{byte('a' + i%2)})
		check(err)
	}
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	os.Exit(len(strings.Join(args[1:], "")))
}
