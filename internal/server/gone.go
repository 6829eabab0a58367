package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// goneCheck is how often a request whose body is still being read asks whether
// the client is there.
const goneCheck = 2 * time.Second

var errGone = errors.New("client is gone")

type connKey struct{}

// withConn lets noticeGone find the connection of a request.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// noticeGone ends the context of a request whose client is gone also when its
// body is not read to the end. net/http looks only once it is: on HTTP/1.1, a
// handler that waits before it reads on would wait for nobody.
func noticeGone(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok || r.ProtoMajor != 1 || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		body := &bodyWatch{ReadCloser: r.Body, watch: &c.body, gone: cancel}
		c.body.begin(body, c)
		defer func() { c.body.end(body, time.Now().Add(c.registry.unread)) }()
		r = r.WithContext(ctx)
		r.Body = body
		next.ServeHTTP(w, r)
	})
}

// bodyWatch is a request's body that looks after the client until it is read
// to the end. From then on net/http does.
type bodyWatch struct {
	io.ReadCloser
	watch *goneWatch
	gone  context.CancelCauseFunc
}

func (b *bodyWatch) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.watch.end(b, time.Time{})
	}
	return n, err //nolint:wrapcheck // readers compare it
}

// goneWatch looks after the body that is being read on a connection: by a
// handler, as long as the client is there; then by net/http, which reads the rest
// of a short one before it answers, for a bounded time. Its timer belongs to the
// connection and is left to run out when the body has ended: to set and stop one
// for each request would wake another thread each time.
type goneWatch struct {
	mu    sync.Mutex
	body  *bodyWatch  // guarded by mu, as is all below; nil for none
	rest  time.Time   // by when the rest of a body has to be there; zero for none
	late  bool        // it was not: the connection ends with the answer
	timer *time.Timer // nil before the first body
	armed bool        // the timer runs
}

func (g *goneWatch) begin(b *bodyWatch, c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.body = b
	switch {
	case g.timer == nil:
		g.timer = time.AfterFunc(goneCheck, func() { g.check(c) })
	case !g.armed:
		g.timer.Reset(goneCheck)
	}
	g.armed = true
}

// end says that the body b has ended, or that its handler is through with it: then
// its rest has to be there by the time rest.
func (g *goneWatch) end(b *bodyWatch, rest time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.body == b {
		g.body, g.rest = nil, rest
	}
}

// over says that net/http is through with the request on c. What comes late is
// not the beginning of another.
func (g *goneWatch) over(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rest = time.Time{}
	if g.late {
		_ = c.socket.Close()
	}
}

func (g *goneWatch) check(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	switch {
	case g.body == nil && g.rest.IsZero():
	case g.body == nil && time.Now().After(g.rest):
		g.late = true
		_ = c.SetReadDeadline(time.Unix(1, 0)) // closed already
	case g.body != nil && c.hungUp():
		g.body.gone(errGone)
	default:
		g.armed = true
		g.timer.Reset(goneCheck)
	}
}

// hungUp tells whether the peer has closed the connection or reset it, read or
// not what it sent before. Half of it closed counts, as it does for net/http.
func (c *conn) hungUp() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	up := true
	if err := raw.Control(func(fd uintptr) {
		// poll(2): POLLERR and POLLHUP are reported unasked.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		up = err != nil || n == 0
	}); err != nil {
		return true
	}
	return !up
}
