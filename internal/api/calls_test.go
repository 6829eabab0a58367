package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	fspb "github.com/wrenn/envd/gen/filesystem"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/metrics"
)

// TestProcedures: every RPC is counted under its own name.
func TestProcedures(t *testing.T) {
	var want []string
	for _, file := range []protoreflect.FileDescriptor{fspb.File_filesystem_filesystem_proto, pb.File_process_process_proto} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				want = append(want, "/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name()))
			}
		}
	}
	slices.Sort(want)
	if !slices.Equal(procedures, want) {
		t.Errorf("got %q, want %q", procedures, want)
	}
	if !slices.IsSorted(callBounds) || len(callBounds) != manyBounds {
		t.Errorf("%d bounds: %v", len(callBounds), callBounds)
	}
}

// TestCallsOutcome counts calls by the code of the handler, or of the gate, or
// else by what the status says.
func TestCallsOutcome(t *testing.T) {
	const path = "/process.Process/List"
	for name, tc := range map[string]struct {
		serve func(http.ResponseWriter, *http.Request)
		path  string
		want  string
	}{
		"success":   {func(_ http.ResponseWriter, r *http.Request) { noteOutcome(r.Context(), nil) }, path, `procedure="` + path + `",code="ok"} 1`},
		"error":     {func(_ http.ResponseWriter, r *http.Request) { noteOutcome(r.Context(), invalid("no")) }, path, `code="invalid_argument"} 1`},
		"cancelled": {func(_ http.ResponseWriter, r *http.Request) { noteOutcome(r.Context(), context.Canceled) }, path, `code="canceled"} 1`},
		"refused":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }, path, `code="invalid_argument"} 1`},
		"too large": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, path, `code="resource_exhausted"} 1`},
		"no method": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "/process.Process/No\"such", `procedure="other",code="unimplemented"} 1`},
		"silent":    {func(http.ResponseWriter, *http.Request) {}, path, `code="unknown"} 1`},
		"panic":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, path, `code="unknown"} 1`},
	} {
		t.Run(name, func(t *testing.T) {
			counts := newCalls()
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.URL.Path = tc.path
			func() {
				defer func() { _ = recover() }()
				batched(http.HandlerFunc(tc.serve), nil, counts).ServeHTTP(httptest.NewRecorder(), r)
			}()
			text := metrics.NewText(metrics.Prometheus)
			counts.write(text)
			got := string(text.Bytes())
			if !strings.Contains(got, tc.want) || strings.Count(got, "_count{") != 1 {
				t.Errorf("no %s in\n%s", tc.want, got)
			}
			if strings.Contains(got, "No") {
				t.Error("a client's word is a label")
			}
		})
	}
}

func TestCallsNil(t *testing.T) {
	var c *calls
	c.begin("/x")(connect.CodeInternal)
	c.readerCutOff()
}

// BenchmarkCalls is what counting costs a call.
func BenchmarkCalls(b *testing.B) {
	counts := newCalls()
	for b.Loop() {
		counts.begin(procedures[3])(0)
	}
}
