package wire

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/test/cgroups"
)

// descriptors counts those that the daemon holds.
func descriptors(t *testing.T, d *daemon) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// listing says what the descriptors are, and the states of TCP connections.
func listing(d *daemon) string {
	var b strings.Builder
	dir := fmt.Sprintf("/proc/%d/fd/", d.cmd.Process.Pid)
	names, _ := os.ReadDir(dir)
	for _, n := range names {
		to, _ := os.Readlink(dir + n.Name())
		fmt.Fprintln(&b, n.Name(), to)
	}
	out, _ := exec.Command("ss", "-tnei", "sport", "= :"+strings.TrimPrefix(d.addr(), "127.0.0.1:")).CombinedOutput()
	return b.String() + string(out)
}

// threads counts the daemon's.
func threads(t *testing.T, d *daemon) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// children are the daemon's, zombies included.
func children(t *testing.T, d *daemon) []string {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	if err != nil || len(lists) == 0 {
		t.Fatalf("no lists of children: %v", err)
	}
	var pids []string
	for _, list := range lists {
		b, _ := os.ReadFile(list) // the thread may have ended
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}

// ownDaemon starts a daemon for one test, with cgroups of its own.
func ownDaemon(t *testing.T) *daemon {
	t.Helper()
	ownBinary(t)
	root := filepath.Join(cgroups.Mount(), "envd-wire-"+strconv.Itoa(os.Getpid())+"-"+t.Name())
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	d := &daemon{name: t.Name(), cgroups: root}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("%v\n%s", err, d.log.tail())
		}
		if err := removeGroups(root); err != nil {
			t.Error(err)
		}
	})
	return d
}

// deaf opens a stream on a connection of its own with little room for what is
// not read, and reads no further than the answer's head.
func deaf(d *daemon, method string, req proto.Message) (*net.TCPConn, error) {
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	if err := tcp.SetReadBuffer(4 << 10); err != nil {
		return nil, err
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	if _, err := tcp.Write(sized(post(d, service+method, "application/connect+proto"), envelope(0, body))); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReaderSize(tcp, 16), &http.Request{Method: http.MethodPost})
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answer %s", res.Status)
	}
	return tcp, nil
}

// cut ends a connection: with what the kernel does for a process that ended,
// or with a reset.
func cut(conn *net.TCPConn, reset bool) {
	if reset {
		_ = conn.SetLinger(0)
	}
	_ = conn.Close()
}

// TestVanish has 200 clients open streams that they do not read, on HTTP/1.1
// and HTTP/2, and vanish at the same instant while the daemon is blocked
// writing to them; five times over.
func TestVanish(t *testing.T) {
	t.Parallel()
	const (
		batches   = 5
		processes = 10 // per batch
		deafEach  = 14 // HTTP/1.1 readers beside the one that started it
		muxEach   = 5  // HTTP/2 readers, which share connections
	)
	d := ownDaemon(t)
	c := &call{t: t, d: d, kind: "connect-proto-http1", caller: newConnect(d, http1())}
	c.output(bounded(t), sh("echo warm"))
	before := descriptors(t, d)
	streams := 0
	for batch := range batches {
		ctx, cancel := context.WithCancel(bounded(t))
		var mu sync.Mutex
		var conns []*net.TCPConn
		var wg sync.WaitGroup
		open := func(method string, req proto.Message) {
			wg.Go(func() {
				conn, err := deaf(d, method, req)
				if err != nil {
					t.Errorf("batch %d: %v", batch, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, conn)
			})
		}
		for i := range processes {
			req, name := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "yes"}}, fmt.Sprintf("%d-%d", batch, i)
			req.Tag = &name
			open(methodStart, req)
		}
		wg.Wait()
		mux := newMux(d)
		for i := range processes {
			req := &pb.ConnectRequest{Process: tag(fmt.Sprintf("%d-%d", batch, i)), Offset: proto.Uint64(0)}
			for range deafEach {
				open(methodConnect, req)
			}
			for range muxEach {
				wg.Go(func() {
					if _, err := mux.stream(ctx, methodConnect, req); err != nil {
						t.Errorf("batch %d: %v", batch, err)
					}
				})
			}
		}
		wg.Wait()
		streams += len(conns) + processes*muxEach
		waitStill(t, c)
		for i, conn := range conns {
			wg.Go(func() { cut(conn, (i+batch)%2 == 0) })
		}
		wg.Go(func() { mux.cut(batch%2 == 0) })
		wg.Wait()
		alive(t, d)
		// The programs live on.
		running := c.list(ctx, false)
		if len(running) != processes {
			t.Errorf("batch %d: %d processes live", batch, len(running))
		}
		for _, p := range running {
			c.must(c.signal(ctx, pid(p.Pid), 9))
		}
		waitUntil(t, "all have ended", func() bool { return len(c.list(ctx, false)) == 0 })
		cancel()
	}
	if streams != batches*processes*(1+deafEach+muxEach) {
		t.Errorf("%d streams", streams)
	}
	clean(t, d, before)
}

