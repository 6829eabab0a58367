package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
)

// The slow reader's pace: 64 KB/s.
const (
	sip      = 6400 // bytes
	sipEvery = 100 * time.Millisecond
)

const besideSlow = "beside a 64 KB/s reader"

// slowNeighbour compares the speed of a reader beside another one that takes
// 64 KB/s with its speed alone.
func slowNeighbour(b *bench) ([]row, error) {
	size := pick(b, 512<<20, 32<<20)
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	var alone, beside []float64
	for range pick(b, 7, 2) {
		r, err := b.fastReader(d, size, false)
		if err != nil {
			return nil, err
		}
		alone = append(alone, r.speed())
		r, err = b.fastReader(d, size, true)
		switch {
		case errors.Is(err, errCutOff):
			// The wrong one: it works, but as badly as can be.
			fmt.Fprintln(b.progress, "the fast reader:", err)
			beside = append(beside, 0)
		case err != nil:
			return nil, err
		default:
			beside = append(beside, r.speed())
		}
	}
	return []row{share(besideSlow, "MiB/s", median(beside), median(alone), 0.9)}, nil
}

// fastReader measures a child that begins to write when both readers are there.
func (b *bench) fastReader(d *server, size int, neighbour bool) (r flow, err error) {
	c, err := dial(d.addr, readBuffer)
	if err != nil {
		return r, err
	}
	defer c.close()
	request := command(b.program("child"), strconv.Itoa(size), "wait")
	request.Stdin = proto.Bool(true)
	pid, err := c.start(processconnect.ProcessStartProcedure, envelope(request))
	if err != nil {
		return r, err
	}
	if neighbour {
		stop, err := slowReader(d.addr, pid)
		if err != nil {
			return r, err
		}
		defer stop()
	}
	input, err := dial(d.addr, 4<<10)
	if err != nil {
		return r, err
	}
	defer input.close()
	return timed(d.pid(), func() (int64, error) {
		if err := input.call(processconnect.ProcessSendInputProcedure, stdinMessage(pid)); err != nil {
			return 0, err
		}
		n, err := c.finish()
		if err == nil && n != int64(size) {
			err = fmt.Errorf("got %d bytes of output of %d", n, size)
		}
		return n, err
	})
}

// slowReader attaches a reader that takes its sips until stop.
func slowReader(addr string, pid int) (stop func(), err error) {
	c, err := dial(addr, sip)
	if err != nil {
		return nil, err
	}
	if _, err := c.start(processconnect.ProcessConnectProcedure, envelope(&pb.ConnectRequest{Process: selector(pid)})); err != nil {
		c.close()
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var buf [sip]byte
		tick := time.NewTicker(sipEvery)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.conn.Read(buf[:]); err != nil {
				return // cut off, or stopped
			}
		}
	}()
	return func() { c.close(); <-done }, nil
}

func stdinMessage(pid int) []byte {
	return message(&pb.SendInputRequest{
		Process: selector(pid),
		Input:   &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte{'\n'}}},
	})
}
