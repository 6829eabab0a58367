package api

import (
	"net/http"
	"strings"
)

// features names what we have beyond the shared wire contract.
var features = []string{
	"machine.shutdown",          // POST /shutdown
	"files.archives",            // directories as tar archives, both ways
	"files.atomic",              // POST /files with atomic=true, Repr-Digest and Content-Digest
	"files.patch",               // PATCH /files with Content-Range
	"files.zstd",                // downloads in zstd
	"filesystem.rename_from",    // FilesystemEvent.from
	"init.env_remove",           // null in envVars of POST /init
	"metrics.text",              // GET /metrics for Prometheus, and as OpenMetrics
	"ports",                     // GET /ports, also as an event stream
	"process.end_event_details", // EndEvent output_open, oom_killed, usage
	"process.kill_after",        // SendSignalRequest.kill_after_ms
	"process.limits",            // StartRequest.limits
	"process.list_exited",       // ListRequest.include_exited, ProcessInfo details
	"process.output_offsets",    // DataEvent.offset, ConnectRequest.offset, gap events
	"snapshot.freeze_workload",  // POST /snapshot/prepare with a body
	"snapshot.status",           // GET /snapshot
}

// health answers GET /health.
func health(version string) http.Handler {
	// The names are plain words. Package json would take longer over them than
	// over all routes, and the first answer waits for it.
	body := []byte(`{"version":"` + version + `","features":["` + strings.Join(features, `","`) + `"]}`)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(body)
	})
}
