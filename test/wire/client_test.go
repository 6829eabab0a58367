package wire

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	fs "github.com/wrenn/envd/gen/filesystem"
	pb "github.com/wrenn/envd/gen/process"
)

// Methods of the service.
const (
	methodList       = "List"
	methodStart      = "Start"
	methodConnect    = "Connect"
	methodUpdate     = "Update"
	methodInput      = "StreamInput"
	methodSendInput  = "SendInput"
	methodSignal     = "SendSignal"
	methodCloseStdin = "CloseStdin"
	service          = "/process.Process/"
)

// procedure is the path of a method; without one of its own it is of the
// process service.
func procedure(method string) string {
	if strings.HasPrefix(method, "/") {
		return method
	}
	return service + method
}

// caller is one kind of client. Errors are *connect.Error whatever the
// protocol. Headers travel in the context; see with.
type caller interface {
	unary(ctx context.Context, method string, req, res proto.Message) error
	// stream calls Start or Connect.
	stream(ctx context.Context, method string, req proto.Message) (events, error)
	// input calls StreamInput.
	input(ctx context.Context) (inputs, error)
	// watch calls WatchDir.
	watch(ctx context.Context, req *fs.WatchDirRequest) (changes, error)
}

// events is a stream from the daemon. next answers io.EOF after its orderly end.
type events interface {
	next() (*pb.ProcessEvent, error)
	close()
}

// changes is a stream of events about files; see events.
type changes interface {
	next() (*fs.WatchDirResponse, error)
	close()
}

// inputs is a stream to the daemon.
type inputs interface {
	// send may fail with io.EOF when the daemon has answered already.
	send(*pb.StreamInputRequest) error
	// finish ends the stream and answers what the daemon says.
	finish() error
}

type headerKey struct{}

// with adds a header to the calls made with ctx.
func with(ctx context.Context, name, value string) context.Context {
	h := headers(ctx).Clone()
	if h == nil {
		h = make(http.Header)
	}
	h.Set(name, value)
	return context.WithValue(ctx, headerKey{}, h)
}

func headers(ctx context.Context) http.Header {
	h, _ := ctx.Value(headerKey{}).(http.Header)
	return h
}

// as makes calls act for a user.
func as(ctx context.Context, user string) context.Context {
	return with(ctx, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
}

// bounded is a context that ends when a test takes too long. It has no
// deadline: that would be sent, and bound the process.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(limit, func() { cancel(fmt.Errorf("test took longer than %v", limit)) })
	t.Cleanup(func() { timer.Stop(); cancel(nil) })
	return ctx
}

// kinds are the kinds of clients.
var kinds = []struct {
	name string
	make func(d *daemon) caller
}{
	{"connect-json-http1", func(d *daemon) caller { return newConnect(d, http1(), connect.WithProtoJSON()) }},
	{"connect-proto-http1", func(d *daemon) caller { return newConnect(d, http1()) }},
	{"connect-proto-h2c", func(d *daemon) caller { return newConnect(d, http2()) }},
	{"grpc", func(d *daemon) caller { return newGRPC(d) }},
	{"grpcweb-http1", func(d *daemon) caller { return newConnect(d, http1(), connect.WithGRPCWeb()) }},
	{"sdk-json-http1", func(d *daemon) caller { return &rawCaller{addr: d.addr()} }},
}

// all runs a scenario with every daemon and kind of client.
func all(t *testing.T, scenario func(t *testing.T, c *call)) {
	t.Parallel()
	for _, d := range daemons {
		for _, kind := range kinds {
			t.Run(d.name+"/"+kind.name, func(t *testing.T) {
				t.Parallel()
				scenario(t, &call{t: t, d: d, kind: kind.name, caller: kind.make(d)})
			})
		}
	}
}

// files runs a scenario about files with every kind of client, with the
// daemon's reach and with the user's.
func files(t *testing.T, scenario func(t *testing.T, c *call)) {
	t.Parallel()
	for _, d := range fileDaemons {
		for _, kind := range kinds {
			t.Run(d.name+"/"+kind.name, func(t *testing.T) {
				t.Parallel()
				scenario(t, &call{t: t, d: d, kind: kind.name, caller: kind.make(d)})
			})
		}
	}
}

// spread runs a scenario with every kind of client, each with one of the
// daemons: for what moves much data and does not depend on cgroups.
func spread(t *testing.T, scenario func(t *testing.T, c *call)) {
	t.Parallel()
	for i, kind := range kinds {
		d := daemons[i%len(daemons)]
		t.Run(d.name+"/"+kind.name, func(t *testing.T) {
			t.Parallel()
			scenario(t, &call{t: t, d: d, kind: kind.name, caller: kind.make(d)})
		})
	}
}

