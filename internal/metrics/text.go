package metrics

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Format is a text format for figures.
type Format int

const (
	// Prometheus is the Prometheus text format, version 0.0.4.
	Prometheus Format = iota
	// OpenMetrics is OpenMetrics 1.0.
	OpenMetrics
)

// ContentType is the media type of a document.
func (f Format) ContentType() string {
	if f == OpenMetrics {
		return "application/openmetrics-text; version=1.0.0; charset=utf-8"
	}
	return "text/plain; version=0.0.4; charset=utf-8"
}

// Text is a document of figures under way: families, and their samples right
// after. Names follow the conventions of Prometheus: base units at the end,
// "_total" for counters, which is added here. It is for one goroutine.
type Text struct {
	format Format
	b      []byte
	name   string // of the family under way, with what its samples end in
}

// NewText begins a document.
func NewText(format Format) *Text { return &Text{format: format} }

// Bytes ends the document and answers it.
func (t *Text) Bytes() []byte {
	if t.format == OpenMetrics {
		t.b = append(t.b, "# EOF\n"...)
	}
	return t.b
}

// Gauge begins a family of values that go up and down.
func (t *Text) Gauge(name, help string) { t.family(name, "", "gauge", help) }

// Counter begins a family of values that only go up; name is without "_total".
func (t *Text) Counter(name, help string) { t.family(name, "_total", "counter", help) }

// family begins a family; help is one line without a backslash. The older format names it as its samples, OpenMetrics
// without their suffix.
func (t *Text) family(name, suffix, kind, help string) {
	t.name = name + suffix
	if t.format == Prometheus {
		name = t.name
	}
	t.b = append(t.b, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+kind+"\n"...)
	for _, unit := range []string{"_seconds", "_bytes"} {
		if t.format == OpenMetrics && strings.HasSuffix(name, unit) {
			t.b = append(t.b, "# UNIT "+name+" "+unit[1:]+"\n"...)
		}
	}
}

// escape makes a label's value fit between quotes.
func escape(s string) string {
	s = strings.ReplaceAll(s, `\`, `\\`)
	s = strings.ReplaceAll(s, "\n", `\n`)
	return strings.ReplaceAll(s, `"`, `\"`)
}

// Sample adds a value of the family; labels are names and values in turn.
func (t *Text) Sample(value float64, labels ...string) { t.sample(t.name, value, labels...) }

// Seconds is Sample for a duration.
func (t *Text) Seconds(d time.Duration, labels ...string) { t.Sample(d.Seconds(), labels...) }

func (t *Text) sample(name string, value float64, labels ...string) {
	t.b = append(t.b, name...)
	for i := 0; i+1 < len(labels); i += 2 {
		before := byte(',')
		if i == 0 {
			before = '{'
		}
		t.b = append(t.b, before)
		t.b = append(t.b, labels[i]+`="`+escape(labels[i+1])+`"`...)
	}
	if len(labels) > 0 {
		t.b = append(t.b, '}')
	}
	t.b = append(t.b, ' ')
	t.b = strconv.AppendFloat(t.b, value, 'g', -1, 64)
	t.b = append(t.b, '\n')
}

// Histogram adds a distribution of durations to the family that HistogramFamily
// began: how many were at most each bound, in order and not cumulative, with
// those beyond the last at the end.
func (t *Text) Histogram(bounds []time.Duration, counts []uint64, sum time.Duration, labels ...string) {
	var all uint64
	name := t.name
	for i, n := range counts {
		all += n
		le := "+Inf"
		if i < len(bounds) {
			le = t.bound(bounds[i].Seconds())
		}
		t.sample(name+"_bucket", float64(all), append(labels[:len(labels):len(labels)], "le", le)...)
	}
	t.sample(name+"_sum", sum.Seconds(), labels...)
	t.sample(name+"_count", float64(all), labels...)
}

// HistogramFamily begins a family of distributions.
func (t *Text) HistogramFamily(name, help string) { t.family(name, "", "histogram", help) }

// bound writes a bucket's bound: OpenMetrics wants to see that it is no integer.
func (t *Text) bound(v float64) string {
	s := strconv.FormatFloat(v, 'g', -1, 64)
	if t.format == OpenMetrics && v == math.Trunc(v) && !strings.ContainsAny(s, "e.") {
		s += ".0"
	}
	return s
}
