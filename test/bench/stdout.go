package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/wrenn/envd/gen/process/processconnect"
)

// flow is output that went by.
type flow struct {
	bytes int64
	took  time.Duration
	cpu   time.Duration // of the daemon or the floor
}

func (f flow) speed() float64 { return float64(f.bytes) / (1 << 20) / f.took.Seconds() }

// stdoutSpeed compares a command's output over Connect binary with a raw copy
// from a pipe of 1 MiB to a TCP connection, in speed and in processor time.
func stdoutSpeed(b *bench) ([]row, error) {
	size := pick(b, 512<<20, 32<<20)
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	f, err := b.floor("copy", b.program("child"), strconv.Itoa(size))
	if err != nil {
		return nil, err
	}
	defer f.stop()

	var speed, cpu [2][]float64
	for range pick(b, 7, 2) {
		for i, measure := range []func() (flow, error){
			func() (flow, error) { return b.streamOutput(d, size) },
			func() (flow, error) { return rawOutput(f) },
		} {
			r, err := measure()
			if err != nil {
				return nil, err
			}
			if r.bytes != int64(size) {
				return nil, fmt.Errorf("got %d bytes of output of %d", r.bytes, size)
			}
			speed[i] = append(speed[i], r.speed())
			cpu[i] = append(cpu[i], millis(r.cpu))
		}
	}
	name := fmt.Sprintf("%d MiB stdout", size>>20)
	return []row{
		share(name, "MiB/s", median(speed[0]), median(speed[1]), 0.7),
		limit(name+", processor time", "ms", median(cpu[0]), median(cpu[1]), 1.6),
	}, nil
}

// streamOutput runs the child through the daemon and reads its output.
func (b *bench) streamOutput(d *server, size int) (r flow, err error) {
	c, err := dial(d.addr, readBuffer)
	if err != nil {
		return r, err
	}
	defer c.close()
	request := envelope(command(b.program("child"), strconv.Itoa(size)))
	return timed(d.pid(), func() (int64, error) {
		if _, err := c.start(processconnect.ProcessStartProcedure, request); err != nil {
			return 0, err
		}
		return c.finish()
	})
}

// rawOutput lets the floor run the child and reads the output.
func rawOutput(f *server) (r flow, err error) {
	return timed(f.pid(), func() (n int64, err error) {
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			return 0, fmt.Errorf("dial floor: %w", err)
		}
		defer conn.Close()
		// Hidden from io.Copy's short cuts, so that it reads as the client does.
		return io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, readBuffer))
	})
}

// timed measures read, and the processor time of pid meanwhile.
func timed(pid int, read func() (int64, error)) (r flow, err error) {
	before, err := cpuTime(pid)
	if err != nil {
		return r, err
	}
	began := time.Now()
	if r.bytes, err = read(); err != nil {
		return r, err
	}
	r.took = time.Since(began)
	after, err := cpuTime(pid)
	r.cpu = after - before
	return r, err
}
