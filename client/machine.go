package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Shutdown takes the machine down in order: its processes get grace between
// SIGTERM and SIGKILL, then it is powered off, or restarted. It returns when
// the daemon has agreed, before all that.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration, reboot bool) error {
	body, err := json.Marshal(struct {
		GraceMS int64 `json:"grace_ms"`
		Reboot  bool  `json:"reboot"`
	}{grace.Milliseconds(), reboot})
	if err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	if _, err := c.plain(ctx, http.MethodPost, "/shutdown", body, http.StatusNoContent); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}
