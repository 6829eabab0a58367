package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"
)

const (
	// defaultGrace is what processes get between SIGTERM and SIGKILL when the
	// host does not say.
	defaultGrace = 2 * time.Second
	// maxShutdown bounds the body, in bytes.
	maxShutdown = 4 << 10
)

// shutdown answers POST /shutdown: the machine goes down once the answer is
// out. Where the daemon is not its init that is not for it to do.
func (c Config) shutdown(w http.ResponseWriter, r *http.Request) {
	if c.Shutdown == nil {
		httpError(w, http.StatusNotImplemented, "the daemon is not the init of this machine")
		return
	}
	grace, restart, err := parseShutdown(http.MaxBytesReader(w, r.Body, maxShutdown))
	if err != nil {
		httpError(w, http.StatusBadRequest, err.Error())
		return
	}
	c.Log.Info("shutdown was asked for", "grace", grace, "reboot", restart)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
	_ = http.NewResponseController(w).Flush() // client gone: it goes down all the same
	c.Shutdown(grace, restart)
}

// parseShutdown reads {"grace_ms": N, "reboot": bool}, of which nothing has to
// be there.
func parseShutdown(body io.Reader) (grace time.Duration, restart bool, err error) {
	var req struct {
		GraceMS *float64 `json:"grace_ms"`
		Reboot  bool     `json:"reboot"`
	}
	b, err := io.ReadAll(body)
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &req)
	}
	switch {
	case err != nil:
		return 0, false, fmt.Errorf("read body: %w", err)
	case req.GraceMS == nil:
		return defaultGrace, req.Reboot, nil
	case *req.GraceMS < 0 || *req.GraceMS > math.MaxInt32:
		return 0, false, errors.New("grace_ms is out of range")
	}
	return time.Duration(*req.GraceMS * float64(time.Millisecond)), req.Reboot, nil
}
