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

// Init is what a host tells the guest after its boot and after every restore.
// What is empty stays as it is, but for the token.
type Init struct {
	// AccessToken is what requests have to show from then on; "" for none.
	AccessToken string `json:"accessToken,omitempty"`
	// DefaultUser and DefaultWorkdir are for requests that name none.
	DefaultUser    string `json:"defaultUser,omitempty"`
	DefaultWorkdir string `json:"defaultWorkdir,omitempty"`
	// EnvVars are merged into the default environment; nil removes a variable.
	EnvVars map[string]*string `json:"envVars,omitempty"`
	// Timestamp is the host's time. A call that is not newer than the last
	// changes nothing.
	Timestamp *time.Time `json:"timestamp,omitempty"`
	// HyperloopIP is the address of events.wrenn.local.
	HyperloopIP string `json:"hyperloopIP,omitempty"`
	// VolumeMounts are mounted before the call returns. Those of the same
	// LifecycleID that are there already are left alone.
	VolumeMounts []VolumeMount `json:"volumeMounts,omitempty"`
	LifecycleID  string        `json:"lifecycleID,omitempty"`
	// CABundle is PEM certificates that the guest's programs are to trust.
	CABundle string `json:"caBundle,omitempty"`
}

// VolumeMount is an NFS directory, host:/directory, and where it goes.
type VolumeMount struct {
	NFSTarget string `json:"nfs_target"`
	Path      string `json:"path"`
}

// Init tells the guest. The client goes on with the token that it has: to call
// with another one, make another client.
func (c *Client) Init(ctx context.Context, in Init) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if _, err := c.plain(ctx, http.MethodPost, "/init", body, http.StatusNoContent); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
}

// Envs answers the default environment of processes.
func (c *Client) Envs(ctx context.Context) (map[string]string, error) {
	body, err := c.plain(ctx, http.MethodGet, "/envs", nil, http.StatusOK)
	if err != nil {
		return nil, fmt.Errorf("envs: %w", err)
	}
	var env map[string]string
	if err := json.Unmarshal(body, &env); err != nil {
		return nil, fmt.Errorf("envs: %w", err)
	}
	return env, nil
}

// plain does a request that is no RPC and answers the body of the response.
func (c *Client) plain(ctx context.Context, method, path string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	authenticate{c.opts}.set(req.Header)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // read to the end
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode != want:
		return nil, fmt.Errorf("status %s: %.1000s", res.Status, bytes.TrimSpace(text))
	}
	return text, nil
}
