package process

import (
	"testing"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

// A reader that goes before it has read anything leaves the output to the
// pumps, one that does not read to another reader.
func TestFirstReaderDoesNotRead(t *testing.T) {
	const size = 200_000 // more than a pipe holds
	script := shell(`head -c 200000 /dev/zero`)
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(script)
		rd.close()
		eventually(t, "the end to be recorded", func() bool { return p.Exit() != nil })
		if got := p.Written(); got != size {
			t.Errorf("%d bytes without a reader", got)
		}
		p, rd = r.start(script)
		defer rd.close()
		other := r.attach(p, 0)
		defer other.close()
		if out, exit := other.all(); len(out) != size || exit.Code() != 0 {
			t.Errorf("the other reader got %d bytes, %v", len(out), exit)
		}
	})
}

// A pump that the kernel has no room to poll for tries again.
func TestPollRefused(t *testing.T) {
	r := newRig(t, DefaultConfig(), false)
	full, err := linux.OpenEpoll()
	must(t, err)
	must(t, full.Close())
	p, rd := r.start(withStdin(shell("read line; echo here; read line")))
	defer rd.close()
	set := func(to *poller) {
		for _, pump := range p.pumps {
			pump.mu.Lock()
			pump.poller = to
			pump.mu.Unlock()
		}
	}
	set(&poller{epoll: full})
	rd.rest()
	must(t, p.WriteStdin(t.Context(), []byte("\n")))
	time.Sleep(3 * armAgain)
	if n := p.Written(); n != 0 {
		t.Fatalf("%d bytes were read", n)
	}
	set(r.table.poller)
	eventually(t, "the output to be read", func() bool { return p.Written() > 0 })
	rd.expect("here\n")
	must(t, p.Kill())
}
