package wire

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	prometheus "github.com/prometheus/common/model"

	pb "github.com/wrenn/envd/gen/process"
)

const (
	textType        = "text/plain; version=0.0.4; charset=utf-8"
	openMetricsType = "application/openmetrics-text; version=1.0.0; charset=utf-8"
)

// TestMetricsJSON holds GET /metrics to the contract: fields, units, sums.
func TestMetricsJSON(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		res, text := request(t, http1(), "GET", d.base+"/metrics", "")
		if res.StatusCode != http.StatusOK || res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%s %v\n%s", res.Status, res.Header, text)
		}
		var m map[string]float64
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"cpu_count", "cpu_used_pct", "disk_total", "disk_used", "mem_cache",
			"mem_total", "mem_total_mib", "mem_used", "mem_used_mib", "ts",
		}
		if got := slices.Sorted(maps.Keys(m)); d.cmd != nil && !slices.Equal(got, want) {
			t.Errorf("fields %q", got)
		}
		if age := time.Since(time.Unix(int64(m["ts"]), 0)); age < -time.Minute || age > time.Minute {
			t.Errorf("ts is %v", m["ts"])
		}
		if m["cpu_count"] < 1 || m["cpu_used_pct"] < 0 || m["cpu_used_pct"] > 100 ||
			m["mem_used"] <= 0 || m["mem_used"] > m["mem_total"] || m["mem_cache"] > m["mem_total"] ||
			m["disk_total"] <= 0 || m["disk_used"] > m["disk_total"] || m["mem_total_mib"] != float64(int64(m["mem_total"])>>20) {
			t.Errorf("not possible: %v", m)
		}
	})
}

// TestMetricsNegotiation gives everybody what their Accept header means.
func TestMetricsNegotiation(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.needs(t, "metrics.text")
		for accept, want := range map[string]string{
			"":                                   "application/json",
			"*/*":                                "application/json",
			"application/json, text/plain, */*":  "application/json", // axios
			"text/html,*/*;q=0.8":                "application/json", // a browser
			"text/plain":                         textType,
			"text/plain;version=0.0.4;q=0.5":     textType,
			"application/openmetrics-text":       openMetricsType,
			"application/openmetrics-text;q=0.1": openMetricsType,
			// What Prometheus 3 sends.
			"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1": openMetricsType,
		} {
			res, _ := request(t, http1(), "GET", d.base+"/metrics", "", "Accept", accept)
			if got := res.Header.Get("Content-Type"); got != want || res.Header.Get("Vary") == "" {
				t.Errorf("%q: %q, want %q", accept, got, want)
			}
		}
	})
}

// scrape reads the figures as Prometheus does.
func scrape(t *testing.T, d *daemon) map[string]*dto.MetricFamily {
	t.Helper()
	_, text := request(t, http1(), "GET", d.base+"/metrics", "", "Accept", "text/plain")
	parser := expfmt.NewTextParser(prometheus.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return families
}

// value adds up a family's samples that have all the labels.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) (sum float64) {
next:
	for _, m := range families[name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.Label {
			have[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(labels); i += 2 {
			if have[labels[i]] != labels[i+1] {
				continue next
			}
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

// TestMetricsText lets a real parser read the figures, and holds their names to
// the conventions.
func TestMetricsText(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.needs(t, "metrics.text")
		docs, err := os.ReadFile("../../docs/METRICS.md")
		if err != nil {
			t.Fatal(err)
		}
		for name, f := range scrape(t, d) {
			if !strings.Contains(string(docs), "`"+name+"`") {
				t.Errorf("%s is not in docs/METRICS.md", name)
			}
			total := strings.HasSuffix(name, "_total")
			if counter := f.GetType() == dto.MetricType_COUNTER; counter != total {
				t.Errorf("%s is a %v", name, f.GetType())
			}
			if f.GetHelp() == "" || len(f.Metric) == 0 {
				t.Errorf("%s: help %q, %d samples", name, f.GetHelp(), len(f.Metric))
			}
			if regexp.MustCompile(`_(ms|kib|mib|percent|minutes)(_|$)`).MatchString(name) {
				t.Errorf("%s is not in base units", name)
			}
		}
	})
}

// TestMetricsOpenMetrics compares the two text formats: the same samples, and
// what OpenMetrics wants beside.
func TestMetricsOpenMetrics(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.needs(t, "metrics.text")
		_, old := request(t, http1(), "GET", d.base+"/metrics", "", "Accept", "text/plain")
		_, text := request(t, http1(), "GET", d.base+"/metrics", "", "Accept", "application/openmetrics-text")
		if !strings.HasSuffix(text, "\n# EOF\n") || strings.Count(text, "# EOF") != 1 {
			t.Errorf("ends in %q", text[max(0, len(text)-40):])
		}
		names := func(document string) []string {
			all := map[string]bool{}
			for line := range strings.Lines(document) {
				if !strings.HasPrefix(line, "#") {
					name, _, _ := strings.Cut(line, " ")
					all[strings.Replace(name, `.0"`, `"`, 1)] = true
				}
			}
			return slices.Sorted(maps.Keys(all))
		}
		for _, name := range names(old) {
			if !slices.Contains(names(text), name) {
				t.Errorf("%s is missing", name)
			}
		}
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); f[0] == "#" && f[1] == "TYPE" && f[3] == "counter" && strings.HasSuffix(f[2], "_total") {
				t.Errorf("family %s is named as its samples", f[2])
			}
		}
	})
}

// TestMetricsCounts: what clients do is in the figures afterwards, by the code
// that they saw.
func TestMetricsCounts(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		c.d.needs(t, "metrics.text")
		ctx := bounded(t)
		before := scrape(t, c.d)
		f := c.start(ctx, sh("echo out; read line"))
		during := scrape(t, c.d)
		if value(during, "envd_processes", "class", "user") < 1 ||
			value(during, "envd_rpcs_in_flight", "procedure", procedure(methodStart)) < 1 {
			t.Error("a running command and its stream are not counted")
		}
		c.must(c.closeStdin(ctx, pid(f.pid)))
		f.rest()
		_, err := c.tryStart(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "nonesuch"}})
		c.wantCode(err, connect.CodeNotFound)
		_, err = c.tryStart(as(ctx, "nonesuch"), sh("true"))
		c.wantCode(err, connect.CodeUnauthenticated)
		c.wantCode(c.signal(ctx, pid(1<<30), 15), connect.CodeNotFound)

		// A client has its answer a moment before the call is over.
		more := func(name string, labels ...string) {
			t.Helper()
			for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
				after := scrape(t, c.d)
				if value(after, name, labels...) > value(before, name, labels...) {
					return
				}
				if time.Now().After(end) {
					t.Errorf("%s %q: %v before and after", name, labels, value(after, name, labels...))
					return
				}
			}
		}
		start, signal := procedure(methodStart), procedure(methodSignal)
		more("envd_rpcs_total", "procedure", start, "code", "ok")
		more("envd_rpcs_total", "procedure", start, "code", "not_found")
		more("envd_rpcs_total", "procedure", start, "code", "unauthenticated")
		more("envd_rpcs_total", "procedure", signal, "code", "not_found")
		more("envd_rpc_duration_seconds", "procedure", start)
		more("envd_process_starts_total")
		more("envd_process_start_failures_total")
		more("envd_sent_bytes_total")
	})
}
