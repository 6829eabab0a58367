package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
)

const (
	// healthTarget is for the slowest of a hundred answers under load, in ms: a
	// host that asks once a second gives up much later.
	healthTarget = 250
	// healthGap is between two questions.
	healthGap = 5 * time.Millisecond
)

// distress is something that a guest may do to the daemon.
type distress struct {
	name  string
	begin func(b *bench, d *server) (end func(), err error)
}

var distresses = []distress{
	{"nothing", func(*bench, *server) (func(), error) { return func() {}, nil }},
	{"processes that fork all the time", forkStorm},
	{"a full disk", fullDisk},
	{"attached streams", attachedStreams},
	{"half-open connections", halfOpen},
}

// healthUnderLoad measures how soon the daemon answers GET /health, each time
// on a new connection, while the guest does its worst.
func healthUnderLoad(b *bench) ([]row, error) {
	return isolated(func() ([]row, error) {
		var rows []row
		for _, trouble := range distresses {
			p99, err := b.healthDuring(trouble)
			if err != nil {
				return rows, fmt.Errorf("%s: %w", trouble.name, err)
			}
			rows = append(rows, absolute("health p99 beside "+trouble.name, "ms", millis(p99), healthTarget))
		}
		return rows, nil
	})
}

func (b *bench) healthDuring(trouble distress) (time.Duration, error) {
	d, err := b.daemon()
	if err != nil {
		return 0, err
	}
	defer d.stop()
	end, err := trouble.begin(b, d)
	if err != nil {
		return 0, err
	}
	defer end()
	var took []time.Duration
	for range pick(b, 1000, 50) {
		time.Sleep(healthGap)
		one, err := askHealth(d.addr)
		if err != nil {
			return 0, err
		}
		took = append(took, one)
	}
	slices.Sort(took)
	return took[len(took)*99/100], nil
}

func askHealth(addr string) (time.Duration, error) {
	began := time.Now()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := c.Write(healthRequest); err != nil {
		return 0, err
	}
	var answer [512]byte
	n, err := c.Read(answer[:])
	if err == nil && !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 ")) {
		err = fmt.Errorf("got %q", answer[:n])
	}
	return time.Since(began), err
}

// shellCommand runs a script through the daemon until end, which kills all that
// it has started.
func shellCommand(d *server, script string) (pid int, end func(), err error) {
	c, err := dial(d.addr, readBuffer)
	if err != nil {
		return 0, nil, err
	}
	pid, err = c.start(processconnect.ProcessStartProcedure, envelope(command("/bin/sh", "-c", script)))
	if err != nil {
		c.close()
		return 0, nil, err
	}
	return pid, func() {
		c.close()
		killer, err := dial(d.addr, 4<<10)
		if err != nil {
			return
		}
		defer killer.close()
		_ = killer.call(processconnect.ProcessSendSignalProcedure,
			message(&pb.SendSignalRequest{Process: selector(pid), Signal: pb.Signal_SIGNAL_SIGKILL}))
	}, nil
}

// forkStorm is a fork bomb with a bound, since nothing here bounds it: a
// hundred shells that start programs all the time.
func forkStorm(b *bench, d *server) (func(), error) {
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do (while :; do /bin/true; done) & i=$((i+1)); done; wait", pick(b, 100, 8))
	_, end, err := shellCommand(d, script)
	return end, err
}

// fullDisk has a program write to a filesystem that is full: /run and /var are,
// for the daemon as well. It has been started in the mount namespace of this
// thread, and sees what is mounted there.
func fullDisk(_ *bench, d *server) (func(), error) {
	for _, dir := range []string{"/run", "/var"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			return nil, fmt.Errorf("mount %s: %w", dir, err)
		}
		if err := fill(dir + "/full"); err != nil {
			return nil, err
		}
	}
	_, end, err := shellCommand(d, "while :; do head -c 100000 /dev/zero > /run/more; done 2>/dev/null")
	return func() {
		if end != nil {
			end()
		}
		for _, dir := range []string{"/run", "/var"} {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}, err
}

func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 64<<10)); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// attachedStreams is many readers of one command that says something now and
// then.
func attachedStreams(b *bench, d *server) (func(), error) {
	pid, end, err := shellCommand(d, "while :; do echo a line; sleep 0.2; done")
	if err != nil {
		return nil, err
	}
	var open []*client
	endAll := func() {
		for _, c := range open {
			c.close()
		}
		end()
	}
	for range pick(b, 2000, 50) {
		c, err := dial(d.addr, 1<<10)
		if err == nil {
			open = append(open, c)
			_, err = c.start(processconnect.ProcessConnectProcedure, envelope(&pb.ConnectRequest{Process: selector(pid)}))
		}
		if err != nil {
			endAll()
			return nil, err
		}
		go func() { _, _ = io.Copy(io.Discard, c.conn) }() // ends with the connection
	}
	return endAll, nil
}

// halfOpen is many connections that have begun a request and say no more.
func halfOpen(b *bench, d *server) (func(), error) {
	var open []net.Conn
	endAll := func() {
		for _, c := range open {
			_ = c.Close()
		}
	}
	for range pick(b, 10_000, 100) {
		c, err := net.Dial("tcp", d.addr)
		if err == nil {
			open = append(open, c)
			_, err = io.WriteString(c, "GET /health HTTP/1.1\r\nHost: ")
		}
		if err != nil {
			endAll()
			return nil, err
		}
	}
	return endAll, nil
}
