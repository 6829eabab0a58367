package life

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/gen/process"
)

const theToken = "the-access-token"

// rule is how an endpoint decides.
type rule int

const (
	open     rule = iota // everybody
	guarded              // the token
	signed               // the token, or a signature
	initOnly             // the token in the body, and the host alone
	hostOnly             // the token, and the host alone
)

// endpoint is a row of the table.
type endpoint struct {
	method, path string
	rule         rule
	body         string
	header       map[string]string
	ok           int  // status when it lets the caller in; 0: anything but a refusal
	rpc          bool // errors of streams come with status 200
}

func (e endpoint) String() string { return e.method + " " + e.path }

// access is a column: what a caller shows.
type access struct {
	name   string
	set    bool   // a token is set
	header string // X-Access-Token
	sign   *signing
	admits map[rule]bool
}

// signing says how a signature differs from the right one.
type signing struct{ path, operation, user, token, expiration string }

var everything = map[rule]bool{guarded: true, signed: true, initOnly: true, hostOnly: true}

// columns are the ways to ask. Expiration is relative to now, in seconds.
var columns = []access{
	{name: "no token set", admits: everything},
	{name: "no token set, one sent", header: "x", admits: everything},
	{name: "right", set: true, header: theToken, admits: everything},
	{name: "wrong", set: true, header: theToken + "x"},
	{name: "missing", set: true},
	{name: "signed", set: true, sign: &signing{}, admits: map[rule]bool{signed: true}},
	{name: "signed, expires later", set: true, sign: &signing{expiration: "60"}, admits: map[rule]bool{signed: true}},
	{name: "signed wrong", set: true, sign: &signing{token: "other"}},
	{name: "signed, expired", set: true, sign: &signing{expiration: "-5"}},
	{name: "signed for another path", set: true, sign: &signing{path: "/etc/shadow"}},
	{name: "signed for another user", set: true, sign: &signing{user: "daemon"}},
	{name: "signed for another operation", set: true, sign: &signing{operation: "other"}},
	{name: "signed, wrong token beside", set: true, header: "wrong", sign: &signing{}},
}

// query is that of the request for e, with a signature if there is one.
func (s *signing) query(e endpoint, now time.Time) string {
	q := url.Values{"path": {"/run/life/file"}, "username": {"root"}}
	if s == nil {
		return q.Encode()
	}
	or := func(v, otherwise string) string {
		if v == "" {
			return otherwise
		}
		return v
	}
	operation := "write"
	if e.method == http.MethodGet || e.method == http.MethodHead {
		operation = "read"
	}
	if s.operation != "" {
		operation = map[string]string{"read": "write", "write": "read"}[operation]
	}
	text := or(s.path, q.Get("path")) + ":" + operation + ":" + or(s.user, q.Get("username")) + ":" + or(s.token, theToken)
	if s.expiration != "" {
		d, err := time.ParseDuration(s.expiration + "s")
		if err != nil {
			panic(err)
		}
		at := fmt.Sprint(now.Add(d).Unix())
		q.Set("signature_expiration", at)
		text += ":" + at
	}
	sum := sha256.Sum256([]byte(text))
	q.Set("signature", "v1_"+base64.RawStdEncoding.EncodeToString(sum[:]))
	return q.Encode()
}

// endpoints are all that the daemon has: what is plain HTTP by hand, and every
// RPC that the protocol files know.
func endpoints() []endpoint {
	raw := map[string]string{"Content-Type": "application/octet-stream"}
	all := []endpoint{
		{method: "GET", path: "/health", rule: open, ok: 200},
		{method: "HEAD", path: "/health", rule: guarded, ok: 200},
		{method: "GET", path: "/envs", rule: guarded, ok: 200},
		{method: "GET", path: "/ports", rule: guarded, ok: 200},
		{method: "GET", path: "/snapshot", rule: guarded, ok: 200},
		{method: "GET", path: "/metrics", rule: guarded, ok: 200},
		{method: "GET", path: "/files", rule: signed, ok: 200},
		{method: "HEAD", path: "/files", rule: signed, ok: 200},
		{method: "POST", path: "/files", rule: signed, body: "x", header: raw, ok: 200},
		{method: "PATCH", path: "/files", rule: signed, body: "x", header: raw},
		{method: "PUT", path: "/files", rule: guarded, ok: 405},
		{method: "POST", path: "/files/compose", rule: guarded, body: "{}", ok: 400},
		{method: "POST", path: "/init", rule: initOnly, ok: 204},
		{method: "GET", path: "/init", rule: guarded, ok: 405},
		{method: "POST", path: "/snapshot/prepare", rule: hostOnly, ok: 204},
		{method: "POST", path: "/shutdown", rule: hostOnly, ok: 501},
		{method: "GET", path: "/nothing", rule: guarded, ok: 404},
		{method: "POST", path: "/process.Process/Nothing", rule: guarded, body: "{}", header: map[string]string{"Content-Type": "application/json"}, ok: 404},
	}
	services := []protoreflect.ServiceDescriptor{
		process.File_process_process_proto.Services().ByName("Process"),
		filesystem.File_filesystem_filesystem_proto.Services().ByName("Filesystem"),
	}
	for _, s := range services {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			all = append(all, rpc("/"+string(s.FullName())+"/"+string(m.Name()), m.IsStreamingClient() || m.IsStreamingServer()))
		}
	}
	all = append(all, rpc("/grpc.health.v1.Health/Check", false), rpc("/grpc.health.v1.Health/Watch", true))
	for _, version := range []string{"v1", "v1alpha"} {
		e := rpc("/grpc.reflection."+version+".ServerReflection/ServerReflectionInfo", true)
		e.ok = http.StatusHTTPVersionNotSupported // both directions at once take HTTP/2
		all = append(all, e)
	}
	return all
}

