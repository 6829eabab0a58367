package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

func TestConnectByPidAndTag(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		req, name := sh("read x; echo $x; exit 4"), unique(t)
		req.Tag = &name
		f := c.start(ctx, req)
		byPid := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid)})
		byTag := c.attach(ctx, &pb.ConnectRequest{Process: tag(name)})
		c.must(c.sendInput(ctx, tag(name), []byte("hello\n")))
		for _, r := range []*follow{f, byPid, byTag} {
			if r.exit(4); string(r.stdout) != "hello\n" || r.pid != f.pid {
				t.Errorf("pid %d (of %d) stdout %q", r.pid, f.pid, r.stdout)
			}
		}
		// Ended, it is known all the same.
		if r := c.attach(ctx, &pb.ConnectRequest{Process: tag(name)}).exit(4); len(r.stdout) > 0 {
			t.Errorf("without an offset %q came after the end", r.stdout)
		}
	})
}

// TestConnectOffsets checks every way to say where to begin.
func TestConnectOffsets(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		c.d.needs(t, "process.output_offsets")
		ctx := bounded(t)
		f := c.start(ctx, sh("printf 0123456789; read x; printf abc"))
		f.until("0123456789")
		readers := map[string]*follow{
			"abc":           c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid)}),
			"0123456789abc": c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(0)}),
			"456789abc":     c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(4)}),
		}
		c.must(c.sendInput(ctx, pid(f.pid), []byte("\n")))
		for want, r := range readers {
			if r.exit(0); string(r.stdout) != want || len(r.gaps) > 0 {
				t.Errorf("got %q, gaps %v, expected %q", r.stdout, r.gaps, want)
			}
		}
		f.exit(0)
		// At the end there is nothing but the end, and beyond it a mistake.
		if r := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(13)}).exit(0); len(r.stdout) > 0 {
			t.Errorf("at the end: %q", r.stdout)
		}
		for _, beyond := range []uint64{14, 1 << 63} {
			_, err := c.open(ctx, methodConnect, &pb.ConnectRequest{Process: pid(f.pid), Offset: &beyond})
			c.wantCode(err, connect.CodeOutOfRange)
		}
	})
}

// TestConnectGap checks that what is no longer kept is named, to those who
// asked for an offset.
func TestConnectGap(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		c.d.needs(t, "process.output_offsets")
		ctx := bounded(t)
		const size = 4 << 20
		f := c.start(ctx, sh(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; read x; echo end", size)))
		f.until("x\n")
		asked := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(10)})
		plain := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid)})
		c.must(c.sendInput(ctx, pid(f.pid), []byte("\n")))
		asked.exit(0)
		if len(asked.gaps) != 1 || asked.gaps[0].From != 10 || asked.gaps[0].To <= 10 {
			t.Errorf("gaps %v", asked.gaps)
		}
		if kept := len(asked.stdout); kept < 512<<10 || kept > 2<<20 || !bytes.HasSuffix(asked.stdout, []byte("x\nend\n")) {
			t.Errorf("%d bytes came after the gap", kept)
		}
		if plain.exit(0); len(plain.gaps) > 0 || string(plain.stdout) != "end\n" {
			t.Errorf("without an offset: gaps %v, stdout %.100q", plain.gaps, plain.stdout)
		}
	})
}

// TestConnectWhileWriting checks that a reader that joins in the middle of a
// flood gets it without a hole; follow checks the offsets.
func TestConnectWhileWriting(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		c.d.needs(t, "process.output_offsets")
		ctx := bounded(t)
		f := c.start(ctx, sh("seq 100000")) // less than is kept, so nobody is too slow
		for range 3 {
			if !f.read() {
				t.Fatal(f.err)
			}
		}
		late := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(f.offset)})
		from := len(f.stdout)
		late.anchored, late.offset = true, f.offset
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				e, err := late.s.next()
				if err != nil {
					late.err = err
					return
				}
				if d := e.GetData(); d != nil {
					late.stdout = append(late.stdout, d.GetStdout()...)
				}
				if e.GetGap() != nil {
					late.gaps = append(late.gaps, e.GetGap())
				}
			}
		}()
		f.exit(0)
		<-done
		if len(late.gaps) > 0 || !bytes.Equal(late.stdout, f.stdout[from:]) {
			t.Errorf("gaps %v, %d bytes of %d", late.gaps, len(late.stdout), len(f.stdout)-from)
		}
	})
}

