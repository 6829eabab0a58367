package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	"github.com/wrenn/envd/gen/filesystem"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/test/vm/pattern"
)

// checkServices asks a machine for everything that a host wants of one.
func checkServices(t *testing.T, m *machine) {
	t.Run("program", func(t *testing.T) { checkProgram(t, m) })
	t.Run("files", func(t *testing.T) { checkFiles(t, m) })
	t.Run("watch", func(t *testing.T) { checkWatch(t, m) })
	t.Run("ports", func(t *testing.T) { checkPorts(t, m) })
	t.Run("terminal", func(t *testing.T) { checkTerminal(t, m) })
	t.Run("memory limit", func(t *testing.T) { checkMemoryLimit(t, m) })
	t.Run("cpu limit", func(t *testing.T) { checkCPULimit(t, m) })
	t.Run("fork bomb", func(t *testing.T) { checkForkBomb(t, m) })
	t.Run("out of memory", func(t *testing.T) { checkOutOfMemory(t, m) })
}

// do sends a request to the daemon, or to another port, and wants status 200
// or 204.
func (m *machine) do(ctx context.Context, method, url, contentType string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := m.link.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("%s %s: %s: %s", method, url, res.Status, b)
	}
	return b, err
}

// base is the daemon's URL.
const base = "http://" + guestIP + ":49983"

// files is the URL of a path on the daemon's /files.
func files(path string) string {
	return base + "/files?path=" + url.QueryEscape(path)
}

// checkProgram uploads a static program, which needs a mode, and runs it.
func checkProgram(t *testing.T, m *machine) {
	program, err := os.ReadFile(env.guest)
	must(t, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "program", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}))
	_, err = w.Write(program)
	must(t, err)
	must(t, w.Close())
	_, err = m.do(t.Context(), http.MethodPost, files("/uploaded"), "application/x-tar", &b)
	must(t, err)
	if out := m.output(t, "/uploaded/program", "echo", "it", "runs"); out != "it runs\n" {
		t.Errorf("it printed %q", out)
	}
}

// checkFiles uploads and downloads.
func checkFiles(t *testing.T, m *machine) {
	content := make([]byte, 3<<20)
	pattern.Fill(content, 1, 0)
	_, err := m.do(t.Context(), http.MethodPost, files("/tmp/below/file"), "application/octet-stream", bytes.NewReader(content))
	must(t, err)
	got, err := m.do(t.Context(), http.MethodGet, files("/tmp/below/file"), "", nil)
	must(t, err)
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back of %d, or others", len(got), len(content))
	}
	entry, err := m.Filesystem.Stat(t.Context(), connect.NewRequest(&filesystem.StatRequest{Path: "/tmp/below/file"}))
	must(t, err)
	if e := entry.Msg.Entry; e.Size != int64(len(content)) || e.Permissions != "-rw-r--r--" {
		t.Errorf("entry %v", e)
	}
}

// checkWatch wants to hear of a file that is made.
func checkWatch(t *testing.T, m *machine) {
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	_, err := m.Filesystem.MakeDir(ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: "/tmp/watched"}))
	must(t, err)
	stream, err := m.Filesystem.WatchDir(ctx, connect.NewRequest(&filesystem.WatchDirRequest{Path: "/tmp/watched"}))
	must(t, err)
	defer stream.Close()
	for stream.Receive() {
		switch event := stream.Msg().GetEvent().(type) {
		case *filesystem.WatchDirResponse_Start:
			m.output(t, "/guest", "write", "/tmp/watched/new", "text")
		case *filesystem.WatchDirResponse_Filesystem:
			if e := event.Filesystem; e.Name != "new" || e.Type != filesystem.EventType_EVENT_TYPE_CREATE {
				t.Errorf("event %v", e)
			}
			return
		}
	}
	t.Fatalf("the watch ended: %v", stream.Err())
}

