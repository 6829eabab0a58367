package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/shutdown", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	authenticate{c.opts}.set(req.Header)
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // read as far as it matters
	if res.StatusCode != http.StatusNoContent {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // the status says enough
		return fmt.Errorf("shutdown: status %s: %s", res.Status, text)
	}
	return nil
}
