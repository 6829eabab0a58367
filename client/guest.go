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
	if err := c.plain(ctx, http.MethodPost, "/init", in, nil); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
}

// Envs answers the default environment of processes.
func (c *Client) Envs(ctx context.Context) (map[string]string, error) {
	var env map[string]string
	if err := c.plain(ctx, http.MethodGet, "/envs", nil, &env); err != nil {
		return nil, fmt.Errorf("envs: %w", err)
	}
	return env, nil
}

// plain does a request that is no RPC: it sends in as JSON, unless that is nil,
// and reads the answer into out, unless that is. An answer that says no is a
// *StatusError.
func (c *Client) plain(ctx context.Context, method, path string, in, out any) error {
	var sent []byte
	if in != nil {
		var err error
		if sent, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(sent))
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	authenticate{c.opts}.set(req.Header)
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // read to the end
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	switch {
	case err != nil:
		return err
	case res.StatusCode/100 != 2:
		return refused(res.StatusCode, text)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("answer %.100q: %w", text, err)
	}
	return nil
}
