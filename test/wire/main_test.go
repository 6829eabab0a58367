// Package wire runs one suite of scenarios against the built daemon through
// every kind of client: Connect with JSON and binary messages over HTTP/1.1 and
// HTTP/2, gRPC by grpc-go, gRPC-Web, and a client written out by hand that
// sends what the published SDK sends. Beside that it sends bad input as bytes.
//
// TestMain builds the daemon with the race detector and starts it: with a
// cgroup hierarchy and without, and with --user-access. With ENVD_URL in the environment the
// scenarios run against the daemon there instead; those about additions that
// its /health does not name, and those that look into the process, are passed
// over.
//
// It is a module of its own so that grpc-go is no dependency of the daemon.
package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/test/cgroups"
)

// limit bounds whatever a test waits for. Nothing comes near it unless it is
// broken: it is for machines that do much else as well.
const limit = 2 * time.Minute

// daemon is a running daemon. Those that TestMain started have a process.
type daemon struct {
	name     string
	program  string               // "" for the one that TestMain built
	attr     *syscall.SysProcAttr // how it is started; nil for plainly
	base     string               // URL
	features []string

	cmd     *exec.Cmd // nil: somebody else's
	log     *logBuffer
	cgroups string // root directory; "" for none
	access  bool   // holds requests about files to what their user may do
}

// daemons are what the scenarios run against.
var (
	daemons []*daemon
	// fileDaemons are what those about files run against: with the daemon's
	// reach, and with the user's.
	fileDaemons []*daemon
	program     string // "" with ENVD_URL
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv(shakeVar) != "" {
		return shakeMain(os.Args[1:])
	}
	flag.Parse()
	// Most scenarios wait: for timers, drains and one another.
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		_ = flag.Set("test.parallel", "8")
	}
	raiseDescriptors()
	stop, err := startAll()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// startAll starts the daemons, or finds the one in ENVD_URL.
func startAll() (stop func() error, err error) {
	if base := os.Getenv("ENVD_URL"); base != "" {
		d := &daemon{name: "given", base: strings.TrimSuffix(base, "/")}
		daemons, fileDaemons = append(daemons, d), append(fileDaemons, d)
		return func() error { return nil }, d.readFeatures()
	}
	dir, err := os.MkdirTemp("", "envd-wire-")
	if err != nil {
		return nil, err
	}
	if program, err = build(dir); err != nil {
		return nil, err
	}
	// A group of our own: other daemons may use the same mount.
	root := filepath.Join(cgroups.Mount(), "envd-wire-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	for _, d := range []*daemon{{name: "cgroups", cgroups: root}, {name: "plain"}} {
		if err := d.start(); err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
	}
	access := &daemon{name: "user-access", access: true}
	if err := access.start("--user-access"); err != nil {
		return nil, err
	}
	fileDaemons = []*daemon{daemons[1], access}
	return func() error {
		var errs []string
		for _, d := range append(daemons, access) {
			if err := d.stop(); err != nil {
				errs = append(errs, fmt.Sprintf("daemon %s: %v\n%s", d.name, err, d.log.tail()))
			}
		}
		if err := removeGroups(root); err != nil {
			errs = append(errs, err.Error())
		}
		_ = os.RemoveAll(dir)
		if len(errs) > 0 {
			return fmt.Errorf("%s", strings.Join(errs, "\n"))
		}
		return nil
	}, nil
}

// build builds the daemon, with the race detector where there is a C compiler.
func build(dir string) (string, error) {
	out := filepath.Join(dir, "envd")
	args := []string{"build", "-race", "-ldflags", "-X main.commit=0123abc", "-o", out, "./cmd/envd"}
	if _, err := exec.LookPath("gcc"); err != nil {
		args = slices.DeleteFunc(args, func(a string) bool { return a == "-race" })
		fmt.Fprintln(os.Stderr, "no C compiler: the daemon runs without the race detector")
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build daemon: %w\n%s", err, text)
	}
	return out, nil
}

