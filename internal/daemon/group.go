package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// part is something that runs and has to be closed.
type part struct {
	name  string
	run   func(context.Context) error // nil: nothing to run
	close func(context.Context) error // nil: ends with the context of run
	stop  func()                      // ends run and waits for it; nil while it does not run
}

// group runs parts together. Parts are closed in the reverse of the order they
// were added in, each before the context of an earlier one's run ends.
type group struct {
	parts  []*part
	ended  chan error // of parts that ended unasked
	closed sync.Once
	errs   []error
}

func (g *group) add(name string, run, closePart func(context.Context) error) {
	g.parts = append(g.parts, &part{name: name, run: run, close: closePart})
}

// run runs all parts until ctx ends or one of them does, and closes them.
func (g *group) run(ctx context.Context, log *slog.Logger) error {
	g.start(ctx)
	return g.wait(ctx, log)
}

// start runs the parts of those names, or without names all that do not run
// yet. After the first start no part can be added, and wait or close has to
// follow whatever happens.
func (g *group) start(ctx context.Context, names ...string) {
	if g.ended == nil {
		g.ended = make(chan error, len(g.parts))
	}
	for _, p := range g.parts {
		if p.run == nil || p.stop != nil || len(names) > 0 && !slices.Contains(names, p.name) {
			continue
		}
		runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			err := p.run(runCtx)
			if runCtx.Err() == nil {
				g.ended <- fmt.Errorf("%s ended: %w", p.name, errors.Join(err, errEarly))
			}
		}()
		p.stop = func() { cancel(); <-done }
	}
}

// wait waits until ctx ends or a part does, and closes all.
func (g *group) wait(ctx context.Context, log *slog.Logger) error {
	var cause error
	select {
	case <-ctx.Done():
		log.Info("envd is stopping")
	case cause = <-g.ended:
		log.Error("envd is stopping", "error", cause)
	}
	g.close()
	return errors.Join(append([]error{cause}, g.errs...)...)
}

// errEarly says that a part was not asked to end.
var errEarly = errors.New("unexpectedly")

// close closes what is open, once.
func (g *group) close() {
	g.closed.Do(func() {
		for i := len(g.parts) - 1; i >= 0; i-- {
			p := g.parts[i]
			if p.close != nil {
				ctx, cancel := context.WithTimeout(context.Background(), partGrace)
				if err := p.close(ctx); err != nil {
					g.errs = append(g.errs, fmt.Errorf("close %s: %w", p.name, err))
				}
				cancel()
			}
			if p.stop != nil {
				p.stop()
			}
		}
	})
}
