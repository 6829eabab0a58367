// Package sdk lets the published E2B SDKs drive the built daemon: what works
// here works for programs that use them.
//
// The tests themselves are in the SDKs' languages, below js and py, and print
// TAP; each becomes a subtest here. The SDKs talk to port 49983, so daemon and
// tests run in a network namespace of their own: this test binary is executed
// in it again. It also has a mount namespace, in which root has an empty home:
// the SDKs run login shells, and kill them, and what a machine's owner does in a
// profile is neither to slow the tests down nor to be killed by them. What npm
// and pip install is pinned and kept below the tests' cache, so that only the
// first run on a machine needs the network.
package sdk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	daemonAddr = "127.0.0.1:49983"
	// limit bounds a suite. Nothing comes near it unless it hangs.
	limit = 4 * time.Minute
	// insideVar tells the executed test that it is in its own namespace. It
	// holds the directory with everything built and installed.
	insideVar = "ENVD_SDK_INSIDE"
	// programVar names the program that runs the tests.
	programVar = "ENVD_SDK_PROGRAM"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(insideVar); dir != "" {
		if err := settle(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// settle prepares the namespaces that this process is alone in.
func settle(dir string) error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("bring loopback up: %w: %s", err, out)
	}
	home, accounts := filepath.Join(dir, "home"), filepath.Join(dir, "passwd")
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return err
	}
	passwd = bytes.Replace(passwd, []byte(":/root:"), []byte(":"+home+":"), 1)
	if err := errors.Join(os.Mkdir(home, 0o700), os.WriteFile(accounts, passwd, 0o644)); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount(accounts, "/etc/passwd", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("give root another home: %w", err)
	}
	return nil
}

func TestJavaScript(t *testing.T) {
	if dir := os.Getenv(insideVar); dir != "" {
		startDaemon(t, dir)
		run := []string{os.Getenv(programVar), "--test-timeout=60000", "--test-reporter=tap"}
		runSuite(t, append(run, filepath.Join(dir, "js/suite.mjs")), 55)
		runSuite(t, append(run, filepath.Join(dir, "js/secured.mjs")), 6)
		return
	}
	dir := t.TempDir()
	link(t, install(t, "js"), filepath.Join(dir, "js"))
	isolated(t, dir, nodeProgram(t))
}

func TestPython(t *testing.T) {
	if dir := os.Getenv(insideVar); dir != "" {
		startDaemon(t, dir)
		runSuite(t, []string{os.Getenv(programVar), "py/suite.py"}, 10)
		return
	}
	isolated(t, t.TempDir(), python(t))
}

// buildDaemon builds the daemon into dir, with the race detector.
func buildDaemon(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", dir, "./cmd/envd")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

func link(t *testing.T, to, name string) {
	t.Helper()
	if err := os.Symlink(to, name); err != nil {
		t.Fatal(err)
	}
}

// isolated executes this test again in namespaces of its own, with the daemon
// in dir and a program that can run the SDK's language.
func isolated(t *testing.T, dir, program string) {
	t.Helper()
	buildDaemon(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideVar+"="+dir, programVar+"="+program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	// Its subtests count here, too.
	for _, line := range strings.Split(string(out), "\n") {
		verdict, name, ok := strings.Cut(strings.TrimPrefix(line, "    --- "), ": "+t.Name()+"/")
		if !ok || !strings.HasPrefix(line, "    --- ") {
			continue
		}
		name, _, _ = strings.Cut(name, " (")
		t.Run(name, func(t *testing.T) {
			if verdict != "PASS" {
				t.Error("see the output of the whole")
			}
		})
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// startDaemon starts the daemon on its default port.
func startDaemon(t *testing.T, dir string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(dir, "envd"), "--isnotfc", "--cgroup-root", "/nonexistent")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		if err != nil || strings.Contains(log.String(), "DATA RACE") || strings.Contains(log.String(), "panic") {
			t.Errorf("the daemon ended %v", err)
		}
		if t.Failed() {
			t.Logf("daemon's log:\n%s", &log)
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", daemonAddr)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("daemon does not listen: %v\n%s", err, &log)
		}
	}
}

// runSuite runs one program of tests and reports each of them. There are least
// of them: none gets lost.
func runSuite(t *testing.T, command []string, least int) {
	t.Helper()
	tmp := t.TempDir()
	for _, d := range []string{filepath.Dir(tmp), tmp} { // other users work below
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "ENVD_URL=")
	out, err := cmd.CombinedOutput()
	results, planned := parseTAP(out)
	for _, r := range results {
		t.Run(r.name, func(t *testing.T) {
			if !r.ok {
				t.Errorf("%s", r.details)
			}
		})
	}
	if err != nil && !t.Failed() || len(results) != planned || planned < least {
		t.Errorf("%s: %v; %d results of %d, at least %d expected\n%s", command, err, len(results), planned, least, out)
	}
}

// result is one test's.
type result struct {
	name    string
	ok      bool
	details string
}

var (
	tapResult = regexp.MustCompile(`^(not )?ok \d+ - (.*?)( # (?:SKIP|TODO).*)?$`)
	tapPlan   = regexp.MustCompile(`^1\.\.(\d+)$`)
)

// parseTAP reads what node's test runner prints: a line for each test, details
// below it, and the plan. A skipped test counts as failed.
func parseTAP(out []byte) (results []result, planned int) {
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		line := sc.Text()
		if m := tapResult.FindStringSubmatch(line); m != nil {
			r := result{name: m[2], ok: m[1] == "" && m[3] == ""}
			r.details = line + "\n"
			results = append(results, r)
		} else if m := tapPlan.FindStringSubmatch(line); m != nil {
			planned, _ = strconv.Atoi(m[1]) // digits
		} else if n := len(results); n > 0 && strings.HasPrefix(line, " ") {
			results[n-1].details += line + "\n"
		}
	}
	return results, planned
}

func TestParseTAP(t *testing.T) {
	const text = `TAP version 13
# Subtest: a
ok 1 - a
  ---
  duration_ms: 1
  ...
not ok 2 - b - c
  ---
  error: 'no'
  ...
ok 3 - d # SKIP
1..3
# tests 3
`
	results, planned := parseTAP([]byte(text))
	if planned != 3 || len(results) != 3 {
		t.Fatalf("%d results of %d", len(results), planned)
	}
	for i, want := range []result{{name: "a", ok: true}, {name: "b - c"}, {name: "d"}} {
		if got := results[i]; got.name != want.name || got.ok != want.ok {
			t.Errorf("got %+v, expected %+v", got, want)
		}
	}
	if !strings.Contains(results[1].details, "error: 'no'") {
		t.Errorf("details %q", results[1].details)
	}
}
