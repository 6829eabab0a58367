package process

import (
	"sync/atomic"
	"testing"
)

// A process counts while anything of it is left: also a descendant that has the
// output, after the leader's end.
func TestUnsettled(t *testing.T) {
	cfg := DefaultConfig()
	var starts atomic.Int32
	cfg.Started = func() { starts.Add(1) }
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		starts.Store(0)
		want := func(n int) {
			t.Helper()
			if got := r.table.Unsettled(); got != n {
				t.Errorf("%d unsettled, want %d", got, n)
			}
		}
		want(0)
		p, rd := r.start(spec("sh", "-c", "sleep 300 & exit"))
		defer rd.close()
		wait(t, "the leader's end", p.exited)
		want(1)
		must(t, p.Kill())
		wait(t, "the end of all", p.settled)
		eventually(t, "nothing is left", func() bool { return r.table.Unsettled() == 0 })
		if got := starts.Load(); got != 1 {
			t.Errorf("%d starts were told", got)
		}
	})
}
