package server

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"sync/atomic"
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
		body := &bodyWatch{ReadCloser: r.Body, conn: c, gone: cancel}
		body.timer = time.AfterFunc(math.MaxInt64, body.check)
		body.timer.Reset(goneCheck) // once check can see the timer
		defer body.stop()
		r = r.WithContext(ctx)
		r.Body = body
		next.ServeHTTP(w, r)
	})
}

// bodyWatch is a request's body that looks after the client until it is read
// to the end. From then on net/http does.
type bodyWatch struct {
	io.ReadCloser
	conn  *conn
	gone  context.CancelCauseFunc
	timer *time.Timer
	over  atomic.Bool
}

func (b *bodyWatch) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.stop()
	}
	return n, err //nolint:wrapcheck // readers compare it
}

func (b *bodyWatch) stop() {
	b.over.Store(true)
	b.timer.Stop()
}

func (b *bodyWatch) check() {
	switch {
	case b.over.Load():
	case b.conn.hungUp():
		b.gone(errGone)
	default:
		b.timer.Reset(goneCheck)
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