func TestSelectorErrors(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		for _, row := range []struct {
			sel  *pb.ProcessSelector
			code connect.Code
		}{
			{pid(1 << 30), connect.CodeNotFound},
			{pid(1), connect.CodeNotFound}, // a process, but not one of ours
			{tag("no-such-tag"), connect.CodeNotFound},
			{&pb.ProcessSelector{}, connect.CodeInvalidArgument},
			{nil, connect.CodeInvalidArgument},
		} {
			_, err := c.open(ctx, methodConnect, &pb.ConnectRequest{Process: row.sel})
			errs := map[string]error{
				"connect":     err,
				"update":      c.unary(ctx, methodUpdate, &pb.UpdateRequest{Process: row.sel}, &pb.UpdateResponse{}),
				"send input":  c.sendInput(ctx, row.sel, []byte("x")),
				"close stdin": c.closeStdin(ctx, row.sel),
				"signal":      c.signal(ctx, row.sel, 15),
			}
			in, err := c.input(ctx)
			c.must(err)
			_ = in.send(inputStart(row.sel))
			errs["stream input"] = in.finish()
			for name, err := range errs {
				if connect.CodeOf(err) != row.code {
					t.Errorf("%s %v: %v, expected %v", name, row.sel, err, row.code)
				}
				if row.code == connect.CodeNotFound && !strings.Contains(err.Error(), "not found") {
					t.Errorf("%s: hosts look for the words \"not found\" in %q", name, err)
				}
			}
		}
	})
}

// TestTagNewestLive checks which of several processes a tag means.
func TestTagNewestLive(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx, name := bounded(t), unique(t)
		start := func() *follow {
			req := sh("read x; exit 0")
			req.Tag = &name
			return c.start(ctx, req)
		}
		first, second, third := start(), start(), start()
		means := func(want *follow, when string) {
			t.Helper()
			if got := c.attach(ctx, &pb.ConnectRequest{Process: tag(name)}); got.pid != want.pid {
				t.Errorf("%s the tag means %d, expected %d", when, got.pid, want.pid)
			}
		}
		means(third, "of three")
		end := func(f *follow) {
			c.must(c.sendInput(ctx, pid(f.pid), []byte("\n")))
			f.exit(0)
		}
		end(third)
		means(second, "after the end of the third")
		end(first)
		means(second, "after the end of the first")
		end(second)
		means(third, "after the end of all")
	})
}

func TestList(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx, name := bounded(t), unique(t)
		req := sh("echo hi; read x; exit 3", "arg")
		req.Tag, req.Process.Cwd, req.Process.Envs = &name, proto.String("/tmp"), map[string]string{"K": "v"}
		f := c.start(ctx, req)
		f.until("hi\n")
		find := func(exited bool) *pb.ProcessInfo {
			list := c.list(ctx, exited)
			i := slices.IndexFunc(list, func(p *pb.ProcessInfo) bool { return p.Pid == f.pid && p.GetTag() == name })
			if i < 0 {
				return nil
			}
			return list[i]
		}
		info := find(false)
		if info == nil {
			t.Fatal("it runs and is not listed")
		}
		if !proto.Equal(info.Config, req.Process) {
			t.Errorf("config %v, started %v", info.Config, req.Process)
		}
		if c.d.cmd != nil {
			if info.State != pb.ProcessState_PROCESS_STATE_RUNNING || info.End != nil || info.OutputBytes != 3 ||
				time.Since(info.StartedAt.AsTime()).Abs() > time.Minute {
				t.Errorf("running: %v", info)
			}
		}
		c.must(c.sendInput(ctx, pid(f.pid), []byte("\n")))
		f.exit(3)
		if find(false) != nil {
			t.Error("it has ended and is listed")
		}
		c.d.needs(t, "process.list_exited")
		if info = find(true); info == nil || info.State != pb.ProcessState_PROCESS_STATE_EXITED ||
			info.End.GetExitCode() != 3 || info.OutputBytes != 3 {
			t.Errorf("ended: %v", info)
		}
	})
}

// TestKeptAfterEnd checks that a process and its output are there 28 s after
// its end; the contract says 30.
func TestKeptAfterEnd(t *testing.T) {
	each(t, "connect-proto-h2c", func(t *testing.T, c *call) {
		req, name := sh("echo kept; exit 9"), unique(t)
		req.Tag = &name
		f := c.start(bounded(t), req).exit(9)
		time.Sleep(28 * time.Second) // what is tested is that nothing happens
		ctx := bounded(t)
		for _, sel := range []*pb.ProcessSelector{pid(f.pid), tag(name)} {
			r := c.attach(ctx, &pb.ConnectRequest{Process: sel, Offset: proto.Uint64(0)})
			if r.exit(9); string(r.stdout) != "kept\n" {
				t.Errorf("stdout %q", r.stdout)
			}
		}
	})
}

// reader reads a process to its end like a client that survives being cut off:
// it continues where it is told to.
type reader struct {
	*follow
	c       *call
	aborted int
}

func (r *reader) all(ctx context.Context, until uint64) {
	r.t.Helper()
	for r.offset < until {
		if r.read() {
			continue
		}
		if r.end != nil {
			break
		}
		r.c.wantCode(r.err, connect.CodeAborted)
		point := resumePoint(r.t, r.err)
		if point != r.offset {
			r.t.Fatalf("continue at %d, %d was read", point, r.offset)
		}
		before := r.follow
		before.s.close()
		r.follow = r.c.attach(ctx, &pb.ConnectRequest{Process: pid(before.pid), Offset: &point})
		r.chunks = append(before.chunks, r.chunks...)
		r.gaps = append(before.gaps, r.gaps...)
		r.aborted++
	}
}

