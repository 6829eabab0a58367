package snapshot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	fs "github.com/wrenn/envd/gen/filesystem"
	pb "github.com/wrenn/envd/gen/process"
)

// counter prints 1, 2, 3, … until the file named $1 is there.
const counter = `i=0; while [ ! -e "$1" ]; do i=$((i+1)); echo $i; sleep 0.005; done; echo end`

// count starts the counter, and answers how to end it.
func (g *guest) count(p *peer) (cmd *client.Command, end func()) {
	g.t.Helper()
	file := filepath.Join(g.t.TempDir(), "end")
	stdin := false
	cmd, err := p.Start(g.t.Context(), &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", counter, "sh", file}}, Stdin: &stdin,
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = cmd.Close() })
	return cmd, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			g.t.Fatal(err)
		}
	}
}

// whole reads a counter's output to its end, and fails the test unless it is
// all there.
func whole(t *testing.T, cmd *client.Command) {
	t.Helper()
	var text strings.Builder
	for {
		e, err := cmd.Next(t.Context())
		if err != nil {
			t.Errorf("after %d bytes: %v", text.Len(), err)
			return
		}
		if e.GetEnd() != nil {
			break
		}
		text.Write(client.Output(e.GetData()))
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if last := lines[len(lines)-1]; last != "end" {
		t.Errorf("%d lines, the last one is %q", len(lines), last)
		return
	}
	for i, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(i+1) {
			t.Errorf("line %d is %q", i+1, line)
			return
		}
	}
}

// attachment is a raw stream of a process, which ends where the daemon ends it.
type attachment struct {
	*connect.ServerStreamForClient[pb.ConnectResponse]

	offset uint64 // behind what has come
}

func (g *guest) attach(p *peer, pid uint32) *attachment {
	g.t.Helper()
	zero := uint64(0)
	s, err := p.Process.Connect(g.t.Context(), connect.NewRequest(&pb.ConnectRequest{
		Process: &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: pid}}, Offset: &zero,
	}))
	if err != nil {
		g.t.Fatal(err)
	}
	a := &attachment{s, 0}
	a.next(g.t)
	return a
}

// next receives one event, and tells whether there was one.
func (a *attachment) next(t *testing.T) bool {
	t.Helper()
	if !a.Receive() {
		return false
	}
	if d := a.Msg().GetEvent().GetData(); d != nil {
		if d.GetOffset() != a.offset {
			t.Errorf("offset %d comes at %d", d.GetOffset(), a.offset)
		}
		a.offset += uint64(len(client.Output(d)))
	}
	return true
}

// aborted fails the test unless the stream ends with the point to go on from.
func (a *attachment) aborted(t *testing.T) {
	t.Helper()
	for a.next(t) {
	}
	coded := (*connect.Error)(nil)
	if !errors.As(a.Err(), &coded) || coded.Code() != connect.CodeAborted {
		t.Errorf("stream ended with %v", a.Err())
		return
	}
	for _, d := range coded.Details() {
		if v, err := d.Value(); err == nil {
			if point, ok := v.(*pb.ResumePoint); ok && point.GetOffset() == a.offset {
				return
			}
			t.Errorf("detail %v, but %d bytes have come", v, a.offset)
			return
		}
	}
	t.Errorf("no point to go on from in %v", a.Err())
}

