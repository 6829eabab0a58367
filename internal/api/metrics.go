package api

import (
	"encoding/json"
	"math"
	"net/http"
	"time"

	"github.com/wrenn/envd/internal/metrics"
)

// Media types of figures.
const (
	typeJSON        = "application/json"
	typeOpenMetrics = "application/openmetrics-text"
	typeText        = "text/plain"
)

// host is what the machine uses, on the wire.
type host struct {
	Timestamp   int64   `json:"ts"` // Unix, seconds
	CPUCount    int     `json:"cpu_count"`
	CPUUsed     float64 `json:"cpu_used_pct"`
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskTotal   uint64  `json:"disk_total"`
	DiskUsed    uint64  `json:"disk_used"`
}

// metrics answers GET /metrics: the JSON of the wire contract, or a text format
// for those who ask for one.
func (c Config) metrics(counts *calls) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Vary", "Accept")
		var body []byte
		var err error
		kind := prefers(r.Header.Values("Accept"), typeJSON, typeOpenMetrics, typeText)
		switch kind {
		case typeJSON:
			body, err = c.hostJSON()
		case typeOpenMetrics:
			body, kind, err = c.figures(metrics.OpenMetrics, counts)
		default:
			body, kind, err = c.figures(metrics.Prometheus, counts)
		}
		if err != nil {
			httpError(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(body) // the client is gone: nothing to tell
	})
}

func (c Config) hostJSON() ([]byte, error) {
	cpu, err := metrics.ReadCPU()
	if err != nil {
		return nil, err
	}
	mem, err := metrics.ReadMemory()
	if err != nil {
		return nil, err
	}
	disk, err := metrics.ReadDisk("/")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return json.Marshal(host{
		Timestamp: now.Unix(), CPUCount: cpu.Count, CPUUsed: math.Round(c.Usage.Percent(now, cpu)*100) / 100,
		MemTotal: mem.Total, MemUsed: mem.Used, MemCache: mem.Cache,
		MemTotalMiB: mem.Total >> 20, MemUsedMiB: mem.Used >> 20,
		DiskTotal: disk.Total, DiskUsed: disk.Used,
	})
}

// figures is all that there is to tell. docs/METRICS.md lists it.
func (c Config) figures(format metrics.Format, counts *calls) (body []byte, contentType string, err error) {
	t := metrics.NewText(format)
	t.Gauge("envd_build_info", "The daemon's version.")
	t.Sample(1, "version", c.Version)
	if err := t.Host(); err != nil {
		return nil, "", err
	}
	if err := t.Self(); err != nil {
		return nil, "", err
	}
	c.processFigures(t)
	counts.write(t)
	t.Gauge("envd_watchers", "Watchers that are polled. Streams are RPCs in flight.")
	t.Sample(float64(c.Watchers.Len()))
	if c.Ports != nil {
		c.portFigures(t)
	}
	if c.Snapshot != nil {
		t.Counter("envd_restores", "Restores from a snapshot.")
		t.Sample(float64(c.Snapshot.Generation() - 1)) // the first is the boot's
	}
	if c.Figures != nil {
		c.Figures(t)
	}
	return t.Bytes(), format.ContentType(), nil
}

func (c Config) processFigures(t *metrics.Text) {
	var terminals, others int
	for _, p := range c.Processes.List(false) {
		if p.Terminal() {
			terminals++
		} else {
			others++
		}
	}
	t.Gauge("envd_processes", "Commands that run, by class.")
	t.Sample(float64(terminals), "class", "pty")
	t.Sample(float64(others), "class", "user")
	n := c.Processes.Counts()
	t.Counter("envd_process_starts", "Commands that were started.")
	t.Sample(float64(n.Started))
	t.Counter("envd_process_start_failures", "Commands that could not be started.")
	t.Sample(float64(n.Failed))
}

func (c Config) portFigures(t *metrics.Text) {
	s := c.Ports.Stats()
	t.Gauge("envd_forwarded_ports", "Loopback ports that are forwarded.")
	t.Sample(float64(s.Forwards))
	t.Gauge("envd_forwarded_connections", "Forwarded connections that are open.")
	t.Sample(float64(s.Connections))
	t.Counter("envd_forwarded_connections_accepted", "Connections accepted on forwarded ports.")
	t.Sample(float64(s.Accepted))
	t.Counter("envd_forwarded_connections_failed", "Of them, those that nobody took behind the forward.")
	t.Sample(float64(s.Failed))
	t.Counter("envd_forwarded_bytes", "Bytes forwarded, in to the programs that listen and out.")
	t.Sample(float64(s.In), "direction", "in")
	t.Sample(float64(s.Out), "direction", "out")
}
