package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
)

const (
	// prepares is how many there are, on a machine with time for them, and a quarter
	// of that at least.
	prepares = 200
	loadTime = 20 * time.Second
	// initEvery is after how many prepares the host says that it has restored.
	initEvery = 8
)

// load is work on a guest that counts what was done and fails the test when
// something done is not whole. What fails with an error may be tried again.
type load struct {
	g                            *guest
	stop                         chan struct{}
	wg                           sync.WaitGroup
	commands, uploads, downloads atomic.Int64
	again                        atomic.Int64
}

// repeat calls work until the load stops. An error has to be one that a prepare
// or a restore explains.
func (l *load) repeat(done *atomic.Int64, work func(n int) error) {
	l.wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			default:
			}
			err := work(n)
			switch {
			case err == nil:
				done.Add(1)
			case lostConnection(err), connect.CodeOf(err) == connect.CodeAborted:
				l.again.Add(1)
			default:
				l.g.t.Errorf("work %d: %v", n, err)
				return
			}
		}
	})
}

// TestPrepareUnderLoad prepares, comes back and restores again and again while
// commands start and stream and files go up and down over both versions of
// HTTP: whatever succeeds is whole, and in the end nothing is left.
func TestPrepareUnderLoad(t *testing.T) {
	g := boot(t, "--output-retain", "30s")
	// Not the root filesystem: what is measured here is not a disk.
	dir, err := os.MkdirTemp("/dev/shm", "envd-snapshot-") //nolint:usetesting // in memory
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := run(t.Context(), g.peer(true), "true"); err != nil { // opens what is opened once
		t.Fatal(err)
	}
	for _, p := range g.peers {
		p.http.CloseIdleConnections()
	}
	g.await("the connection to close", func() bool { return g.sockets() == 0 })
	before := g.descriptors()

	l := &load{g: g, stop: make(chan struct{})}
	for i := range 4 {
		p := g.peer(i%2 == 0)
		l.repeat(&l.commands, func(int) error { return stream(t.Context(), p) })
	}
	for i := range 2 {
		p := g.peer(i%2 == 0)
		// A path for each try: one that failed for the client may still write.
		l.repeat(&l.uploads, func(n int) error { return l.upload(t.Context(), p, filepath.Join(dir, fmt.Sprint(i, "-", n)), n) })
		l.repeat(&l.downloads, func(int) error { return l.download(t.Context(), p) })
	}
	// One long command, followed from its first byte to its last.
	long, endLong := g.count(g.peer(true))
	followed := make(chan struct{})
	go func() { defer close(followed); whole(t, long) }()

	host := g.peer(false)
	n, inits := 0, uint64(0)
	for began := time.Now(); n < prepares && (n < prepares/4 || time.Since(began) < loadTime); n++ {
		if err := host.Prepare(t.Context()); err != nil {
			t.Errorf("prepare %d: %v", n, err)
			break
		}
		if n%initEvery == 0 {
			g.initNow(host)
			inits++
		}
	}
	close(l.stop)
	l.wg.Wait()
	endLong()
	<-followed
	t.Logf("%d prepares, %d commands, %d uploads, %d downloads; %d tried again", n, l.commands.Load(), l.uploads.Load(), l.downloads.Load(), l.again.Load())
	for name, n := range map[string]int64{"commands": l.commands.Load(), "uploads": l.uploads.Load(), "downloads": l.downloads.Load()} {
		if n < prepares/20 {
			t.Errorf("%d %s", n, name)
		}
	}
	if s := g.state(host); s.Generation != 1+inits {
		t.Errorf("generation %d", s.Generation)
	}
	for _, p := range g.peers {
		p.http.CloseIdleConnections()
	}
	g.await("the descriptors of before", func() bool { return g.descriptors() <= before })
}

// stream runs a command that writes a known text, and checks it.
func stream(ctx context.Context, p *peer) error {
	stdin := false
	cmd, err := p.Start(ctx, &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "seq 1 30000"}}, Stdin: &stdin,
	})
	if err != nil {
		return err
	}
	defer cmd.Close()
	sum := sha256.New()
	for {
		e, err := cmd.Next(ctx)
		if err != nil {
			return err
		}
		if e.GetEnd() != nil {
			break
		}
		sum.Write(client.Output(e.GetData()))
	}
	if want := sequence(); !bytes.Equal(sum.Sum(nil), want[:]) {
		return errors.New("the output of seq is not whole")
	}
	return nil
}

// sequence is the hash of what seq writes.
var sequence = sync.OnceValue(func() [sha256.Size]byte {
	var text strings.Builder
	for i := range 30000 {
		fmt.Fprintln(&text, i+1)
	}
	return sha256.Sum256([]byte(text.String()))
})

// upload puts a file up and checks what is there when that succeeded.
func (l *load) upload(ctx context.Context, p *peer, path string, n int) error {
	body := bytes.Repeat([]byte(fmt.Sprintf("%08d", n)), 64<<10)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.g.base+"/files?path="+url.QueryEscape(path), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("upload: %s: %s", res.Status, text)
	}
	got, err := os.ReadFile(path)
	_ = os.Remove(path)
	if err != nil || !bytes.Equal(got, body) {
		return fmt.Errorf("an upload of %d bytes left %d, %v", len(body), len(got), err)
	}
	return nil
}

// download gets the daemon's own program and checks it.
func (l *load) download(ctx context.Context, p *peer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.g.base+"/files?path="+program, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("download: %s", res.Status)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, res.Body); err != nil {
		return err
	}
	if want := programSum(); !bytes.Equal(sum.Sum(nil), want[:]) {
		return errors.New("a download is not whole")
	}
	return nil
}

var programSum = sync.OnceValue(func() [sha256.Size]byte {
	b, err := os.ReadFile(program)
	if err != nil {
		panic(err)
	}
	return sha256.Sum256(b)
})
