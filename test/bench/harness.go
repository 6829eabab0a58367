package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startLimit bounds a start, stopLimit an end in order.
	startLimit = 10 * time.Second
	stopLimit  = 5 * time.Second
	// pollGap is between two looks whether a server answers: short beside a
	// start, and long enough to leave it the processor.
	pollGap = 100 * time.Microsecond
)

type config struct {
	quick      bool
	only       string
	cgroupRoot string
	progress   io.Writer
}

// bench holds what all figures use: the built programs and the daemon's
// cgroup. open makes it, close removes what it made.
type bench struct {
	config
	dir   string // of the programs
	group string // cgroup root of the daemons
}

// open builds the daemon and the floors, alike: as a release is built.
func open(cfg config) (*bench, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("find module: %w", err)
	}
	dir, err := os.MkdirTemp("", "envd-bench-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	b := &bench{config: cfg, dir: dir}
	built := filepath.Join(dir, "built")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", built+"/",
		"./cmd/envd", "./test/bench/child", "./test/bench/floor/...")
	build.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.close()
		return nil, fmt.Errorf("build: %w\n%s", err, out)
	}
	// Nobody runs a linker's output, of which the page cache holds single pages
	// because it was mapped as it was written: an image holds a copy.
	if err := os.CopyFS(dir, os.DirFS(built)); err != nil {
		b.close()
		return nil, fmt.Errorf("install: %w", err)
	}
	b.group = filepath.Join(cfg.cgroupRoot, "envd-bench-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(b.group, 0o755); err != nil {
		b.close()
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return b, nil
}

func (b *bench) close() {
	if b.group != "" {
		_ = unix.Rmdir(b.group) // the daemons have removed what they made
	}
	_ = os.RemoveAll(b.dir)
}

// program is the path of a built program.
func (b *bench) program(name string) string { return filepath.Join(b.dir, name) }

// pick answers full, or quick in quick mode.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// server is a started program that listens: the daemon or a floor.
type server struct {
	cmd  *exec.Cmd
	addr string
	in   io.WriteCloser
	out  *bufio.Reader
	log  bytes.Buffer // standard error
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// stop ends the program in order, or else by force.
func (s *server) stop() {
	_ = s.in.Close()
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	force := time.AfterFunc(stopLimit, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait() // how it ended was our doing
	force.Stop()
}

// spawn starts a built program. With the bench it ends, whatever happens.
func (b *bench) spawn(name string, args ...string) (*server, error) {
	s := &server{cmd: exec.Command(b.program(name), args...)}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	s.cmd.Stderr = &s.log
	in, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.in, s.out = in, bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return s, nil
}

// daemon starts the daemon and waits until it answers.
func (b *bench) daemon() (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s, err := b.spawn("envd", "--isnotfc", "--cgroup-root", b.group, "--port", strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if err := s.awaitHealth(); err != nil {
		s.stop()
		return nil, fmt.Errorf("%w\n%s", err, s.log.String())
	}
	return s, nil
}

// floor starts a floor that prints the address it listens on.
func (b *bench) floor(name string, args ...string) (*server, error) {
	s, err := b.spawn(name, args...)
	if err != nil {
		return nil, err
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("start floor %s: %w\n%s", name, err, s.log.String())
	}
	s.addr = strings.TrimSpace(line)
	return s, nil
}

// freePort finds a port that is free now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

var healthRequest = []byte("GET /health HTTP/1.1\r\nHost: bench\r\n\r\n")

// awaitHealth waits for the first answer to GET /health.
func (s *server) awaitHealth() error {
	for end := time.Now().Add(startLimit); time.Now().Before(end); time.Sleep(pollGap) {
		conn, err := net.Dial("tcp", s.addr)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("await health: %w", err)
		}
		defer conn.Close()
		if _, err := conn.Write(healthRequest); err != nil {
			return fmt.Errorf("await health: %w", err)
		}
		var answer [512]byte
		n, err := conn.Read(answer[:])
		if err != nil {
			return fmt.Errorf("await health: %w", err)
		}
		if !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("await health: got %q", answer[:n])
		}
		return nil
	}
	return fmt.Errorf("await health: nothing after %v", startLimit)
}
