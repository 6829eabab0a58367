package daemon

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/linux"
	"github.com/wrenn/envd/internal/snapshot"
)

// snapshotConfig says what a snapshot is prepared with.
func snapshotConfig(g *ground, log *slog.Logger) snapshot.Config {
	return snapshot.Config{
		Sync:     func() error { return linux.SyncFilesystem("/") },
		Shrink:   func() { g.trim(); trim() },
		Reseed:   func() { reseed(log) },
		Workload: workload{g},
		Log:      log,
	}
}

// workload is all commands, as what a snapshot may freeze.
type workload struct{ ground *ground }

func (w workload) Freeze(ctx context.Context) (snapshot.Frozen, error) {
	groups := w.ground.hierarchy()
	if groups == nil {
		return snapshot.Frozen{}, cgroup.ErrUnusable
	}
	return snapshot.Frozen(groups.Freeze(ctx)), nil
}

func (w workload) Thaw() error {
	groups := w.ground.hierarchy()
	if groups == nil {
		return nil
	}
	return groups.Thaw()
}

// paused is a part that stops at once.
type paused struct {
	part interface {
		Pause()
		Resume()
	}
}

func (p paused) Quiesce(context.Context) error {
	p.part.Pause()
	return nil
}

func (p paused) Resume() { p.part.Resume() }

// reseed has the kernel begin a new sequence of random numbers. A clone
// continues the one it was saved with, and would draw the same as its siblings
// for up to a minute: keys, tokens, session ids. The clock, which is the host's
// by now, and the processor's own randomness make the difference. Where the
// host changes a VM generation id the kernel has done so already.
func reseed(log *slog.Logger) {
	if err := linux.Reseed(strconv.AppendInt(nil, time.Now().UnixNano(), 10)); err != nil {
		log.Warn("random numbers may be those of another clone", "error", err)
	}
}
