package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

const (
	// readBuffer is the size of reads from connections, in bytes, the floors'
	// as ours.
	readBuffer = 512 << 10
	// quietLimit bounds each exchange.
	quietLimit = 2 * time.Minute

	// envelopeHead is the length of a Connect envelope's head: flags and size.
	envelopeHead = 5
	// endFlag marks the last envelope of a stream: JSON, with the error if any.
	endFlag = 2
)

// errCutOff means that the daemon took the reader for too slow.
var errCutOff = errors.New("stream cut off")

// client is one kept-alive HTTP/1.1 connection that speaks Connect binary. It
// has one exchange at a time and does not copy what it reads: a message is
// valid until the next call. One goroutine uses it.
type client struct {
	conn  net.Conn
	in    *bufio.Reader
	out   []byte
	left  int  // bytes left in the current chunk
	whole bool // the body has a length: it is all one chunk
	taken int  // bytes to discard from in: the last message
	split []byte
}

func dial(addr string, buffer int) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	return &client{conn: conn, in: bufio.NewReaderSize(conn, buffer)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

// envelope frames a message for a stream.
func envelope(m proto.Message) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, envelopeHead), m)
	if err != nil {
		panic(err) // the messages are ours
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-envelopeHead))
	return b
}

// open sends the one message of a server stream and reads the headers of the
// answer; message yields the rest.
func (c *client) open(procedure string, enveloped []byte) error {
	if err := c.post(procedure, "application/connect+proto", enveloped); err != nil {
		return err
	}
	length, err := c.headers()
	// A server may give the length of a body that it has whole.
	c.whole = length >= 0
	c.left = max(length, 0)
	return err
}

// call makes a unary call and drops the answer's message.
func (c *client) call(procedure string, message []byte) error {
	if err := c.post(procedure, "application/proto", message); err != nil {
		return err
	}
	return c.answer()
}

// answer reads the answer to a unary call.
func (c *client) answer() error {
	length, err := c.headers()
	if err != nil {
		return err
	}
	if length < 0 {
		return errors.New("answer has no length")
	}
	_, err = c.in.Discard(length)
	return err
}

// post writes a request in one piece.
func (c *client) post(procedure, contentType string, body []byte) error {
	c.out = append(c.out[:0], "POST "...)
	c.out = append(c.out, procedure...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: bench\r\nConnect-Protocol-Version: 1\r\nContent-Type: "...)
	c.out = append(c.out, contentType...)
	c.out = append(c.out, "\r\nContent-Length: "...)
	c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	c.out = append(c.out, body...)
	if err := c.conn.SetDeadline(time.Now().Add(quietLimit)); err != nil {
		return err
	}
	_, err := c.conn.Write(c.out)
	return err
}

// headers reads a response up to its body, whose length it answers: -1 when it
// comes in chunks.
func (c *client) headers() (length int, err error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, fmt.Errorf("read status: %w", err)
	}
	ok := bytes.HasPrefix(line, []byte("HTTP/1.1 200 "))
	status := string(bytes.TrimSpace(line))
	length = -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, fmt.Errorf("read headers: %w", err)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		if v, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
			if length, err = strconv.Atoi(string(v)); err != nil {
				return 0, fmt.Errorf("read headers: %w", err)
			}
		}
	}
	if !ok {
		body, _ := io.ReadAll(io.LimitReader(c.in, int64(max(length, 0))))
		return 0, fmt.Errorf("answer %q: %s", status, body)
	}
	return length, nil
}

