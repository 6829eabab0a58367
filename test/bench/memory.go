package main

import (
	"fmt"
	"time"

	"github.com/wrenn/envd/gen/process/processconnect"
)

const (
	// leftTarget is what may stay of a burst of commands, in KiB.
	leftTarget = 8 << 10
	// settleTime is for what a burst of starts leaves under way.
	settleTime = time.Second
)

// crowd is many idle commands, each with its own open stream.
type crowd interface {
	start() error
	// end ends the commands and waits for the ends of their streams.
	end() error
	// close drops the connections. Again it does nothing.
	close()
}

// idleMemory measures what idle commands cost in the daemon's anonymous memory
// and threads while they run, and in memory after they ended; each command's
// stream has its own HTTP/1.1 connection.
func idleMemory(b *bench) ([]row, error) {
	return b.idleMemory("HTTP/1.1", func(addr string, n int) crowd { return &connections{addr: addr, n: n} })
}

// idleMemoryH2 is idleMemory with all streams on one h2c connection.
func idleMemoryH2(b *bench) ([]row, error) {
	return b.idleMemory("h2c", func(addr string, n int) crowd { return &streams{addr: addr, n: n} })
}

func (b *bench) idleMemory(protocol string, gather func(addr string, n int) crowd) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	// A first command, so that what is loaded once is not counted.
	if _, err := clients(d.addr, 1, time.Millisecond); err != nil {
		return nil, err
	}
	time.Sleep(settleTime)
	before, err := anonymous(d.pid())
	if err != nil {
		return nil, err
	}
	n := pick(b, 500, 50)
	c := gather(d.addr, n)
	defer c.close() // a second time does nothing
	if err := c.start(); err != nil {
		return nil, err
	}
	time.Sleep(settleTime)
	during, err := anonymous(d.pid())
	if err != nil {
		return nil, err
	}
	tasks, err := threads(d.pid())
	if err != nil {
		return nil, err
	}
	if err := c.end(); err != nil {
		return nil, err
	}
	c.close() // what an idle connection costs is another subject
	time.Sleep(pick(b, 30*time.Second, 500*time.Millisecond))
	after, err := anonymous(d.pid())
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%d idle commands, %s", n, protocol)
	left := limit(name+": anonymous after", "KiB", after, before, 1+leftTarget/before)
	left.target = "<= floor + 8 MiB" // the floor is before
	return []row{
		absolute(name+": anonymous each", "KiB", max(0, during-before)/float64(n), 48),
		absolute(name+": threads", "", tasks, 12),
		left,
	}, nil
}

// idleCommand runs longer than any bench.
var idleCommand = envelope(command("/bin/sleep", "1000"))

// connections is a crowd of HTTP/1.1 connections.
type connections struct {
	addr string
	n    int
	open []*client
	pids []int
}

func (cs *connections) start() error {
	for range cs.n {
		c, err := dial(cs.addr, 1<<10)
		if err != nil {
			return err
		}
		cs.open = append(cs.open, c)
		pid, err := c.start(processconnect.ProcessStartProcedure, idleCommand)
		if err != nil {
			return err
		}
		cs.pids = append(cs.pids, pid)
	}
	return nil
}

func (cs *connections) end() error {
	if err := endAll(cs.addr, cs.pids); err != nil {
		return err
	}
	for _, c := range cs.open {
		for {
			e, err := c.next()
			if err != nil {
				return err
			}
			if e.end {
				break
			}
		}
	}
	return nil
}

func (cs *connections) close() {
	for _, c := range cs.open {
		c.close()
	}
}

// endAll ends processes through the daemon.
func endAll(addr string, pids []int) error {
	c, err := dial(addr, 4<<10)
	if err != nil {
		return err
	}
	defer c.close()
	for _, pid := range pids {
		if err := c.call(processconnect.ProcessSendSignalProcedure, terminateMessage(pid)); err != nil {
			return fmt.Errorf("end %d: %w", pid, err)
		}
	}
	return nil
}