// each runs a scenario with every daemon and the client of that kind, for what
// does not depend on the protocol.
func each(t *testing.T, kind string, scenario func(t *testing.T, c *call)) {
	t.Parallel()
	for _, d := range daemons {
		for _, k := range kinds {
			if k.name == kind {
				t.Run(d.name, func(t *testing.T) {
					t.Parallel()
					scenario(t, &call{t: t, d: d, kind: kind, caller: k.make(d)})
				})
			}
		}
	}
}

// call makes calls in one test.
type call struct {
	caller
	t    *testing.T
	d    *daemon
	kind string
}

// sh is a request for a shell script.
func sh(script string, args ...string) *pb.StartRequest {
	return &pb.StartRequest{Process: &pb.ProcessConfig{
		Cmd: "/bin/sh", Args: append([]string{"-c", script, "sh"}, args...),
	}}
}

func pid(n uint32) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: n}}
}

func tag(s string) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: s}}
}

// follow is a stream being read by a test, with what came so far. It checks
// what holds for every stream: the start is first, offsets leave no gap, the
// end is the last.
type follow struct {
	t *testing.T
	s events

	pid                 uint32
	stdout, stderr, pty []byte
	chunks              []*pb.ProcessEvent_DataEvent
	gaps                []*pb.ProcessEvent_Gap
	keepalives          int
	end                 *pb.ProcessEvent_EndEvent
	offset              uint64 // of the next byte
	anchored            bool   // offset is known
	err                 error  // how the stream ended: io.EOF in order
}

// start starts a process and reads its start event.
func (c *call) start(ctx context.Context, req *pb.StartRequest) *follow {
	c.t.Helper()
	f, err := c.tryStart(ctx, req)
	if err != nil {
		c.t.Fatalf("start: %v", err)
	}
	f.anchored = true
	// Whatever the test does, nothing stays.
	c.t.Cleanup(func() { c.cleanUp(f.pid) })
	return f
}

func (c *call) cleanUp(p uint32) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = c.unary(ctx, methodSignal, &pb.SendSignalRequest{Process: pid(p), Signal: 9}, &pb.SendSignalResponse{})
}

func (c *call) tryStart(ctx context.Context, req *pb.StartRequest) (*follow, error) {
	return c.open(ctx, methodStart, req)
}

// attach connects to a process and reads the start event.
func (c *call) attach(ctx context.Context, req *pb.ConnectRequest) *follow {
	c.t.Helper()
	f, err := c.open(ctx, methodConnect, req)
	if err != nil {
		c.t.Fatalf("connect: %v", err)
	}
	if req.Offset != nil {
		f.offset, f.anchored = *req.Offset, true
	}
	return f
}

func (c *call) open(ctx context.Context, method string, req proto.Message) (*follow, error) {
	s, err := c.stream(ctx, method, req)
	if err != nil {
		return nil, err
	}
	first, err := s.next()
	if err != nil {
		s.close()
		if errors.Is(err, io.EOF) {
			err = errors.New("stream ended without an event")
		}
		return nil, err
	}
	start := first.GetStart()
	if start == nil || start.Pid == 0 {
		s.close()
		return nil, fmt.Errorf("first event is %v, not a start", first)
	}
	c.t.Cleanup(s.close)
	return &follow{t: c.t, s: s, pid: start.Pid}, nil
}

// read reads one event and tells whether there was one.
func (f *follow) read() bool {
	f.t.Helper()
	e, err := f.s.next()
	if err != nil {
		f.err = err
		return false
	}
	if f.end != nil {
		f.t.Fatalf("event %v after the end", e)
	}
	switch e := e.Event.(type) {
	case *pb.ProcessEvent_Start:
		f.t.Fatal("a second start")
	case *pb.ProcessEvent_Data:
		f.data(e.Data)
	case *pb.ProcessEvent_End:
		f.end = e.End
	case *pb.ProcessEvent_Keepalive:
		f.keepalives++
	case *pb.ProcessEvent_Gap_:
		f.gaps = append(f.gaps, e.Gap)
		if f.anchored && e.Gap.From != f.offset {
			f.t.Fatalf("gap from %d, expected %d", e.Gap.From, f.offset)
		}
		f.offset, f.anchored = e.Gap.To, true
	default:
		f.t.Fatalf("unknown event %v", e)
	}
	return true
}

func (f *follow) data(d *pb.ProcessEvent_DataEvent) {
	f.t.Helper()
	var b []byte
	switch out := d.Output.(type) {
	case *pb.ProcessEvent_DataEvent_Stdout:
		b = out.Stdout
		f.stdout = append(f.stdout, b...)
	case *pb.ProcessEvent_DataEvent_Stderr:
		b = out.Stderr
		f.stderr = append(f.stderr, b...)
	case *pb.ProcessEvent_DataEvent_Pty:
		b = out.Pty
		f.pty = append(f.pty, b...)
	}
	if len(b) == 0 {
		f.t.Fatalf("empty data event %v", d)
	}
	if d.Offset != nil {
		if f.anchored && *d.Offset != f.offset {
			f.t.Fatalf("data at offset %d, expected %d", *d.Offset, f.offset)
		}
		f.offset, f.anchored = *d.Offset+uint64(len(b)), true
	}
	f.chunks = append(f.chunks, d)
}

