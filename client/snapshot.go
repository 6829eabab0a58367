package client

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Prepare brings the guest to rest. When it returns, the machine may be frozen.
// The next request of anybody but the guest itself brings it back.
func (c *Client) Prepare(ctx context.Context) error {
	if err := c.plain(ctx, http.MethodPost, "/snapshot/prepare", nil, nil); err != nil {
		return fmt.Errorf("prepare for a snapshot: %w", err)
	}
	return nil
}

// Freeze says how PrepareFrozen treats the commands. The daemon fills in what
// is 0.
type Freeze struct {
	// Wait is how long to look whether they have stopped.
	Wait time.Duration
	// Thaw is when they go on by themselves if nobody comes back.
	Thaw time.Duration
}

// Prepared is what the daemon observed in PrepareFrozen.
type Prepared struct {
	Generation uint64 `json:"generation"`
	// Synced: the root filesystem was written out in time.
	Synced   bool `json:"synced"`
	Workload struct {
		// State is "frozen" when all was seen to have stopped, else
		// "not_frozen", "failed" or "unavailable".
		State  string `json:"state"`
		Groups int    `json:"groups"`
		Frozen int    `json:"frozen"`
		Failed int    `json:"failed"`
	} `json:"workload"`
}

// PrepareFrozen is Prepare with the commands stopped as well, until the guest's
// next init, or a request that is about more than its health.
func (c *Client) PrepareFrozen(ctx context.Context, f Freeze) (Prepared, error) {
	var p Prepared
	req := map[string]any{"freeze_workload": true}
	if f.Wait > 0 {
		req["max_wait_ms"] = f.Wait.Milliseconds()
	}
	if f.Thaw > 0 {
		req["thaw_after_ms"] = f.Thaw.Milliseconds()
	}
	if err := c.plain(ctx, http.MethodPost, "/snapshot/prepare", req, &p); err != nil {
		return p, fmt.Errorf("prepare for a snapshot with the workload frozen: %w", err)
	}
	return p, nil
}

// SnapshotState is where the guest is between snapshots.
type SnapshotState struct {
	// State is "running", "preparing", "prepared" or "restoring", as the call
	// found it: it brings the guest back like any other.
	State string `json:"state"`
	// Generation counts restores, beginning with 1.
	Generation uint64 `json:"generation"`
	// Pending: a prepare has come, and no init since.
	Pending bool `json:"pending"`
	// Frozen: the commands are.
	Frozen bool `json:"frozen"`
}

// Snapshot asks for the state.
func (c *Client) Snapshot(ctx context.Context) (SnapshotState, error) {
	var s SnapshotState
	if err := c.plain(ctx, http.MethodGet, "/snapshot", nil, &s); err != nil {
		return s, fmt.Errorf("ask for the snapshot state: %w", err)
	}
	return s, nil
}