// checkPorts reaches a server that listens on loopback inside.
func checkPorts(t *testing.T, m *machine) {
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	cmd, err := m.Start(t.Context(), request("/guest", "serve", "127.0.0.1:8000"))
	must(t, err)
	defer cmd.Close()
	for {
		conn, err := m.link.dial(ctx, "tcp", guestIP+":8000")
		if err == nil {
			b, err := io.ReadAll(conn)
			_ = conn.Close()
			if err != nil || string(b) != "from inside\n" {
				t.Errorf("%q, %v", b, err)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	must(t, cmd.Signal(ctx, 9))
	if r, err := finish(ctx, cmd); err != nil {
		t.Errorf("%v, %v", r, err)
	}
}

// limited runs a command under limits while it asks for /health all the time.
func (m *machine) limited(t *testing.T, limits *pb.Limits, argv ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*stepLimit) // taking all memory takes its time
	defer cancel()
	req := request(argv...)
	req.Limits = limits
	cmd, err := m.Start(t.Context(), req)
	must(t, err)
	defer cmd.Close()
	ended := make(chan result, 1)
	go func() {
		r, err := finish(ctx, cmd)
		if err != nil {
			t.Error(err)
		}
		ended <- r
	}()
	var slowest time.Duration
	for n := 0; ; n++ {
		select {
		case r := <-ended:
			if r.end == nil {
				t.Fatalf("no end after %q", r.output)
			}
			t.Logf("%s, %d answers of /health meanwhile, the slowest after %v; %v", r.end.Status, n, slowest.Round(time.Millisecond), r.end.Usage)
			if n == 0 {
				t.Error("no answer of /health meanwhile")
			}
			return r
		default:
		}
		began := time.Now()
		if _, err := m.Health(ctx); err != nil {
			t.Errorf("health while %q runs: %v", argv, err)
		}
		slowest = max(slowest, time.Since(began))
		time.Sleep(10 * time.Millisecond) // the machine has one processor
	}
}

func checkMemoryLimit(t *testing.T, m *machine) {
	const limit = 40 << 20
	r := m.limited(t, &pb.Limits{MemoryMaxBytes: limit}, "/guest", "eat", "100")
	if !r.end.OomKilled || r.end.Status != "signal: killed" {
		t.Errorf("past the limit: %v", r.end)
	}
	if peak := r.end.Usage.PeakMemoryBytes; peak < limit/2 || peak > limit+1<<20 { // what the kernel batches
		t.Errorf("peak of %d bytes under a limit of %d", peak, limit)
	}
	r = m.limited(t, &pb.Limits{MemoryMaxBytes: limit}, "/guest", "eat", "16")
	if r.end.OomKilled || r.end.ExitCode != 0 || r.end.Usage.PeakMemoryBytes < 16<<20 || r.end.Usage.PeakMemoryBytes > limit {
		t.Errorf("below the limit: %v", r.end)
	}
}

// checkCPULimit gives a command a fifth of the processor.
func checkCPULimit(t *testing.T, m *machine) {
	const millicores, wall = 200, 2 * time.Second
	r := m.limited(t, &pb.Limits{CpuMaxMillicores: millicores}, "/guest", "spin", wall.String())
	used := time.Duration(r.end.Usage.CpuUserUs+r.end.Usage.CpuSystemUs) * time.Microsecond
	// One period's worth more: the first begins with a full quota.
	if most := wall*millicores/1000 + 200*time.Millisecond; used > most || used < most/20 {
		t.Errorf("in %v it used %v", wall, used)
	}
}

// checkForkBomb lets a command fork without end, within its limit, and kills it.
func checkForkBomb(t *testing.T, m *machine) {
	const pids, answers = 50, 50
	req := request("/guest", "bomb")
	req.Limits = &pb.Limits{PidsMax: pids}
	cmd, err := m.Start(t.Context(), req)
	must(t, err)
	defer cmd.Close()
	e, err := cmd.Next(t.Context())
	must(t, err)
	made, err := strconv.Atoi(strings.TrimSpace(string(client.Output(e.GetData()))))
	if err != nil || made < pids/2 || made >= pids {
		t.Errorf("under a limit of %d it made %v", pids, e)
	}
	for range answers { // it goes on trying
		_, err := m.Health(t.Context())
		must(t, err)
	}
	must(t, cmd.Signal(t.Context(), 9))
	if r, err := finish(t.Context(), cmd); err != nil || r.end.Status != "signal: killed" {
		t.Errorf("%v, %v", r.end, err)
	}
	if others, _ := m.children(t); len(others) > 0 {
		t.Errorf("of the bomb are left %v", others)
	}
}

// checkOutOfMemory lets a command without a limit take all the machine has.
func checkOutOfMemory(t *testing.T, m *machine) {
	r := m.limited(t, nil, "/guest", "eat", "100000")
	if !r.end.OomKilled || r.end.Status != "signal: killed" {
		t.Errorf("with nothing left: %v", r.end)
	}
	m.output(t, "/guest", "echo") // all is well
}
