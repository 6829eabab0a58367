package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

const (
	flagCompressed = 1
	flagEnd        = 2
)

// rawCaller is Connect with JSON over HTTP/1.1 written out, one connection per
// call, with the headers that the published SDK sends.
type rawCaller struct {
	addr       string
	readBuffer int // in bytes; 0 is the system's
}

// head is the request line and headers; what describes the body follows.
func (c *rawCaller) head(ctx context.Context, method, contentType string) *bytes.Buffer {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\n", procedure(method), c.addr, contentType)
	h := http.Header{
		"Connect-Protocol-Version": {"1"},
		"Keepalive-Ping-Interval":  {"50"},
		"Connect-Timeout-Ms":       {"60000"},
		"Authorization":            {"Basic " + base64.StdEncoding.EncodeToString([]byte("root:"))},
		"User-Agent":               {"connect-es/2.0.0"},
		"Accept":                   {"*/*"},
		"Accept-Encoding":          {"br, gzip, deflate"},
	}
	for name, values := range headers(ctx) {
		h[name] = values
	}
	_ = h.Write(&b)
	return &b
}

// dial opens a connection that is closed with ctx.
func (c *rawCaller) dial(ctx context.Context) (net.Conn, func(), error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, nil, err
	}
	if c.readBuffer > 0 {
		if err := conn.(*net.TCPConn).SetReadBuffer(c.readBuffer); err != nil {
			_ = conn.Close()
			return nil, nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, func() { stop(); _ = conn.Close() }, nil
}

func (c *rawCaller) unary(ctx context.Context, method string, req, res proto.Message) error {
	conn, done, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer done()
	body, err := protojson.Marshal(req)
	if err != nil {
		return err
	}
	b := c.head(ctx, method, "application/json")
	fmt.Fprintf(b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	if _, err := conn.Write(b.Bytes()); err != nil {
		return err
	}
	return readUnary(bufio.NewReader(conn), res)
}

func readUnary(r *bufio.Reader, res proto.Message) error {
	answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return jsonError(text)
	}
	if ct := answer.Header.Get("Content-Type"); ct != "application/json" {
		return fmt.Errorf("content type %q", ct)
	}
	return protojson.Unmarshal(text, res)
}

// jsonError reads {"code": …, "message": …, "details": […]}.
func jsonError(text []byte) error {
	var e struct {
		Code    string
		Message string
		Details []struct{ Type, Value string }
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("error body %q: %w", text, err)
	}
	var code connect.Code
	if err := code.UnmarshalText([]byte(e.Code)); err != nil {
		return fmt.Errorf("error body %q: %w", text, err)
	}
	coded := connect.NewError(code, errors.New(e.Message))
	for _, d := range e.Details {
		if d.Type != "process.ResumePoint" {
			continue
		}
		b, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil {
			return err
		}
		point := &pb.ResumePoint{}
		if err := proto.Unmarshal(b, point); err != nil {
			return err
		}
		if detail, err := connect.NewErrorDetail(point); err == nil {
			coded.AddDetail(detail)
		}
	}
	return coded
}

// envelope frames a message of a stream.
func envelope(flags byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(body))), body...)
}

func (c *rawCaller) stream(ctx context.Context, method string, req proto.Message) (events, error) {
	s, err := c.open(ctx, method, req)
	if err != nil {
		return nil, err
	}
	return &rawEvents{rawStream: s, connects: method == methodConnect}, nil
}

// open calls a method that answers with a stream.
func (c *rawCaller) open(ctx context.Context, method string, req proto.Message) (*rawStream, error) {
	conn, done, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	body, err := protojson.Marshal(req)
	if err != nil {
		done()
		return nil, err
	}
	body = envelope(0, body)
	b := c.head(ctx, method, "application/connect+json")
	fmt.Fprintf(b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	if _, err := conn.Write(b.Bytes()); err != nil {
		done()
		return nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost})
	if err != nil {
		done()
		return nil, err
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "application/connect+json" {
		done()
		return nil, fmt.Errorf("stream answered %s with %q", answer.Status, answer.Header.Get("Content-Type"))
	}
	return &rawStream{body: bufio.NewReader(answer.Body), done: done}, nil
}

// rawStream is a stream of messages.
type rawStream struct {
	body *bufio.Reader
	done func()
}

func (s *rawStream) close() { s.done() }

// message answers the text of the next message.
func (s *rawStream) message() ([]byte, error) {
	flags, text, err := readEnvelope(s.body)
	if err != nil {
		return nil, err
	}
	if flags&flagEnd != 0 {
		var end struct{ Error json.RawMessage }
		if err := json.Unmarshal(text, &end); err != nil {
			return nil, fmt.Errorf("end of stream %q: %w", text, err)
		}
		if end.Error != nil {
			return nil, jsonError(end.Error)
		}
		if b, err := io.ReadAll(s.body); err != nil || len(b) > 0 {
			return nil, fmt.Errorf("after the end of the stream: %q, %w", b, err)
		}
		return nil, io.EOF
	}
	return text, nil
}

type rawEvents struct {
	*rawStream
	connects bool
}

func (e *rawEvents) next() (*pb.ProcessEvent, error) {
	text, err := e.message()
	if err != nil {
		return nil, err
	}
	if e.connects {
		m := &pb.ConnectResponse{}
		err := protojson.Unmarshal(text, m)
		return m.Event, err
	}
	m := &pb.StartResponse{}
	err = protojson.Unmarshal(text, m)
	return m.Event, err
}

// readEnvelope reads one frame. An end of file is never orderly here.
func readEnvelope(r io.Reader) (flags byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("frame: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	body = make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("frame: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	if head[0]&^flagEnd != 0 {
		return 0, nil, fmt.Errorf("frame with flags %#x", head[0])
	}
	return head[0], body, nil
}

func (c *rawCaller) input(ctx context.Context) (inputs, error) {
	conn, done, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	b := c.head(ctx, methodInput, "application/connect+json")
	b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
	if _, err := conn.Write(b.Bytes()); err != nil {
		done()
		return nil, err
	}
	return &rawInputs{conn: conn, done: done}, nil
}

type rawInputs struct {
	conn net.Conn
	done func()
}

// send cuts the frame into two chunks at an odd place.
func (i *rawInputs) send(m *pb.StreamInputRequest) error {
	body, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	body = envelope(0, body)
	cut := len(body) / 3
	if err := i.chunk(body[:cut]); err != nil {
		return err
	}
	return i.chunk(body[cut:])
}

func (i *rawInputs) chunk(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(i.conn, "%x\r\n%s\r\n", len(b), b); err != nil {
		return io.EOF // the daemon has answered
	}
	return nil
}

func (i *rawInputs) finish() error {
	defer i.done()
	_, _ = io.WriteString(i.conn, "0\r\n\r\n") // it may have answered already
	answer, err := http.ReadResponse(bufio.NewReader(i.conn), &http.Request{Method: http.MethodPost})
	if err != nil {
		return err
	}
	body := bufio.NewReader(answer.Body)
	for {
		flags, text, err := readEnvelope(body)
		if err != nil {
			return err
		}
		if flags&flagEnd == 0 {
			continue
		}
		var end struct{ Error json.RawMessage }
		if err := json.Unmarshal(text, &end); err != nil {
			return err
		}
		if end.Error != nil {
			return jsonError(end.Error)
		}
		return nil
	}
}