// clean waits until a daemon holds nothing of what was.
func clean(t *testing.T, d *daemon, before int) {
	t.Helper()
	waitUntil(t, "no child is left", func() bool { return len(children(t, d)) == 0 })
	// A connection or two of the client's stay open.
	defer func() {
		if t.Failed() {
			t.Logf("descriptors:\n%s", listing(d))
		}
	}()
	waitUntil(t, fmt.Sprintf("there are %d descriptors again", before), func() bool { return descriptors(t, d) <= before+3 })
	if n := threads(t, d); n > 64 { // the runtime does not end them
		t.Errorf("%d threads", n)
	}
	alive(t, d)
}

// waitStill waits until the processes have come to a stand: every reader of
// theirs is blocked.
func waitStill(t *testing.T, c *call) {
	t.Helper()
	var last uint64
	waitUntil(t, "the processes wait for their readers", func() bool {
		time.Sleep(50 * time.Millisecond)
		sum := uint64(0)
		for _, p := range c.list(t.Context(), false) {
			sum += p.OutputBytes
		}
		still := sum > 0 && sum == last
		last = sum
		return still
	})
}

// mux is a client whose calls share a connection, or a few when it is used by
// many at first, that can be cut.
type mux struct {
	caller
	mu    sync.Mutex
	conns []*net.TCPConn // guarded by mu
}

func newMux(d *daemon) *mux {
	m := &mux{}
	hc := http2()
	tr := hc.Transport.(*http.Transport)
	tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10} // of what is not read
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			m.mu.Lock()
			m.conns = append(m.conns, conn.(*net.TCPConn))
			m.mu.Unlock()
		}
		return conn, err
	}
	m.caller = newConnect(d, hc)
	return m
}

func (m *mux) cut(reset bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, conn := range m.conns {
		cut(conn, reset)
	}
}

// TestVanishWhileStarting cuts connections at any moment of a start.
func TestVanishWhileStarting(t *testing.T) {
	t.Parallel()
	const rounds = 300
	d := ownDaemon(t)
	c := &call{t: t, d: d, kind: "connect-proto-http1", caller: newConnect(d, http1())}
	c.output(bounded(t), sh("echo warm"))
	before := descriptors(t, d)
	body := envelope(0, []byte(`{"process":{"cmd":"/bin/sh","args":["-c","seq 1000"]}}`))
	request := sized(post(d, service+methodStart, "application/connect+json"), body)
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	for i := range rounds {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			conn, err := net.Dial("tcp", d.addr())
			if err != nil {
				t.Error(err)
				return
			}
			// Part of the request, all of it, or some of the answer too.
			part := request
			if i%3 == 0 {
				part = request[:i*len(request)/rounds]
			}
			_, _ = conn.Write(part)
			if i%3 == 1 {
				_, _ = conn.Read(make([]byte, 1+i))
			}
			cut(conn.(*net.TCPConn), i%2 == 0)
		})
	}
	wg.Wait()
	waitUntil(t, "all have ended", func() bool { return len(c.list(t.Context(), false)) == 0 })
	for _, p := range c.list(t.Context(), true) {
		if p.End.GetExitCode() != 0 {
			t.Errorf("%v ended with %v", p.Config, p.End)
		}
	}
	clean(t, d, before)
}

// TestVanishWhileWriting has clients vanish whose input the program does not
// take. Each must make room for the next.
func TestVanishWhileWriting(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t)
	c := &call{t: t, d: d, kind: "connect-proto-http1", caller: newConnect(d, http1())}
	for _, reset := range []bool{true, false} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("stream=%v/reset=%v", stream, reset), func(t *testing.T) {
				c := &call{t: t, d: d, kind: c.kind, caller: c.caller}
				ctx := bounded(t)
				f := c.start(ctx, sh("echo ready; exec sleep 1000"))
				f.until("ready")
				before := descriptors(t, d)
				conn, err := net.Dial("tcp", d.addr())
				c.must(err)
				_, err = conn.Write(inputRequest(t, d, f.pid, stream))
				c.must(err)
				waitUntil(t, "the pipe is full", func() bool { return buffered(t, f.pid) == 64<<10 })
				cut(conn.(*net.TCPConn), reset)
				waitUntil(t, "the daemon has let go", func() bool { return descriptors(t, d) <= before })
				c.must(c.signal(ctx, pid(f.pid), 9))
				f.exit(-1)
			})
		}
	}
}

// inputRequest is a request that writes 256 KiB to a process, and promises
// more when it is a stream.
func inputRequest(t *testing.T, d *daemon, to uint32, stream bool) []byte {
	t.Helper()
	marshal := func(m proto.Message) []byte {
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	data := make([]byte, 256<<10)
	if !stream {
		return sized(post(d, service+methodSendInput, "application/json"), marshal(&pb.SendInputRequest{
			Process: pid(to), Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: data}},
		}))
	}
	body := append(envelope(0, marshal(inputStart(pid(to)))), envelope(0, marshal(inputData(data)))...)
	head := post(d, service+methodInput, "application/connect+json")
	return fmt.Appendf(nil, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", head, len(body), body)
}

// buffered is how much waits in the pipe that is a process's stdin.
func buffered(t *testing.T, p uint32) int {
	t.Helper()
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/0", p), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