func (g *guest) state(p *peer) client.SnapshotState {
	g.t.Helper()
	s, err := p.Snapshot(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

// initNow is an init as a host sends it after a restore.
func (g *guest) initNow(p *peer) {
	g.t.Helper()
	g.call(p, http.MethodPost, "/init", fmt.Sprintf(`{"timestamp":%q}`, time.Now().Format(time.RFC3339Nano)), http.StatusNoContent)
}

// TestRestore goes the host's whole way with clients that are still there after
// it: prepare, freeze, health, init.
func TestRestore(t *testing.T) {
	g := boot(t)
	host := g.peer(false)
	user1, user2 := g.peer(false), g.peer(true)
	cmd, endCount := g.count(user1)
	one, two := g.attach(user1, cmd.Pid()), g.attach(user2, cmd.Pid())
	dir := t.TempDir()
	watch, err := user2.Filesystem.WatchDir(t.Context(), connect.NewRequest(&fs.WatchDirRequest{Path: dir}))
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	idle1, idle2 := g.peer(false), g.peer(true)
	for _, p := range []*peer{idle1, idle2} {
		if _, err := p.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.sockets(); n != 5 { // user1 has two, user2 has one
		t.Errorf("%d connections before", n)
	}

	if err := host.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.await("idle connections to close", func() bool { return g.sockets() == 3 })
	one.next(t) // streams are alive
	two.next(t)
	g.stop()
	g.cont()
	if _, err := host.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	one.next(t) // the freeze may not have happened: they still are
	two.next(t)
	g.initNow(host)
	one.aborted(t)
	two.aborted(t)
	for watch.Receive() {
	}
	if connect.CodeOf(watch.Err()) != connect.CodeAborted {
		t.Errorf("watch ended with %v", watch.Err())
	}
	if s := g.state(host); s.State != "running" || s.Generation != 2 || s.Pending {
		t.Errorf("state %+v", s)
	}
	endCount()
	whole(t, cmd)
}

// TestRestoreWithGhosts is TestRestore with clients that the restored guest will
// never hear of again.
func TestRestoreWithGhosts(t *testing.T) {
	g := boot(t)
	host := g.peer(false)
	user1, user2 := g.peer(false), g.peer(true)
	cmd, endCount := g.count(user2)
	one, two := g.attach(user1, cmd.Pid()), g.attach(user2, cmd.Pid())
	defer one.Close()
	defer two.Close()
	upload := g.halfUpload(filepath.Join(t.TempDir(), "file"))
	if err := host.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.stop()
	user1.vanish(t)
	user2.vanish(t)
	g.cont()
	g.initNow(host)
	// The client of the upload is there still, and sees that it failed.
	if res, err := http.ReadResponse(upload, nil); err == nil && res.StatusCode/100 == 2 {
		t.Errorf("half an upload got %s", res.Status)
	}
	host.http.CloseIdleConnections()
	g.await("no stale connection", func() bool { return g.sockets() == 0 })
	endCount()
	whole(t, cmd)
}

// halfUpload begins an upload that stops half-way, and answers where its
// response will come.
func (g *guest) halfUpload(path string) *bufio.Reader {
	g.t.Helper()
	addr := strings.TrimPrefix(g.base, "http://")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	const size = 1 << 20
	fmt.Fprintf(conn, "POST /files?path=%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", path, addr, size)
	if _, err := io.WriteString(conn, strings.Repeat("x", size/2)); err != nil {
		g.t.Fatal(err)
	}
	g.await("the upload to begin", func() bool {
		entries, err := os.ReadDir(filepath.Dir(path))
		return err == nil && len(entries) > 0
	})
	return bufio.NewReader(conn)
}

// TestPrepareWithoutFreeze plays the pause that failed: nobody calls but users,
// and nothing is lost or slower than before.
func TestPrepareWithoutFreeze(t *testing.T) {
	g := boot(t)
	host, user := g.peer(false), g.peer(true)
	cmd, endCount := g.count(user)
	if err := host.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := g.peer(true)
	cmd2, endCount2 := g.count(other) // the first request: it may start
	endCount2()
	whole(t, cmd2)
	if s := g.state(host); s.State != "running" || s.Generation != 1 || !s.Pending {
		t.Errorf("state %+v", s)
	}
	// Keep-alives are back.
	before := len(host.conns)
	for range 3 {
		if _, err := host.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(host.conns) > before {
		t.Errorf("%d connections for three requests", len(host.conns)-before)
	}
	endCount()
	whole(t, cmd)
}

// TestPrepareWithoutClient checks that a prepare goes on when its host has hung
// up, as one does that freezes anyway, and that the answering connection closes
// behind one that has not, over either version of HTTP.
func TestPrepareWithoutClient(t *testing.T) {
	g := boot(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /snapshot/prepare HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	g.await("the prepare to end", func() bool {
		s := g.state(g.peer(false)) // may bring it back; it stays pending
		return s.Pending && s.State != "preparing"
	})
	for _, h2 := range []bool{false, true} {
		host := g.peer(h2)
		if err := host.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.await("the answering connection to close", func() bool { return g.sockets() == 0 })
		if s := g.state(host); s.State != "prepared" {
			t.Errorf("state %+v", s)
		}
		host.http.CloseIdleConnections()
	}
	if err := run(t.Context(), g.peer(true), "true"); err != nil {
		t.Error(err)
	}
}

// frozen tells whether the kernel has all commands of the guest stopped.
func (g *guest) frozen() bool {
	g.t.Helper()
	leaves, err := filepath.Glob(filepath.Join(g.root, "wrenn/*/*/cgroup.events"))
	if err != nil || len(leaves) == 0 {
		g.t.Fatalf("no groups: %v", err)
	}
	for _, file := range leaves {
		if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "frozen 1") {
			return false
		}
	}
	return true
}

// TestWorkloadFrozen checks that commands stop for the freeze, stay so while the
// host only looks, and go on with its init.
func TestWorkloadFrozen(t *testing.T) {
	g := boot(t)
	host, user := g.peer(false), g.peer(true)
	cmd, endCount := g.count(user)
	for round := range uint64(3) {
		p, err := host.PrepareFrozen(t.Context(), client.Freeze{Wait: 5 * time.Second})
		if err != nil || p.Workload.State != "frozen" || p.Workload.Groups != 1 || p.Workload.Frozen != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		if p.Generation != 1+round {
			t.Errorf("generation %d in round %d", p.Generation, round)
		}
		if _, err := host.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := g.state(host); s.State != "running" || !s.Frozen || !g.frozen() {
			t.Errorf("after a look: %+v", s)
		}
		g.initNow(host)
		if s := g.state(host); s.Frozen || g.frozen() {
			t.Errorf("after init: %+v", s)
		}
	}
	endCount()
	whole(t, cmd)
}

// TestWorkloadThawsAlone checks the watchdog.
func TestWorkloadThawsAlone(t *testing.T) {
	g := boot(t)
	host, user := g.peer(false), g.peer(true)
	cmd, endCount := g.count(user)
	if _, err := host.PrepareFrozen(t.Context(), client.Freeze{Wait: 5 * time.Second, Thaw: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	g.await("the thaw", func() bool { return !g.frozen() })
	endCount()
	whole(t, cmd)
}

// TestTimeoutReachesFrozenCommand checks that deadlines stay armed.
func TestTimeoutReachesFrozenCommand(t *testing.T) {
	g := boot(t)
	host, user := g.peer(false), g.peer(true)
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	began := time.Now()
	cmd, err := user.Start(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/sleep", Args: []string{"1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Close()
	if _, err := host.PrepareFrozen(t.Context(), client.Freeze{Wait: 5 * time.Second}); err != nil {
		t.Fatal(err)
	}
	g.await("the kill", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", cmd.Pid()))
		return errors.Is(err, os.ErrNotExist)
	})
	if took := time.Since(began); took < 600*time.Millisecond {
		t.Errorf("killed after %v", took)
	}
}

// TestNoSpawnIntoFrozenCgroup is trap 4: with starts all the time, freezes never
// meet one on its way, and the daemon's runtime goes on.
func TestNoSpawnIntoFrozenCgroup(t *testing.T) {
	g := boot(t)
	stop := make(chan struct{})
	ended := make(chan int)
	const starters = 4
	for i := range starters {
		user := g.peer(i%2 == 0)
		go func() {
			n := 0
			defer func() { ended <- n }()
			for ; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := run(t.Context(), user, "true"); err != nil && !lostConnection(err) {
					t.Errorf("start %d: %v", n, err)
					return
				}
			}
		}()
	}
	refused := 0
	for range 60 {
		host := g.peer(false)
		p, err := host.PrepareFrozen(t.Context(), client.Freeze{Wait: 5 * time.Second})
		if err != nil {
			t.Error(err)
			break
		}
		if p.Workload.State == "failed" { // a start took longer than it waits
			refused++
		}
	}
	close(stop)
	total := 0
	for range starters {
		total += <-ended
	}
	t.Logf("%d commands through 60 freezes, of which %d were refused", total, refused)
	if total < 30 || refused > 30 {
		t.Errorf("%d commands, %d freezes refused", total, refused)
	}
}

// run runs a command through the shell and fails unless it exits with 0.
func run(ctx context.Context, p *peer, line string) error {
	stdin := false
	cmd, err := p.Start(ctx, &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", line}}, Stdin: &stdin,
	})
	if err != nil {
		return err
	}
	defer cmd.Close()
	for {
		e, err := cmd.Next(ctx)
		if err != nil {
			return err
		}
		if end := e.GetEnd(); end != nil {
			if end.GetExitCode() != 0 {
				return fmt.Errorf("exit %v", end)
			}
			return nil
		}
	}
}

// lostConnection tells whether a call failed with its connection: it was idle
// when the guest was prepared, and the request crossed its end.
func lostConnection(err error) bool {
	for _, text := range []string{"EOF", "connection reset", "broken pipe", "use of closed", "client connection", "client conn could not be established", "server sent GOAWAY", "server closed idle connection"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// TestStatusAsWire checks GET /snapshot as a client without our types sees it.
func TestStatusAsWire(t *testing.T) {
	g := boot(t)
	host := g.peer(false)
	var got map[string]any
	if err := json.Unmarshal([]byte(g.call(host, http.MethodGet, "/snapshot", "", http.StatusOK)), &got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != "map[frozen:false generation:1 pending:false state:running]" {
		t.Errorf("%v", got)
	}
}
