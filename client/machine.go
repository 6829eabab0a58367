package client

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Shutdown takes the machine down in order: its processes get grace between
// SIGTERM and SIGKILL, then it is powered off, or restarted. It returns when
// the daemon has agreed, before all that.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration, reboot bool) error {
	req := struct {
		GraceMS int64 `json:"grace_ms"`
		Reboot  bool  `json:"reboot"`
	}{grace.Milliseconds(), reboot}
	if err := c.plain(ctx, http.MethodPost, "/shutdown", req, nil); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}
