package torture

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
)

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// What a command is given and says is never logged, at no level: neither
// arguments nor environment, input nor output.
func TestPayloadIsNeverLogged(t *testing.T) {
	leaktest.Check(t)
	var log lockedBuffer
	base := startDaemon(t, cgroupRoot(t), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	w := newWorker(base, 0)
	defer w.close()

	const secret = "hunter2"
	req := shell("echo $VALUE " + secret + "; cat; echo " + secret + " >&2; exit 3")
	req.Process.Envs = map[string]string{"VALUE": secret}
	stdin := true
	req.Stdin = &stdin
	cmd, err := w.c.Start(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Close()
	if err := cmd.Write(t.Context(), false, []byte(secret+"\n")); err != nil {
		t.Fatal(err)
	}
	if err := cmd.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	end, err := readAll(t.Context(), cmd, sha256.New(), sha256.New())
	if err != nil || end.ExitCode != 3 {
		t.Fatalf("end %v, error %v", end, err)
	}
	// A start that fails is told to the client, not to the log.
	_, err = w.c.Start(t.Context(), start("/nonesuch/"+secret, secret))
	if err == nil {
		t.Fatal("started a program that does not exist")
	}
	if text := log.String(); !strings.Contains(text, "process started") {
		t.Errorf("the start is not logged:\n%s", text)
	} else if strings.Contains(text, secret) {
		t.Errorf("payload is logged:\n%s", text)
	}
}
