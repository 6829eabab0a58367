package api

import (
	"context"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/wrenn/envd/internal/filesystem"
	"github.com/wrenn/envd/internal/guest"
)

const (
	// maxInitBody bounds what POST /init reads, in bytes, before it knows who
	// calls. What is large in it is a bundle of certificates: those of a whole
	// system are 220 KiB.
	maxInitBody = 1 << 20
	// maxInitTime bounds how long that may take.
	maxInitTime = 20 * time.Second
	// The metadata service answers within milliseconds where there is one.
	// Where its answer decides, it gets longer.
	identityWait  = 250 * time.Millisecond
	authorityWait = time.Second
)

// Identities knows which sandbox this is. It asks the host.
type Identities interface {
	// Fetch asks once, and changes nothing.
	Fetch(ctx context.Context) (guest.Identity, error)
	// Publish makes an identity known to processes.
	Publish(id guest.Identity)
	// Again begins to ask until there is an answer, and publishes that.
	Again()
}

// Restorer completes restores from snapshots.
type Restorer interface {
	// Pending tells whether a snapshot was prepared and no Restore came since.
	Pending() bool
	// Jumped says by how much the clock was just set ahead.
	Jumped(by time.Duration)
	// Restore says that the machine was restored or, without another, that it
	// was if Pending or if the clock has jumped. It tells which. The connection
	// of the request with the context keep survives.
	Restore(keep context.Context, another bool) bool
}

// initRequest is the body of POST /init. Empty strings ask for nothing.
type initRequest struct {
	AccessToken    string             `json:"accessToken"`
	DefaultUser    string             `json:"defaultUser"`
	DefaultWorkdir string             `json:"defaultWorkdir"`
	EnvVars        map[string]*string `json:"envVars"`
	Timestamp      string             `json:"timestamp"`
	HyperloopIP    string             `json:"hyperloopIP"` // names match in any case, hyperloopIp too
	VolumeMounts   []volumeMount      `json:"volumeMounts"`
	LifecycleID    string             `json:"lifecycleID"`
	CABundle       string             `json:"caBundle"`
}

type volumeMount struct {
	NFSTarget string `json:"nfs_target"`
	Path      string `json:"path"`
}

// initService answers POST /init, one caller at a time.
type initService struct {
	Config
	turns turns
	// newest is the newest timestamp since the boot or the last restore. Only
	// who has the turn looks.
	newest time.Time

	patience time.Duration // maxInitTime, but in tests
}

func newInitService(cfg Config) *initService {
	return &initService{Config: cfg, turns: newTurns(), patience: maxInitTime}
}

func (s *initService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	deadline := http.NewResponseController(w).SetReadDeadline
	_ = deadline(received.Add(s.patience)) // tests may have no connection
	req, change, err := readInit(w, r, received)
	_ = deadline(time.Time{})
	if err != nil {
		initError(w, err)
		return
	}
	leave, err := s.turns.take(r.Context())
	if err != nil {
		initError(w, err)
		return
	}
	defer leave()
	if err := s.run(r.Context(), req.AccessToken, change); err != nil {
		s.Log.WarnContext(r.Context(), "init refused or failed", "error", err)
		initError(w, err)
		return
	}
	w.Header().Set("X-Envd-Version", s.Version)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// run does an init; the caller has the turn.
func (s *initService) run(ctx context.Context, token string, change *guest.Change) error {
	before := s.Settings.Load()
	matches := before.Token.Matches(token)
	id := s.identity(ctx, matches)
	if !matches && !mayInit(before.Token, id.TokenHash, token) {
		return errUnauthorized
	}
	another := id.Instance != "" && before.Identity.Instance != "" && id.Instance != before.Identity.Instance
	if id.Instance != "" {
		s.Identities.Publish(id)
	}
	if another || s.Restorer != nil && s.Restorer.Pending() {
		s.newest = time.Time{}
	}
	var by time.Duration
	if change.Time.IsZero() || change.Time.After(s.newest) {
		var err error
		if by, err = s.Machine.Apply(ctx, change); err != nil {
			return err
		}
		if !change.Time.IsZero() {
			s.newest = change.Time
		}
	}
	if s.Restorer != nil {
		s.Restorer.Jumped(by)
		s.Restorer.Restore(ctx, another)
	}
	// It may be another by now, and the host may fill the service in later.
	if s.Identities != nil && id.Instance == "" {
		s.Identities.Again()
	}
	return nil
}

// identity asks the host which sandbox this is: nobody where there is no
// metadata service, or none that answers.
func (s *initService) identity(ctx context.Context, authorized bool) guest.Identity {
	if s.Identities == nil {
		return guest.Identity{}
	}
	wait := authorityWait
	if authorized {
		wait = identityWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	id, err := s.Identities.Fetch(ctx)
	if err != nil {
		return guest.Identity{}
	}
	return id
}

// mayInit decides for a caller who does not show the token that is set. hash is
// what the host says of the right one, "" for nothing.
func mayInit(set guest.Token, hash, sent string) bool {
	if hash == "" {
		return !set.IsSet()
	}
	sum := sha512.Sum512([]byte(sent))
	return subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(hash)) == 1
}

// initError answers what an init came to.
func initError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	tooLarge := (*http.MaxBytesError)(nil)
	switch {
	case errors.Is(err, errUnauthorized):
		status = http.StatusUnauthorized
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		status = http.StatusRequestTimeout
	case errors.Is(err, errBadInit), errors.Is(err, guest.ErrMount):
		status = http.StatusBadRequest
	case errors.Is(err, errNoTurn):
		status = http.StatusServiceUnavailable
	}
	httpError(w, status, err.Error())
}

