package daemon

import (
	"time"

	"github.com/wrenn/envd/internal/metrics"
	"github.com/wrenn/envd/internal/reap"
	"github.com/wrenn/envd/internal/server"
)

// figures adds what the handlers do not know of.
func figures(t *metrics.Text, srv *server.Server, reaper *reap.Reaper) {
	t.Counter("envd_sent_bytes", "Bytes sent to clients, headers included.")
	t.Sample(float64(srv.Sent()))
	t.Counter("envd_orphans_reaped", "Processes reaped that the daemon had not started.")
	t.Sample(float64(reaper.Orphans()))
}

// beginUsage lets the first GET /metrics tell the use of the processor since
// now. Without, it tells that since boot.
func beginUsage(usage *metrics.Usage) {
	if cpu, err := metrics.ReadCPU(); err == nil {
		usage.Begin(time.Now(), cpu)
	}
}
