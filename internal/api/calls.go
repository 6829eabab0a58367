package api

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/gen/process/processconnect"
	"github.com/wrenn/envd/internal/metrics"
)

// procedures are the RPCs that are counted one by one, in order. Whatever else
// a client calls counts as another: names from outside are no labels.
var procedures = []string{
	filesystemconnect.FilesystemCreateWatcherProcedure,
	filesystemconnect.FilesystemGetWatcherEventsProcedure,
	filesystemconnect.FilesystemListDirProcedure,
	filesystemconnect.FilesystemMakeDirProcedure,
	filesystemconnect.FilesystemMoveProcedure,
	filesystemconnect.FilesystemRemoveProcedure,
	filesystemconnect.FilesystemRemoveWatcherProcedure,
	filesystemconnect.FilesystemStatProcedure,
	filesystemconnect.FilesystemWatchDirProcedure,
	processconnect.ProcessCloseStdinProcedure,
	processconnect.ProcessConnectProcedure,
	processconnect.ProcessListProcedure,
	processconnect.ProcessSendInputProcedure,
	processconnect.ProcessSendSignalProcedure,
	processconnect.ProcessStartProcedure,
	processconnect.ProcessStreamInputProcedure,
	processconnect.ProcessUpdateProcedure,
}

// anotherProcedure is the label of all others.
const anotherProcedure = "other"

// callBounds divide the durations of calls. Streams last long.
var callBounds = []time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, time.Minute, 10 * time.Minute,
}

const (
	manyBounds = 18 // callBounds, and one more bucket for what is beyond
	manyCodes  = int(connect.CodeUnauthenticated) + 1
)

// calls counts RPCs. All methods may be called from any goroutine, also on nil,
// which counts nothing.
type calls struct {
	base   time.Time           // what durations are measured by: half the cost of a time
	all    func() []callCounts // by procedure, the others at the end; made at the first call
	cutOff atomic.Uint64       // readers
}

// callCounts are of one procedure.
type callCounts struct {
	open    atomic.Int64
	codes   [manyCodes]atomic.Uint64 // 0 is success
	buckets [manyBounds + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

func newCalls() *calls {
	return &calls{base: time.Now(), all: sync.OnceValue(func() []callCounts { return make([]callCounts, len(procedures)+1) })}
}

func (c *calls) of(procedure string) *callCounts {
	i, ok := slices.BinarySearch(procedures, procedure)
	if !ok {
		i = len(procedures)
	}
	return &c.all()[i]
}

// begin counts a call of the procedure; the function it returns, its end.
func (c *calls) begin(procedure string) (end func(connect.Code)) {
	if c == nil {
		return func(connect.Code) {}
	}
	n, began := c.of(procedure), time.Since(c.base)
	n.open.Add(1)
	return func(code connect.Code) {
		took := time.Since(c.base) - began
		bucket, _ := slices.BinarySearch(callBounds, took)
		n.buckets[bucket].Add(1)
		n.sum.Add(int64(took))
		n.codes[min(int(code), manyCodes-1)].Add(1)
		n.open.Add(-1)
	}
}

// readerCutOff counts a reader that was too slow beside others.
func (c *calls) readerCutOff() {
	if c != nil {
		c.cutOff.Add(1)
	}
}

// write writes the figures of the calls.
func (c *calls) write(t *metrics.Text) {
	all := c.all()
	each := func(f func(procedure string, n *callCounts)) {
		for i := range all {
			name := anotherProcedure
			if i < len(procedures) {
				name = procedures[i]
			}
			f(name, &all[i])
		}
	}
	t.Counter("envd_rpcs", "RPCs that have ended, by procedure and code.")
	each(func(procedure string, n *callCounts) {
		for code := range n.codes {
			if count := n.codes[code].Load(); count > 0 || code == 0 {
				t.Sample(float64(count), "procedure", procedure, "code", codeName(connect.Code(code)))
			}
		}
	})
	t.Gauge("envd_rpcs_in_flight", "RPCs under way, by procedure.")
	each(func(procedure string, n *callCounts) { t.Sample(float64(n.open.Load()), "procedure", procedure) })
	t.HistogramFamily("envd_rpc_duration_seconds", "Duration of RPCs from the request to the end of the response; a stream lasts as long as it is open.")
	each(func(procedure string, n *callCounts) {
		var counts [manyBounds + 1]uint64
		called := false
		for i := range counts {
			counts[i] = n.buckets[i].Load()
			called = called || counts[i] > 0
		}
		if called { // one that was never called has nothing to tell
			t.Histogram(callBounds, counts[:], time.Duration(n.sum.Load()), "procedure", procedure)
		}
	})
	t.Counter("envd_readers_cut_off", "Readers of output that were cut off since they fell behind others.")
	t.Sample(float64(c.cutOff.Load()))
}

func codeName(c connect.Code) string {
	if c == 0 {
		return "ok"
	}
	return c.String()
}

// outcomes notes in a call's batch how the handler ended it.
type outcomes struct{}

func noteOutcome(ctx context.Context, err error) {
	if b, ok := ctx.Value(batchKey{}).(*batch); ok {
		b.ended = true
		if err != nil {
			b.code = connect.CodeOf(rpcError(err))
		}
	}
}

// WrapUnary implements connect.Interceptor.
func (outcomes) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		noteOutcome(ctx, err)
		return res, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (outcomes) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (outcomes) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		noteOutcome(ctx, err)
		return err
	}
}

// outcome is the code of the call, also of one that no handler has seen: then
// it is what the status says, as RPC clients take it.
func (b *batch) outcome() connect.Code {
	switch {
	case b.ended || b.code != 0:
		return b.code
	case b.status == http.StatusUnauthorized:
		return connect.CodeUnauthenticated
	case b.status == http.StatusTooManyRequests:
		return connect.CodeResourceExhausted
	case b.status == http.StatusNotFound:
		return connect.CodeUnimplemented
	case b.status == http.StatusBadRequest:
		return connect.CodeInvalidArgument
	default:
		return connect.CodeUnknown
	}
}