// raiseDescriptors allows this process, and the daemons after it, as many
// descriptors as the machine lets them have.
func raiseDescriptors() {
	var rl syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &rl) == nil {
		rl.Cur = rl.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &rl)
	}
}

// logBuffer keeps what a daemon logs.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
	done chan struct{}
}

func (l *logBuffer) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.WriteString(line + "\n")
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) tail() string {
	s := l.String()
	return s[max(0, len(s)-8<<10):]
}

var addressInLog = regexp.MustCompile(`address=\S*:(\d+)`)

// start starts the built binary on a port of the kernel's choice.
func (d *daemon) start(flags ...string) error {
	root := d.cgroups
	if root == "" {
		root = "/nonexistent"
	}
	path := d.program
	if path == "" {
		path = program
	}
	d.cmd = exec.Command(path, append([]string{"--isnotfc", "--port", "0", "--cgroup-root", root}, flags...)...)
	d.cmd.SysProcAttr = d.attr
	// Nothing of this may reach a command.
	d.cmd.Env = append(os.Environ(), "ENVD_WIRE_SECRET=leaked")
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	d.cmd.Stderr = w
	if err := d.cmd.Start(); err != nil {
		return err
	}
	_ = w.Close()
	d.log = &logBuffer{done: make(chan struct{})}
	port := make(chan string, 1)
	go func() {
		defer close(d.log.done)
		defer r.Close()
		for sc := bufio.NewScanner(r); sc.Scan(); {
			d.log.add(sc.Text())
			if m := addressInLog.FindStringSubmatch(sc.Text()); m != nil {
				select {
				case port <- m[1]:
				default:
				}
			}
		}
	}()
	select {
	case p := <-port:
		d.base = "http://127.0.0.1:" + p
	case <-d.log.done:
		return fmt.Errorf("daemon ended: %w\n%s", d.cmd.Wait(), d.log)
	case <-time.After(limit):
		return fmt.Errorf("daemon does not listen\n%s", d.log)
	}
	return d.readFeatures()
}

func (d *daemon) readFeatures() error {
	res, err := http.Get(d.base + "/health")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	var h struct{ Features []string }
	_ = json.Unmarshal(b, &h) // another daemon may answer nothing
	d.features = h.Features
	return nil
}

// stop ends the daemon in order. What it reported or left behind is an error.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	kill := time.AfterFunc(limit, func() { _ = d.cmd.Process.Kill() })
	defer kill.Stop()
	err := d.cmd.Wait()
	<-d.log.done
	if err != nil {
		return err
	}
	for _, bad := range []string{"DATA RACE", "panicked", "panic:"} {
		if strings.Contains(d.log.String(), bad) {
			return fmt.Errorf("its log says %q", bad)
		}
	}
	return nil
}

// addr is host:port.
func (d *daemon) addr() string {
	u, err := url.Parse(d.base)
	if err != nil {
		panic(err) // checked by the first request
	}
	return u.Host
}

// ours passes over a test that looks into the daemon's process when it is not
// ours.
func (d *daemon) ours(t *testing.T) {
	t.Helper()
	if d.cmd == nil {
		t.Skip("the daemon is not ours to look into")
	}
}

// needs passes over a test of an addition that a given daemon does not have.
func (d *daemon) needs(t *testing.T, feature string) {
	t.Helper()
	if d.cmd == nil && !slices.Contains(d.features, feature) {
		t.Skipf("the daemon has no %s", feature)
	}
}

// removeGroups removes the group hierarchy below root; a group that is not
// empty is an error.
func removeGroups(root string) error {
	for _, sub := range []string{"wrenn/user/*", "wrenn/pty/*", "wrenn/user", "wrenn/pty", "wrenn", "."} {
		found, _ := filepath.Glob(filepath.Join(root, sub))
		for _, dir := range found {
			if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
				continue
			}
			if err := unix.Rmdir(dir); err != nil {
				return fmt.Errorf("group %s is left behind: %w", dir, err)
			}
		}
	}
	return nil
}
