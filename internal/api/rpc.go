package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/internal/guest"
)

// rpcOnly answers what cannot be an RPC in JSON, which the RPC handlers do not,
// takes timeouts of zero for none, and what is no body for the client's fault.
func rpcOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			httpError(w, http.StatusMethodNotAllowed, "RPCs are called with POST, not "+r.Method)
			return
		}
		if ct := r.Header.Get("Content-Type"); !rpcContentType(ct) {
			httpError(w, http.StatusUnsupportedMediaType,
				fmt.Sprintf("content type %q is none of Connect, gRPC or gRPC-Web", ct))
			return
		}
		// connect-go takes a timeout of 0 for one that is over.
		for _, name := range []string{"Connect-Timeout-Ms", "Grpc-Timeout"} {
			if v := r.Header.Get(name); v != "" && strings.Trim(v, "0 HMSmun") == "" {
				r.Header.Del(name)
			}
		}
		if r.ProtoMajor == 1 {
			r.Body = rpcBody{r.Body}
		}
		next.ServeHTTP(&jsonStatus{ResponseWriter: w, r: r}, r)
	})
}

// rpcBody is the body of an RPC over HTTP/1.1. connect-go has no code for one
// that is malformed, or for one that breaks off: it says unknown, internal or
// canceled.
type rpcBody struct{ io.ReadCloser }

func (b rpcBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var broken net.Error
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, http.ErrBodyReadAfterClose) || errors.As(err, &broken) {
		return n, err //nolint:wrapcheck // readers compare it
	}
	return n, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("read request body: %w", err))
}

// rpcContentType tells the types that some RPC of ours takes. That one is used
// for the wrong kind of RPC, or with an unknown codec, connect-go finds. Case
// does not matter (RFC 9110, section 8.3.1).
func rpcContentType(ct string) bool {
	ct, _, _ = strings.Cut(ct, ";")
	switch ct = strings.ToLower(strings.TrimSpace(ct)); {
	case ct == "application/json", ct == "application/proto":
		return true
	default:
		return strings.HasPrefix(ct, "application/connect+") || strings.HasPrefix(ct, "application/grpc")
	}
}

// logPanic makes a handler's panic an error of that call alone.
func logPanic(log *slog.Logger) func(context.Context, connect.Spec, http.Header, any) error {
	return func(ctx context.Context, spec connect.Spec, _ http.Header, v any) error {
		log.ErrorContext(ctx, "handler panicked", "rpc", spec.Procedure, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		return connect.NewError(connect.CodeInternal, errors.New("internal error, see the daemon's log"))
	}
}

type accountKey struct{}

// userGate finds the user that an RPC acts for, before its message is read:
// the name in HTTP Basic authentication, without a password, or the default.
func userGate(settings *guest.Store, accounts *guest.Accounts) connect.RequestGateFunc {
	return func(ctx context.Context, _ connect.Spec, _ connect.Peer, h http.Header) (_ context.Context, err error) {
		defer func() {
			if err != nil {
				noteOutcome(ctx, err) // no handler will
			}
		}()
		name, err := basicUser(h.Get("Authorization"))
		if err != nil {
			return nil, connect.NewError(connect.CodeUnauthenticated, err)
		}
		if name == "" {
			name = settings.Load().User
		}
		acct, err := accounts.Lookup(name)
		if err != nil {
			return nil, rpcError(err)
		}
		return context.WithValue(ctx, accountKey{}, acct), nil
	}
}

// account is the user of an RPC; userGate has set it.
func account(ctx context.Context) guest.Account {
	return ctx.Value(accountKey{}).(guest.Account)
}

// basicUser answers the user name in an Authorization header, or "". Other
// schemes are somebody else's, such as a proxy's.
func basicUser(header string) (string, error) {
	scheme, value, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", nil
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if err != nil {
		return "", errors.New("basic authentication is not valid base64")
	}
	name, _, _ := strings.Cut(string(b), ":")
	return name, nil
}