// rpc calls with an empty message, in the Connect protocol. What it comes to,
// if it gets that far, is its own affair; a stream ends within its timeout.
func rpc(path string, stream bool) endpoint {
	e := endpoint{method: "POST", path: path, rule: guarded, body: "{}", rpc: true}
	e.header = map[string]string{"Content-Type": "application/json"}
	if stream {
		e.header = map[string]string{"Content-Type": "application/connect+json", "Connect-Timeout-Ms": "20"}
		e.body = string(append(binary.BigEndian.AppendUint32([]byte{0}, 2), "{}"...))
	}
	return e
}

// TestAccess is the table of every endpoint and RPC, by every way to show who
// one is and from every origin.
func TestAccess(t *testing.T) {
	w := newWorld(t)
	startDaemon(t)
	if err := os.MkdirAll("/run/life", 0o755); err != nil {
		t.Fatal(err)
	}
	var guest *place
	callers := []*caller{
		newCaller(t, "host, IPv4", w.host, true, guest4),
		newCaller(t, "host, IPv6", w.host, true, guest6),
		newCaller(t, "guest, loopback IPv4", guest, false, "127.0.0.1"),
		newCaller(t, "guest, loopback IPv6", guest, false, "::1"),
		newCaller(t, "guest, its own IPv4", guest, false, guest4),
		newCaller(t, "guest, its own IPv6", guest, false, guest6),
		newCaller(t, "guest, IPv4 in IPv6", guest, false, "::ffff:"+guest4),
		newCaller(t, "container, IPv4 of the bridge", w.container, false, bridge4),
		newCaller(t, "container, IPv6 of the bridge", w.container, false, bridge6),
		newCaller(t, "container, IPv4 of eth0", w.container, false, guest4),
		newCaller(t, "container, IPv6 of eth0", w.container, false, guest6),
	}
	tokenIsSet := false
	count := 0
	// Only what is the host's alone looks at the origin. The other origins see
	// that, and one of each kind sees the whole.
	whole := map[*caller]bool{callers[0]: true, callers[2]: true, callers[9]: true}
	for _, column := range columns {
		if column.set && !tokenIsSet {
			callers[0].must(t, 204, "POST", "/init", "", initBody(theToken))
			tokenIsSet = true
		}
		for _, c := range callers {
			for _, e := range endpoints() {
				if whole[c] || e.rule == initOnly || e.rule == hostOnly {
					count++
					checkAccess(t, c, e, column)
				}
			}
		}
	}
	t.Logf("%d requests", count)
}

func initBody(token string) string {
	b, _ := json.Marshal(map[string]string{"accessToken": token})
	return string(b)
}

func checkAccess(t *testing.T, c *caller, e endpoint, a access) {
	t.Helper()
	if e.rule == signed { // the file that is asked for
		if err := os.WriteFile("/run/life/file", []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	header := http.Header{}
	for k, v := range e.header {
		header.Set(k, v)
	}
	if a.header != "" {
		header.Set("X-Access-Token", a.header)
	}
	body, path := e.body, e.path
	switch e.rule {
	case initOnly:
		// Nothing changes: where no token is set, none is sent.
		if a.set && a.header != "" {
			body = initBody(a.header)
		}
	case signed:
		path += "?" + a.sign.query(e, time.Now())
	default:
		if a.sign != nil { // a signature helps nowhere else
			path += "?" + a.sign.query(e, time.Now())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	code, text, err := c.send(ctx, e.method, path, header, body)
	if err != nil {
		t.Errorf("%s, %v, %s: %v", c.name, e, a.name, err)
		return
	}
	want, refused := expected(e, a, c.fromHost)
	bad := code != want
	switch {
	case refused && e.rpc && strings.HasPrefix(e.header["Content-Type"], "application/connect"):
		bad = code != 200 || !strings.Contains(text, `"unauthenticated"`)
	case refused && e.rpc:
		bad = code != want || !strings.Contains(text, `"unauthenticated"`)
	case !refused && want == 0:
		bad = code == 401 || code == 403 || code >= 500 || strings.Contains(text, `"unauthenticated"`)
	}
	if bad {
		t.Errorf("%s, %v, %s: status %d %.200q, want %d", c.name, e, a.name, code, text, want)
	}
	if strings.Contains(text, theToken) {
		t.Errorf("%s, %v, %s: the answer has the token: %s", c.name, e, a.name, text)
	}
}

// expected is the contract: the token first, then the origin; /init is the
// host's whatever the token.
func expected(e endpoint, a access, fromHost bool) (status int, refused bool) {
	admitted := a.admits[e.rule] || e.rule == open
	switch {
	case e.rule == initOnly && !fromHost:
		return http.StatusForbidden, true
	case !admitted:
		return http.StatusUnauthorized, true
	case e.rule == hostOnly && !fromHost:
		return http.StatusForbidden, true
	}
	return e.ok, false
}
