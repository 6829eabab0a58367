package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/internal/guest"
)

// textUnauthorized is what clients get who lack the token, or a signature. The
// wire contract fixes it.
const textUnauthorized = "unauthorized access, please provide a valid access token or method signing if supported"

// errUnauthorized is for requests that lack the token, or a signature.
var errUnauthorized = errors.New(textUnauthorized)

// tokenHeader carries the access token.
const tokenHeader = "X-Access-Token"

// Operations that signatures are for.
const (
	opRead  = "read"
	opWrite = "write"
)

// tokenOnly lets nothing pass without the token once one is set, but for what
// decides on its own. CORS preflights do not get here.
func tokenOnly(settings *guest.Store, next http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := settings.Load().Token
		if !token.IsSet() || ownRules(r) || token.Matches(r.Header.Get(tokenHeader)) {
			next.ServeHTTP(w, r)
			return
		}
		if isRPC(r) && errs.IsSupported(r) {
			// gRPC and streams carry the code in their own form.
			_ = errs.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errUnauthorized)) // client gone
			return
		}
		httpError(w, http.StatusUnauthorized, textUnauthorized)
	})
}

// ownRules tells the requests that need no token, or that their handlers let
// in: /files by signature, /init by what the metadata service says.
func ownRules(r *http.Request) bool {
	switch r.URL.Path {
	case "/health":
		return r.Method == http.MethodGet
	case "/init":
		return r.Method == http.MethodPost
	case "/files":
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch:
			return true
		}
	}
	return false
}

// isRPC tells requests whose client reads the error of an RPC: those to a
// service, and all that come as gRPC. /package.Service/Method is the form of
// paths in all protocols.
func isRPC(r *http.Request) bool {
	service, method, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return r.Method == http.MethodPost && rpcContentType(r.Header.Get("Content-Type")) &&
		ok && method != "" && strings.Contains(service, ".")
}

// authorizeFiles decides whether r may do operation on /files and for whom: by
// token or by signature, once a token is set. Its errors are errUnauthorized
// and guest.ErrUnknownUser, both of status 401.
func (c Config) authorizeFiles(r *http.Request, operation string) (guest.Account, error) {
	settings := c.Settings.Load()
	query := r.URL.Query()
	switch sent := r.Header.Get(tokenHeader); {
	case !settings.Token.IsSet(), settings.Token.Matches(sent):
	case sent != "": // wrong, whatever the signature is
		return guest.Account{}, errUnauthorized
	default:
		if err := checkSignature(settings, query, operation, time.Now()); err != nil {
			return guest.Account{}, err
		}
	}
	name := query.Get("username")
	if name == "" {
		name = settings.User
	}
	acct, err := c.Accounts.Lookup(name)
	if err != nil {
		return guest.Account{}, fmt.Errorf("files: %w", err)
	}
	return acct, nil
}

// checkSignature checks what a request without a token shows in its place.
func checkSignature(settings *guest.Settings, query url.Values, operation string, now time.Time) error {
	after := ""
	if expiration := query.Get("signature_expiration"); expiration != "" {
		seconds, err := strconv.ParseInt(expiration, 10, 64)
		if err != nil || now.Unix() > seconds {
			return errUnauthorized
		}
		after = ":" + expiration
	}
	names := []string{query.Get("username")}
	if names[0] == "" {
		names = append(names, settings.User)
	}
	for _, name := range names {
		sum := settings.Token.Sign(query.Get("path")+":"+operation+":"+name+":", after)
		if signatureEquals(query.Get("signature"), sum) {
			return nil
		}
	}
	return errUnauthorized
}

// signatureEquals compares in constant time.
func signatureEquals(sent string, sum [sha256.Size]byte) bool {
	want := "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(sent), []byte(want)) == 1
}

// hostOnly refuses what comes from inside the guest; see Config.FromGuest.
func (c Config) hostOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.fromGuest(r) {
			httpError(w, http.StatusForbidden, r.URL.Path+" is for the host of this guest, not for what runs inside")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// fromGuest tells whether r comes from inside the guest.
func (c Config) fromGuest(r *http.Request) bool {
	return c.FromGuest != nil && c.FromGuest(r.Context())
}