// rest reads to the end of the stream.
func (f *follow) rest() *follow {
	f.t.Helper()
	for f.read() {
	}
	if f.end != nil && !errors.Is(f.err, io.EOF) {
		f.t.Fatalf("stream after the end event: %v", f.err)
	}
	if f.end == nil && errors.Is(f.err, io.EOF) {
		f.t.Fatal("the stream ended in order without an end event")
	}
	return f
}

// until reads until one of the streams contains text.
func (f *follow) until(text string) *follow {
	f.t.Helper()
	var seen [3]int // how far each stream was searched
	for {
		for i, out := range [][]byte{f.stdout, f.stderr, f.pty} {
			if bytes.Contains(out[max(0, seen[i]-len(text)):], []byte(text)) {
				return f
			}
			seen[i] = len(out)
		}
		if !f.read() {
			f.t.Fatalf("stream ended (%v) before %q: stdout %.500q stderr %.500q pty %.500q end %v",
				f.err, text, f.stdout, f.stderr, f.pty, f.end)
		}
	}
}

// exit reads to the end and checks the exit code.
func (f *follow) exit(code int32) *follow {
	f.t.Helper()
	f.rest()
	if f.end == nil {
		f.t.Fatalf("no end: %v", f.err)
	}
	if f.end.ExitCode != code {
		f.t.Fatalf("exit %v, expected %d; stdout %.500q stderr %.500q", f.end, code, f.stdout, f.stderr)
	}
	return f
}

// run starts a process and reads it to its end.
func (c *call) run(ctx context.Context, req *pb.StartRequest) *follow {
	c.t.Helper()
	return c.start(ctx, req).rest()
}

// output is what a script that succeeds prints.
func (c *call) output(ctx context.Context, req *pb.StartRequest) string {
	c.t.Helper()
	return string(c.start(ctx, req).exit(0).stdout)
}

func (c *call) sendInput(ctx context.Context, sel *pb.ProcessSelector, b []byte) error {
	return c.unary(ctx, methodSendInput, &pb.SendInputRequest{
		Process: sel, Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: b}},
	}, &pb.SendInputResponse{})
}

func (c *call) sendTerminal(ctx context.Context, sel *pb.ProcessSelector, text string) error {
	return c.unary(ctx, methodSendInput, &pb.SendInputRequest{
		Process: sel, Input: &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte(text)}},
	}, &pb.SendInputResponse{})
}

func (c *call) closeStdin(ctx context.Context, sel *pb.ProcessSelector) error {
	return c.unary(ctx, methodCloseStdin, &pb.CloseStdinRequest{Process: sel}, &pb.CloseStdinResponse{})
}

func (c *call) signal(ctx context.Context, sel *pb.ProcessSelector, number int32) error {
	return c.unary(ctx, methodSignal, &pb.SendSignalRequest{Process: sel, Signal: pb.Signal(number)}, &pb.SendSignalResponse{})
}

func (c *call) list(ctx context.Context, exited bool) []*pb.ProcessInfo {
	c.t.Helper()
	res := &pb.ListResponse{}
	if err := c.unary(ctx, methodList, &pb.ListRequest{IncludeExited: exited}, res); err != nil {
		c.t.Fatalf("list: %v", err)
	}
	return res.Processes
}

// must fails the test on an error.
func (c *call) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// wantCode fails the test unless err has the code.
func (c *call) wantCode(err error, code connect.Code) {
	c.t.Helper()
	if err == nil || connect.CodeOf(err) != code {
		c.t.Fatalf("got %v, expected code %v", err, code)
	}
}

// timeout gives calls a deadline. Where it can, the client does not know it, so
// that what is seen is the daemon's doing.
func (c *call) timeout(ctx context.Context, d time.Duration) context.Context {
	ms := strconv.FormatInt(d.Milliseconds(), 10)
	switch c.kind {
	case "grpc": // sends only what it watches itself
		ctx, cancel := context.WithTimeout(ctx, d)
		c.t.Cleanup(cancel)
		return ctx
	case "grpcweb-http1":
		return with(ctx, "Grpc-Timeout", ms+"m")
	default:
		return with(ctx, "Connect-Timeout-Ms", ms)
	}
}

// unique is a word that no other test uses.
func unique(t *testing.T) string {
	return t.Name() + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
}