// message answers the next message of the open stream, io.EOF when the stream
// has ended well.
func (c *client) message() ([]byte, error) {
	head, err := c.take(envelopeHead)
	if err != nil {
		return nil, err
	}
	flags, size := head[0], int(binary.BigEndian.Uint32(head[1:]))
	msg, err := c.take(size)
	if err != nil || flags&endFlag == 0 {
		return msg, err
	}
	if bytes.Contains(msg, []byte(`"code":"aborted"`)) {
		return nil, fmt.Errorf("%w: %s", errCutOff, msg)
	}
	if bytes.Contains(msg, []byte(`"error"`)) {
		return nil, fmt.Errorf("stream ended: %s", msg)
	}
	if err := c.lastChunk(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

// take answers the next n bytes of the body.
func (c *client) take(n int) ([]byte, error) {
	c.drop()
	if c.left == 0 && n > 0 {
		if err := c.nextChunk(); err != nil {
			return nil, err
		}
	}
	if n <= c.left {
		c.left -= n
		c.taken = n
		return c.in.Peek(n)
	}
	c.split = c.split[:0]
	for n > 0 {
		if c.left == 0 {
			if err := c.nextChunk(); err != nil {
				return nil, err
			}
		}
		part := min(n, c.left)
		p, err := c.in.Peek(part)
		if err != nil {
			return nil, err
		}
		c.split = append(c.split, p...)
		c.taken = part
		c.left -= part
		n -= part
		c.drop()
	}
	return c.split, nil
}

func (c *client) drop() {
	_, _ = c.in.Discard(c.taken) // Peek has them
	c.taken = 0
}

// nextChunk reads the line before a chunk's bytes, and the line end after the
// chunk before it, if any.
func (c *client) nextChunk() error {
	if c.whole {
		return fmt.Errorf("read body: %w", io.ErrUnexpectedEOF)
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read chunk: %w", err)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		size, err := strconv.ParseUint(string(line), 16, 31)
		if err != nil {
			return fmt.Errorf("read chunk: %w", err)
		}
		if size == 0 {
			return fmt.Errorf("read chunk: %w", io.ErrUnexpectedEOF)
		}
		c.left = int(size)
		return nil
	}
}

// lastChunk reads what follows the last envelope, so that the connection can
// be used again.
func (c *client) lastChunk() error {
	c.drop()
	if c.whole && c.left == 0 {
		return nil
	}
	const tail = "\r\n0\r\n\r\n"
	p, err := c.in.Peek(len(tail))
	if err != nil || string(p) != tail {
		return fmt.Errorf("end of answer is %q: %w", p, err)
	}
	_, _ = c.in.Discard(len(tail))
	return nil
}

// Numbers of the fields that the figures look at, from the wire contract.
const (
	fieldEvent   = 1 // of StartResponse and ConnectResponse
	fieldStart   = 1 // of ProcessEvent
	fieldData    = 2
	fieldEnd     = 3
	fieldPid     = 1 // of StartEvent
	fieldExit    = 1 // of EndEvent
	lastOutput   = 3 // of DataEvent: stdout 1, stderr 2, pty 3
	successValue = 0
)

// event is a ProcessEvent, as far as the figures care.
type event struct {
	pid    int    // of a start, else 0
	output []byte // of data, in place
	end    bool
	exit   int
}

// next answers the next event of the open stream.
func (c *client) next() (event, error) {
	msg, err := c.message()
	if err != nil {
		return event{}, err
	}
	var e event
	eachField(msg, func(num protowire.Number, _ uint64, ev []byte) {
		if num != fieldEvent {
			return
		}
		eachField(ev, func(num protowire.Number, _ uint64, body []byte) { e.read(num, body) })
	})
	return e, nil
}

func (e *event) read(kind protowire.Number, body []byte) {
	e.end = e.end || kind == fieldEnd
	eachField(body, func(num protowire.Number, v uint64, b []byte) {
		switch {
		case kind == fieldStart && num == fieldPid:
			e.pid = int(v)
		case kind == fieldData && num <= lastOutput:
			e.output = b
		case kind == fieldEnd && num == fieldExit:
			e.exit = int(protowire.DecodeZigZag(v))
		}
	})
}

// eachField walks the fields of a message: v is set for varints, b for bytes.
func eachField(msg []byte, yield func(num protowire.Number, v uint64, b []byte)) {
	for len(msg) > 0 {
		num, kind, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return
		}
		msg = msg[n:]
		var v uint64
		var b []byte
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(msg)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(msg)
		default:
			n = protowire.ConsumeFieldValue(num, kind, msg)
		}
		if n < 0 {
			return
		}
		yield(num, v, b)
		msg = msg[n:]
	}
}

// start opens a stream with that request and reads the StartEvent.
func (c *client) start(procedure string, enveloped []byte) (pid int, err error) {
	if err := c.open(procedure, enveloped); err != nil {
		return 0, err
	}
	e, err := c.next()
	if err == nil && e.pid == 0 {
		err = errors.New("stream does not begin with a start")
	}
	return e.pid, err
}

// finish reads the open stream to its end and answers how many bytes of output
// it had.
func (c *client) finish() (output int64, err error) {
	for ended := false; ; {
		e, err := c.next()
		if errors.Is(err, io.EOF) && ended {
			return output, nil
		}
		if err != nil {
			return output, err
		}
		output += int64(len(e.output))
		if e.end {
			ended = true
			if e.exit != successValue {
				return output, fmt.Errorf("command ended with %d", e.exit)
			}
		}
	}
}

// command makes a StartRequest without stdin, as SDKs send it.
func command(cmd string, args ...string) *pb.StartRequest {
	return &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: cmd, Args: args},
		Stdin:   proto.Bool(false),
	}
}

// selector names a process by its pid.
func selector(pid int) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: uint32(pid)}}
}

// message encodes a request of ours.
func message(m proto.Message) []byte { return envelope(m)[envelopeHead:] }

func terminateMessage(pid int) []byte {
	return message(&pb.SendSignalRequest{Process: selector(pid), Signal: pb.Signal_SIGNAL_SIGTERM})
}
