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
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/gen/process/processconnect"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/ports"
	"github.com/wrenn/envd/internal/process"
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
	Log   *slog.Logger
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
}

// New makes the handler of everything the daemon serves.
func New(cfg Config) http.Handler {
	common := connect.WithHandlerOptions(
		connect.WithReadMaxBytes(maxMessage),
		connect.WithRecover(logPanic(cfg.Log)),
		// Requests may be compressed; responses are not: output is sent the
		// moment it is there, and one core cannot compress as fast as it comes.
		connect.WithCompressMinBytes(math.MaxInt),
	)
	rpc := connect.WithHandlerOptions(common, connect.WithRequestGate(userGate(cfg.Settings, cfg.Accounts)))
	services := []string{processconnect.ProcessName, filesystemconnect.FilesystemName}

	mux := http.NewServeMux()
	mux.Handle("GET /health", health(cfg.Version))
	mux.Handle("GET /ports", listPorts(cfg.Ports))
	mux.Handle("POST /shutdown", cfg.hostOnly(http.HandlerFunc(cfg.shutdown)))
	(&fileTransfer{cfg}).route(mux)
	mount := func(path string, h http.Handler) { mux.Handle(path, rpcOnly(batched(h, cfg.Cork))) }
	mount(processconnect.NewProcessHandler(&processService{cfg}, rpc))
	mount(filesystemconnect.NewFilesystemHandler(filesystemconnect.UnimplementedFilesystemHandler{}, rpc))
	mountHealth(mount, services, common, handCodecs())
	mountReflection(mount, append(services, grpcHealthName), common, handCodecs())
	return tokenOnly(cfg.Settings, jsonErrors(mux))
}