// errBadInit means that the body is not what it should be.
var errBadInit = errors.New("init")

// readInit reads and validates all of a request's body; none asks for nothing.
func readInit(w http.ResponseWriter, r *http.Request, received time.Time) (*initRequest, *guest.Change, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInitBody))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: read body: %w", errBadInit, err)
	}
	var req initRequest
	if len(body) > 0 {
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, nil, fmt.Errorf("%w: %v", errBadInit, withoutValue(err))
		}
	}
	change, err := req.change(received)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errBadInit, err)
	}
	return &req, change, nil
}

// withoutValue is err of package json without the text that it quotes, which
// may be the token.
func withoutValue(err error) error {
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("field %q is not a %v", wrong.Field, wrong.Type)
	}
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		return fmt.Errorf("malformed JSON at byte %d", syntax.Offset)
	}
	return errors.New("malformed JSON")
}

// change validates the request.
func (req *initRequest) change(received time.Time) (*guest.Change, error) {
	c := &guest.Change{
		Token: guest.NewToken(req.AccessToken), User: req.DefaultUser, Workdir: req.DefaultWorkdir,
		Env: req.EnvVars, Received: received, Lifecycle: req.LifecycleID,
	}
	if !sendable(req.AccessToken) {
		return nil, errors.New("accessToken cannot be sent in a header")
	}
	if _, err := (&filesystem.User{Home: "/"}).Resolve(req.DefaultWorkdir); err != nil {
		return nil, fmt.Errorf("defaultWorkdir: %w", err)
	}
	for name, value := range req.EnvVars {
		if name == "" || strings.ContainsAny(name, "=\x00") || value != nil && strings.Contains(*value, "\x00") {
			return nil, fmt.Errorf("envVars: %q cannot be an environment variable", name)
		}
	}
	var err error
	if c.Time, err = hostTime(req.Timestamp); err != nil {
		return nil, err
	}
	if req.HyperloopIP != "" {
		if c.Events, err = netip.ParseAddr(req.HyperloopIP); err != nil || c.Events.Zone() != "" {
			return nil, fmt.Errorf("hyperloopIP: %q is no IP address", req.HyperloopIP)
		}
	}
	paths := make(map[string]bool)
	for _, v := range req.VolumeMounts {
		m, err := guest.ParseMount(v.NFSTarget, v.Path)
		if err != nil {
			return nil, fmt.Errorf("volumeMounts: %w", err)
		}
		if paths[m.Path] {
			return nil, fmt.Errorf("volumeMounts: two for %q", m.Path)
		}
		paths[m.Path] = true
		c.Mounts = append(c.Mounts, m)
	}
	if req.CABundle != "" {
		if c.Certificates, err = guest.ParseBundle([]byte(req.CABundle)); err != nil {
			return nil, fmt.Errorf("caBundle: %w", err)
		}
	}
	return c, nil
}

// sendable tells whether a header brings the token as it is: clients trim
// spaces and refuse control characters.
func sendable(token string) bool {
	return strings.Trim(token, " ") == token &&
		!strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// hostTime reads a timestamp. The zero time of languages that have one says
// nothing; what no clock can be set to is refused.
func hostTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("timestamp: %q is not of RFC 3339", s)
	}
	if t.IsZero() {
		return t, nil
	}
	if year := t.Year(); year < 1970 || year > 2200 {
		return t, fmt.Errorf("timestamp: no clock can be set to %q", s)
	}
	return t, nil
}

// envs answers GET /envs.
func (c Config) envs(w http.ResponseWriter, _ *http.Request) {
	env := c.Settings.Load().Env
	if env == nil {
		env = map[string]string{}
	}
	body, _ := json.Marshal(env) // cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // the client is gone: nothing to tell
}
