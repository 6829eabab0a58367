package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// writes is a ResponseWriter that notes each write and flush.
type writes struct {
	http.ResponseWriter
	log []string
	err error
}

func (w *writes) Write(p []byte) (int, error) {
	w.log = append(w.log, string(p))
	return len(p), w.err
}

func (w *writes) FlushError() error {
	w.log = append(w.log, "FLUSH")
	return w.err
}

func (w *writes) want(t *testing.T, log ...string) {
	t.Helper()
	if len(log) != len(w.log) {
		t.Fatalf("got %.200q, expected %.200q", w.log, log)
	}
	for i := range log {
		if w.log[i] != log[i] {
			t.Fatalf("got %.200q, expected %.200q", w.log, log)
		}
	}
}

func (w *writes) text(t *testing.T, s string, to io.Writer) {
	t.Helper()
	if n, err := io.WriteString(to, s); n != len(s) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
}

// TestBatchGathers checks that a message goes out in one write.
func TestBatchGathers(t *testing.T) {
	w := &writes{}
	b := &batch{ResponseWriter: w}
	w.text(t, "a", b)
	w.text(t, "b", b)
	w.want(t)
	b.Flush()
	w.want(t, "ab", "FLUSH")
	b.Flush() // with nothing
	w.want(t, "ab", "FLUSH", "FLUSH")
	w.text(t, "rest", b)
	b.finish()
	w.want(t, "ab", "FLUSH", "FLUSH", "rest")
}

// TestBatchHold checks that many messages go out under one flush.
func TestBatchHold(t *testing.T) {
	w := &writes{}
	b := &batch{ResponseWriter: w}
	b.hold()
	for range 3 {
		w.text(t, "m", b)
		b.Flush()
	}
	w.want(t)
	if err := b.release(); err != nil {
		t.Fatal(err)
	}
	w.want(t, "mmm", "FLUSH")
	b.hold()
	big := string(bytes.Repeat([]byte("x"), flushAt))
	w.text(t, big, b)
	w.want(t, "mmm", "FLUSH", big) // written, since it is enough, but not flushed
	if err := b.release(); err != nil {
		t.Fatal(err)
	}
	w.want(t, "mmm", "FLUSH", big, "FLUSH")
}

// TestBatchComplete checks that nothing follows a body that is whole.
func TestBatchComplete(t *testing.T) {
	w := &writes{}
	b := &batch{ResponseWriter: w}
	w.text(t, "whole", b)
	b.complete()
	w.text(t, "{}", b)
	b.finish()
	w.want(t, "whole")
}

// TestBatchTakeBack checks that an error can replace what was not sent yet.
func TestBatchTakeBack(t *testing.T) {
	w := &writes{}
	b := &batch{ResponseWriter: w}
	if !b.takeBack() {
		t.Error("nothing was sent")
	}
	w.text(t, "part", b)
	if !b.takeBack() {
		t.Error("nothing was sent")
	}
	w.text(t, "error", b)
	b.Flush()
	w.want(t, "error", "FLUSH")
	if b.takeBack() {
		t.Error("some was sent")
	}
}

// TestBatchError checks that after a failed write nothing is written.
func TestBatchError(t *testing.T) {
	broken := errors.New("broken")
	w := &writes{err: broken}
	b := &batch{ResponseWriter: w}
	b.hold()
	w.text(t, "a", b)
	if err := b.release(); !errors.Is(err, broken) {
		t.Errorf("release: %v", err)
	}
	if _, err := b.Write([]byte("b")); !errors.Is(err, broken) {
		t.Errorf("write: %v", err)
	}
	b.Flush()
	b.finish()
	w.want(t, "a")
}

// TestBatchInterrupt checks that a blocked write can be ended, and that doing
// so after the handler has returned does no harm (a write to a stream after
// its handler returned panics).
func TestBatchInterrupt(t *testing.T) {
	leaktest.Check(t)
	for _, h2 := range []bool{false, true} {
		batches, failed := make(chan *batch, 1), make(chan error, 1)
		srv := httptest.NewUnstartedServer(batched(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			b := batchFrom(r.Context())
			if r.URL.Path == "/whole" {
				_, _ = io.WriteString(b, "whole")
				batches <- b
				return
			}
			batches <- b
			for {
				if _, err := b.Write(make([]byte, 64<<10)); err != nil {
					failed <- err
					return
				}
				b.Flush()
			}
		}), nil, nil))
		p := new(http.Protocols)
		p.SetHTTP1(!h2)
		p.SetUnencryptedHTTP2(h2)
		srv.Config.Protocols = p
		srv.Start()
		tr := &http.Transport{Protocols: p}
		get := func(path string) *http.Response {
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			return res
		}
		blocked := get("/blocked")
		b := <-batches
		select {
		case err := <-failed:
			t.Fatalf("HTTP/2 %v: %v", h2, err)
		case <-time.After(100 * time.Millisecond): // long enough to be blocked; if not, the test is weaker
		}
		b.interrupt()
		select {
		case <-failed:
		case <-time.After(20 * time.Second):
			t.Fatalf("HTTP/2 %v: the write goes on", h2)
		}
		_ = blocked.Body.Close()

		res := get("/whole")
		b = <-batches
		if text, err := io.ReadAll(res.Body); err != nil || string(text) != "whole" {
			t.Errorf("read %q, %v", text, err)
		}
		_ = res.Body.Close()
		b.interrupt() // its handler has returned
		res = get("/whole")
		<-batches
		if text, err := io.ReadAll(res.Body); err != nil || string(text) != "whole" {
			t.Errorf("HTTP/2 %v: after an interrupt too late: %q, %v", h2, text, err)
		}
		_ = res.Body.Close()
		tr.CloseIdleConnections()
		srv.Close()
	}
}
