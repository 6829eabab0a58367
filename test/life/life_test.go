package life

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/daemon"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/process"
)

// clock is the guest's clock, which a restore leaves behind.
type clock struct {
	mu  sync.Mutex
	off time.Duration // guarded by mu
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) Set(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = time.Until(t)
	return nil
}

// runDaemon runs a daemon in this process until the test ends: with a clock of
// ours, and under the race detector. It waits for all children of the process,
// so the test starts none itself from then on.
func runDaemon(t *testing.T, c *clock) {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, daemon.Config{
			Version: "0.9.0", Port: n, Firecracker: true, CgroupRoot: "/nonexistent",
			ForwardIP: netip.MustParseAddr(forward), Output: process.DefaultConfig(),
			Clock: c, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("daemon: %v", err)
		}
	})
	await(t, "the daemon to listen", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// be makes the metadata service say who the guest is.
func (w *world) be(instance, template, token string) {
	w.mmds.set(map[string]string{
		"instanceID": instance, "envID": template, "accessTokenHash": fmt.Sprintf("%x", sha512.Sum512([]byte(token))),
	})
}

// run runs a program with the token and answers its output.
func run(t *testing.T, c *client.Client, cmd string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	stdin := false
	command, err := c.Start(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: cmd, Args: args}, Stdin: &stdin})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for {
		e, err := command.Next(ctx)
		switch {
		case err != nil:
			t.Fatal(err)
		case e.GetEnd() != nil:
			return out.String()
		case e.GetData() != nil:
			out.Write(client.Output(e.GetData()))
		}
	}
}

