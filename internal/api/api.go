// Package api is the wire: every endpoint and RPC, and nothing but the
// translation between messages and the domain packages.
//
// New is the one page of routes, errors.go the one table of codes and status,
// follow.go the one loop that feeds a stream. A handler's ResponseWriter or
// stream is used on the handler's goroutine alone. Handlers hold no state
// between requests; what lives longer belongs to a domain package.
package api

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/gen/process/processconnect"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/metrics"
	"github.com/wrenn/envd/internal/ports"
	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/snapshot"
)

// maxMessage is the largest message accepted, in bytes, from the wire contract.
const maxMessage = 64 << 20

// Config is what the handlers work with.
type Config struct {
	Version   string
	Settings  *guest.Store
	Accounts  *guest.Accounts
	Processes *process.Table
	// Ports is nil where the kernel does not tell of them.
	Ports *ports.Forwarder
	// Usage remembers the use of the processor for GET /metrics.
	Usage *metrics.Usage
	// Figures, when not nil, adds those of parts that the handlers do not use.
	Figures  func(*metrics.Text)
	Watchers *Watchers
	// Snapshot is nil for a guest that knows no snapshots.
	Snapshot *snapshot.Coordinator
	Log      *slog.Logger
	// Cork, when not nil, makes the connection of a request hold incomplete
	// segments back until it is called again with false. For HTTP/1.1 only.
	Cork func(ctx context.Context, on bool)
	// FromGuest tells whether the request of that context comes from inside
	// the guest. Nil means that none does: outside Firecracker, host and guest
	// are one machine.
	FromGuest func(ctx context.Context) bool
	// Shutdown takes the machine down; nil where the daemon is not its init.
	// It returns at once.
	Shutdown func(grace time.Duration, restart bool)
	// UserAccess limits file operations to what the user itself may do.
	UserAccess bool
	// Machine is what /init changes, as its only caller.
	Machine *guest.Machine
	// Identities is nil where there is no metadata service.
	Identities Identities
	// Restorer may be nil: then nothing is ever restored.
	Restorer Restorer

	threads *slots // see maxThreads; made by New
}

// Handler serves everything that the daemon serves.
type Handler struct {
	http.Handler

	warm []func() http.Handler
}

// Warm makes the handlers that the first RPC would have to wait for: a third
// of a cold start. It may run while requests come in.
func (h *Handler) Warm() {
	for _, build := range h.warm {
		build()
	}
}

// New makes the handler. RPC handlers are made when they are first used, or by
// Warm.
func New(cfg Config) *Handler {
	if cfg.threads == nil { // but for tests it is
		cfg.threads = newSlots(maxThreads, threadWait)
	}
	common := connect.WithHandlerOptions(
		connect.WithReadMaxBytes(maxMessage),
		connect.WithRecover(logPanic(cfg.Log)),
		// Requests may be compressed; responses are not: output is sent the
		// moment it is there, and one core cannot compress as fast as it comes.
		connect.WithCompressMinBytes(math.MaxInt),
		connect.WithInterceptors(outcomes{}),
	)
	counts := newCalls()
	rpc := connect.WithHandlerOptions(common, connect.WithRequestGate(userGate(cfg.Settings, cfg.Accounts)))
	services := []string{processconnect.ProcessName, filesystemconnect.FilesystemName}

	mux := http.NewServeMux()
	mux.Handle("GET /health", health(cfg.Version))
	cfg.mountSnapshot(mux)
	mux.HandleFunc("GET /envs", cfg.envs)
	mux.Handle("POST /init", cfg.hostOnly(newInitService(cfg)))
	mux.Handle("GET /metrics", cfg.metrics(counts))
	mux.Handle("GET /ports", listPorts(cfg.Ports))
	mux.Handle("POST /shutdown", cfg.hostOnly(http.HandlerFunc(cfg.shutdown)))
	(&fileTransfer{cfg}).route(mux)
	h := &Handler{Handler: cfg.returning(tokenOnly(cfg.Settings, jsonErrors(mux)))}
	mount := func(service string, build func() (string, http.Handler)) (made func() http.Handler) {
		made = sync.OnceValue(func() http.Handler {
			_, h := build()
			return rpcOnly(batched(h, cfg.Cork, counts))
		})
		mux.HandleFunc("/"+service+"/", func(w http.ResponseWriter, r *http.Request) { made().ServeHTTP(w, r) })
		return made
	}
	h.warm = append(h.warm, mount(processconnect.ProcessName, func() (string, http.Handler) {
		return processconnect.NewProcessHandler(&processService{cfg}, rpc)
	}))
	h.warm = append(h.warm, mount(filesystemconnect.FilesystemName, func() (string, http.Handler) {
		return newFilesystemHandler(&filesystemService{cfg}, rpc)
	}))
	mount(grpcHealthName, func() (string, http.Handler) { return newHealthHandler(services, common, handCodecs()) })
	for _, name := range []string{reflectionName, reflectionAlphaName} {
		mount(name, func() (string, http.Handler) {
			return newReflectionHandler(name, append(services, grpcHealthName), common, handCodecs())
		})
	}
	return h
}
