package metrics

import (
	"testing"
	"time"
)

func document(format Format) string {
	t := NewText(format)
	t.Gauge("a_bytes", "Some bytes.")
	t.Sample(1 << 40)
	t.Counter("b_seconds", "Some time.")
	t.Seconds(1500*time.Millisecond, "kind", "with \"quotes\", a \\ and\na line", "other", "x")
	t.HistogramFamily("c_seconds", "How long.")
	t.Histogram([]time.Duration{time.Millisecond, time.Second}, []uint64{1, 2, 3}, 10*time.Second, "who", "me")
	return string(t.Bytes())
}

func TestTextPrometheus(t *testing.T) {
	const want = `# HELP a_bytes Some bytes.
# TYPE a_bytes gauge
a_bytes 1.099511627776e+12
# HELP b_seconds_total Some time.
# TYPE b_seconds_total counter
b_seconds_total{kind="with \"quotes\", a \\ and\na line",other="x"} 1.5
# HELP c_seconds How long.
# TYPE c_seconds histogram
c_seconds_bucket{who="me",le="0.001"} 1
c_seconds_bucket{who="me",le="1"} 3
c_seconds_bucket{who="me",le="+Inf"} 6
c_seconds_sum{who="me"} 10
c_seconds_count{who="me"} 6
`
	if got := document(Prometheus); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestTextOpenMetrics(t *testing.T) {
	const want = `# HELP a_bytes Some bytes.
# TYPE a_bytes gauge
# UNIT a_bytes bytes
a_bytes 1.099511627776e+12
# HELP b_seconds Some time.
# TYPE b_seconds counter
# UNIT b_seconds seconds
b_seconds_total{kind="with \"quotes\", a \\ and\na line",other="x"} 1.5
# HELP c_seconds How long.
# TYPE c_seconds histogram
# UNIT c_seconds seconds
c_seconds_bucket{who="me",le="0.001"} 1
c_seconds_bucket{who="me",le="1.0"} 3
c_seconds_bucket{who="me",le="+Inf"} 6
c_seconds_sum{who="me"} 10
c_seconds_count{who="me"} 6
# EOF
`
	if got := document(OpenMetrics); got != want {
		t.Errorf("got\n%s", got)
	}
}
