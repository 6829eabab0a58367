package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
)

// echoScript is what runs on the terminal: it says when the terminal is raw,
// and then gives back every byte.
const echoScript = "stty raw -echo && printf R && exec cat"

// terminalEcho compares the time that one byte takes to come back from a
// terminal, by a SendInput and on the stream of the output, with a bare copy
// between a connection and a terminal in both directions.
func terminalEcho(b *bench) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	f, err := b.floor("echo", "/bin/sh", "-c", echoScript)
	if err != nil {
		return nil, err
	}
	defer f.stop()
	t, err := openTerminal(d.addr)
	if err != nil {
		return nil, err
	}
	defer t.close()
	conn, err := openRawTerminal(f.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	bytes := pick(b, 1000, 100)
	var ours, floor []time.Duration
	for range pick(b, 9, 2) {
		r, err := medianOf(bytes, t.echo)
		if err != nil {
			return nil, err
		}
		ours = append(ours, r)
		if r, err = medianOf(bytes, func() (time.Duration, error) { return rawEcho(conn) }); err != nil {
			return nil, err
		}
		floor = append(floor, r)
	}
	return []row{limit("terminal echo of a byte", "µs", micros(median(ours)), micros(median(floor)), 2.5)}, nil
}

func medianOf(n int, measure func() (time.Duration, error)) (time.Duration, error) {
	all := make([]time.Duration, n)
	for i := range all {
		var err error
		if all[i], err = measure(); err != nil {
			return 0, err
		}
	}
	return median(all), nil
}

// terminal is a command on a terminal, with one connection for its output and
// one for its input.
type terminal struct {
	output, input *client
	keystroke     []byte // a SendInputRequest
}

func openTerminal(addr string) (t *terminal, err error) {
	t = &terminal{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.output, err = dial(addr, 4<<10); err != nil {
		return t, err
	}
	if t.input, err = dial(addr, 4<<10); err != nil {
		return t, err
	}
	request := command("/bin/sh", "-c", echoScript)
	request.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 80, Rows: 24}}
	pid, err := t.output.start(processconnect.ProcessStartProcedure, envelope(request))
	if err != nil {
		return t, err
	}
	t.keystroke = message(&pb.SendInputRequest{
		Process: selector(pid),
		Input:   &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte{'x'}}},
	})
	return t, t.expect('R')
}

func (t *terminal) close() {
	for _, c := range []*client{t.output, t.input} {
		if c != nil {
			c.close()
		}
	}
}

// expect reads output that is the one byte.
func (t *terminal) expect(want byte) error {
	e, err := t.output.next()
	if err != nil {
		return err
	}
	if len(e.output) != 1 || e.output[0] != want {
		return fmt.Errorf("got %q from the terminal, want %q", e.output, want)
	}
	return nil
}

// echo times a byte from its request to its return. The request's own answer
// is read after that.
func (t *terminal) echo() (took time.Duration, err error) {
	began := time.Now()
	if err := t.input.post(processconnect.ProcessSendInputProcedure, "application/proto", t.keystroke); err != nil {
		return 0, err
	}
	if err := t.expect('x'); err != nil {
		return 0, err
	}
	took = time.Since(began)
	return took, t.input.answer()
}

func openRawTerminal(addr string) (net.Conn, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial floor: %w", err)
	}
	var ready [1]byte
	if _, err := io.ReadFull(conn, ready[:]); err != nil || ready[0] != 'R' {
		_ = conn.Close()
		return nil, errors.Join(fmt.Errorf("floor's terminal said %q", ready[:]), err)
	}
	return conn, nil
}

func rawEcho(conn net.Conn) (time.Duration, error) {
	began := time.Now()
	b := [1]byte{'x'}
	if _, err := conn.Write(b[:]); err != nil {
		return 0, fmt.Errorf("write to floor: %w", err)
	}
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return 0, fmt.Errorf("read from floor: %w", err)
	}
	return time.Since(began), nil
}