// check compares what was read, piece by piece, with what was written, and
// wants the gaps to account for the rest.
func (r *reader) check(want []byte) {
	r.t.Helper()
	read, lost := 0, 0
	for _, d := range r.chunks {
		b := d.GetStdout()
		if at := int(d.GetOffset()); at+len(b) > len(want) || !bytes.Equal(b, want[at:at+len(b)]) {
			r.t.Fatalf("other bytes than were written at %d", at)
		}
		read += len(b)
	}
	for _, g := range r.gaps {
		lost += int(g.To - g.From)
	}
	if read+lost != len(want) {
		r.t.Errorf("%d bytes read and %d named as lost, of %d", read, lost, len(want))
	}
}

// longLines is how many lines are 15 MB: more than fits in all buffers on the way.
const longLines = 2_000_000

// longSequence is what "seq" prints of them, made once: it takes seconds.
var longSequence = sync.OnceValue(func() (text []byte) {
	for i := range longLines {
		text = append(strconv.AppendInt(text, int64(i+1), 10), '\n')
	}
	return text
})

// TestSlowReaderContinues checks that a reader which falls behind another is
// told so, and where to continue, and then has every byte that is kept, and
// the word for every one that is not.
func TestSlowReaderContinues(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		c.d.needs(t, "process.output_offsets")
		want := longSequence()
		ctx := bounded(t)
		f := c.start(ctx, sh(fmt.Sprintf("read x; seq %d; read x", longLines)))
		slow := &reader{c: c, follow: c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(0)})}
		fast := &reader{c: c, follow: f}
		c.must(c.sendInput(ctx, pid(f.pid), []byte("\n")))
		fast.all(ctx, uint64(len(want)))
		fast.check(want)
		slow.all(ctx, uint64(len(want)))
		slow.check(want)
		if slow.aborted == 0 {
			t.Error("it was never cut off")
		}
		if tail := slow.chunks[len(slow.chunks)-1]; !bytes.HasSuffix(want, tail.GetStdout()) {
			t.Error("it did not get the end")
		}
		c.must(c.sendInput(ctx, pid(f.pid), []byte("\n")))
		for _, r := range []*reader{fast, slow} {
			if r.all(ctx, math.MaxUint64); r.end.GetStatus() != "exit status 0" {
				t.Errorf("end %v", r.end)
			}
		}
	})
}

// TestSlowReaderAlone checks that a reader that is alone is waited for.
func TestSlowReaderAlone(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		want := longSequence()
		ctx := bounded(t)
		f := c.start(ctx, sh(fmt.Sprintf("seq %d; echo done >&2", longLines)))
		// It does not read until the program has come to a stand: blocked, or
		// at its end with a client that reads ahead so far (grpc-go).
		before := uint64(0)
		for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
			now := written(t, c, f.pid)
			if now == before && now > 64<<10 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the program does not wait")
			}
			before = now
		}
		f.exit(0)
		if !bytes.Equal(f.stdout, want) {
			t.Errorf("%d bytes are not what was written", len(f.stdout))
		}
	})
}

// written is how much a process has written so far.
func written(t *testing.T, c *call, p uint32) uint64 {
	t.Helper()
	for _, info := range c.list(t.Context(), true) {
		if info.Pid == p {
			return info.OutputBytes
		}
	}
	return 0
}

// resumePoint is the offset in an aborted stream's error.
func resumePoint(t *testing.T, err error) uint64 {
	t.Helper()
	coded := (*connect.Error)(nil)
	if !errors.As(err, &coded) {
		t.Fatalf("no code: %v", err)
	}
	for _, d := range coded.Details() {
		if v, err := d.Value(); err == nil {
			if p, ok := v.(*pb.ResumePoint); ok {
				return p.Offset
			}
		}
	}
	t.Fatalf("no resume point in %v", err)
	return 0
}

// TestAllThereIsOneWrite checks that a stream that has everything when it
// begins goes out in one write, start, output and end together (trap 31): over
// HTTP/1.1 a response that was never flushed has a length.
func TestAllThereIsOneWrite(t *testing.T) {
	each(t, "connect-json-http1", func(t *testing.T, c *call) {
		c.d.needs(t, "process.output_offsets")
		req, name := sh("echo all"), unique(t)
		req.Tag = &name
		c.run(bounded(t), req)
		body := envelope(0, []byte(`{"process":{"tag":"`+name+`"},"offset":"0"}`))
		res, err := http1().Post(c.d.base+procedure("Connect"), "application/connect+json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.ContentLength != int64(len(text)) || !bytes.Contains(text, []byte("YWxsCg==")) || !bytes.Contains(text, []byte(`"end"`)) {
			t.Errorf("length %d, transfer encoding %v, %v: %q", res.ContentLength, res.TransferEncoding, err, text)
		}
	})
}