// TestWholeLife is a guest's life: boot, init, work, prepare; restore as another
// sandbox with an old clock, init again.
func TestWholeLife(t *testing.T) {
	w := newWorld(t)
	leaktest.Check(t)
	guestClock := &clock{off: -time.Hour} // as after a boot without a clock chip
	runDaemon(t, guestClock)
	host := newCaller(t, "host", w.host, true, guest4)

	// Booted. The host says who the guest is, a moment later.
	await(t, "the fact that this is a sandbox", func() bool {
		b, _ := os.ReadFile("/run/wrenn/.WRENN_SANDBOX")
		return string(b) == "true"
	})
	w.be("sandbox-1", "template-1", "token-1")
	await(t, "the identity", func() bool {
		b, _ := os.ReadFile("/run/wrenn/.WRENN_SANDBOX_ID")
		return string(b) == "sandbox-1"
	})

	// Init, by the one who has the token.
	host.must(t, 401, "POST", "/init", "", initBody("guess"))
	now := func() string { return time.Now().Format(time.RFC3339Nano) }
	host.must(t, 204, "POST", "/init", "", `{"accessToken":"token-1","timestamp":"`+now()+`","envVars":{"KEPT":"1"},"hyperloopIP":"10.77.0.1"}`)
	if off := time.Until(guestClock.Now()).Abs(); off > 100*time.Millisecond {
		t.Errorf("the clock is off by %v", off)
	}
	if b, err := os.ReadFile("/etc/hosts"); err != nil || !strings.HasSuffix(string(b), "\n10.77.0.1\tevents.wrenn.local\n") {
		t.Errorf("hosts: %q, %v", b, err)
	}

	// Work: a command that counts, and a server on loopback.
	old := client.New(host.base, client.Options{Token: "token-1", HTTP: host.http})
	ctx, cancel := context.WithTimeout(t.Context(), 3*limit)
	defer cancel()
	tag, stdin := "counter", false
	counter, err := old.Process.Start(ctx, connect.NewRequest(&pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "sh", Args: []string{"-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"}},
		Tag:     &tag, Stdin: &stdin,
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	var counted strings.Builder
	var pid uint32
	for counted.Len() < 20 && counter.Receive() {
		if s := counter.Msg().GetEvent().GetStart(); s != nil {
			pid = s.Pid
		}
		if d := counter.Msg().GetEvent().GetData(); d != nil {
			counted.Write(client.Output(d))
		}
	}
	serveInGuest(t, "127.0.0.1:8099", "hello")
	await(t, "the port", func() bool { return fetch(w.host, forward+":8099") == "hello" })

	before := generation(t, host, "token-1")

	// Prepare. What is idle is closed, ports are shut, streams stay.
	idle := openIdle(t, w.host)
	host.must(t, 204, "POST", "/snapshot/prepare", "token-1", "")
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection after the prepare: %v", err)
	}
	if got := fetch(w.host, forward+":8099"); got != "" {
		t.Errorf("the port answers %q after the prepare", got)
	}

	// Frozen, and restored as another sandbox: old clock, new identity, and
	// nobody at the other ends of the old connections.
	w.be("sandbox-2", "template-2", "token-2")
	guestClock.mu.Lock()
	guestClock.off = -90 * time.Minute
	guestClock.mu.Unlock()
	restored := newCaller(t, "host after the restore", w.host, true, guest4)

	// A look at the health brings ports back.
	restored.must(t, 200, "GET", "/health", "", "")
	await(t, "the port to come back", func() bool { return fetch(w.host, forward+":8099") == "hello" })

	// Init by the old token is nobody's any more; by the new one it completes.
	restored.must(t, 401, "POST", "/init", "", initBody("token-3"))
	restored.must(t, 204, "POST", "/init", "", `{"accessToken":"token-2","timestamp":"`+now()+`"}`)
	if off := time.Until(guestClock.Now()).Abs(); off > 100*time.Millisecond {
		t.Errorf("the clock is off by %v after the restore", off)
	}
	restored.must(t, 401, "GET", "/envs", "token-1", "")

	// The stream of before ends with the offset to continue from, and its
	// connection with it.
	for counter.Receive() {
		if d := counter.Msg().GetEvent().GetData(); d != nil {
			counted.Write(client.Output(d))
		}
	}
	if connect.CodeOf(counter.Err()) != connect.CodeAborted {
		t.Errorf("the stream of before the restore: %v", counter.Err())
	}
	fresh := client.New(restored.base, client.Options{Token: "token-2", HTTP: restored.http})
	list, err := fresh.Process.List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err != nil || len(list.Msg.Processes) != 1 || list.Msg.Processes[0].Pid != pid {
		t.Fatalf("processes after the restore: %v, %v; want pid %d", list, err, pid)
	}
	goOn, err := fresh.Attach(ctx, &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: tag}}, uint64(counted.Len()))
	if err != nil {
		t.Fatal(err)
	}
	for until := counted.Len() + 20; counted.Len() < until; {
		e, err := goOn.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		counted.Write(client.Output(e.GetData()))
	}
	goOn.Close()
	for i, line := range strings.Split(strings.TrimSpace(counted.String()), "\n") {
		if line != strconv.Itoa(i) && i < strings.Count(counted.String(), "\n") {
			t.Fatalf("line %d is %q: output was lost or came twice", i, line)
		}
	}

	// The new identity is everywhere, and what the first init set is kept.
	env := run(t, fresh, "env")
	for _, want := range []string{
		"WRENN_SANDBOX=true", "WRENN_SANDBOX_ID=sandbox-2", "WRENN_TEMPLATE_ID=template-2", "E2B_SANDBOX_ID=sandbox-2",
		"E2B_TEMPLATE_ID=template-2", "KEPT=1", "WRENN_EVENTS_ADDRESS=http://10.77.0.1",
	} {
		if !strings.Contains("\n"+env, "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, env)
		}
	}
	for path, want := range map[string]string{
		"/run/wrenn/.WRENN_SANDBOX_ID": "sandbox-2", "/run/wrenn/.WRENN_TEMPLATE_ID": "template-2", "/run/e2b/.E2B_SANDBOX_ID": "sandbox-2",
	} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if got := generation(t, restored, "token-2"); got != before+1 {
		t.Errorf("generation %d, then %d", before, got)
	}
	if got := fetch(w.host, forward+":8099"); got != "hello" {
		t.Errorf("the port answers %q", got)
	}
}

// generation asks how often the guest was restored. It runs.
func generation(t *testing.T, c *caller, token string) int {
	t.Helper()
	var status struct {
		State      string
		Generation int
		Pending    bool
	}
	if err := json.Unmarshal([]byte(c.must(t, 200, "GET", "/snapshot", token, "")), &status); err != nil {
		t.Fatal(err)
	}
	if status.State != "running" || status.Pending {
		t.Errorf("snapshot state %+v", status)
	}
	return status.Generation
}

// serveInGuest serves text on a loopback address of the guest.
func serveInGuest(t *testing.T, addr, text string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, text)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
}

// fetch asks for a page from somewhere, "" when there is none.
func fetch(from *place, addr string) string {
	c, err := from.dial("tcp", addr)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return ""
	}
	b, err := io.ReadAll(c)
	_, body, ok := strings.Cut(string(b), "\r\n\r\n")
	if err != nil || !ok {
		return ""
	}
	return body
}

// openIdle opens a connection that has had its one answer.
func openIdle(t *testing.T, from *place) net.Conn {
	t.Helper()
	c, err := from.dial("tcp", guest4+":"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, "HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for b := make([]byte, 512); !strings.HasSuffix(string(got), "\r\n\r\n"); {
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[:n]...)
	}
	return c
}
