package main

import (
	"context"
	"flag"
	"fmt"

	"github.com/wrenn/envd/client"
)

// snapshot prints the state, or prepares.
func (a *app) snapshot(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("snapshot", flag.ContinueOnError)
	prepare := fs.Bool("prepare", false, "bring the guest to rest, so that its machine may be frozen")
	freeze := fs.Bool("freeze", false, "stop its commands as well")
	wait := fs.Duration("wait", 0, "with -freeze, how `long` to look whether they have stopped")
	thaw := fs.Duration("thaw", 0, "with -freeze, when they go on if nobody comes back")
	if _, err := arguments(fs, args, 0, 0, "flags only"); err != nil {
		return exitUnable, err
	}
	switch c := a.client(); {
	case *freeze:
		p, err := c.PrepareFrozen(ctx, client.Freeze{Wait: *wait, Thaw: *thaw})
		if err != nil {
			return 1, err
		}
		fmt.Printf("prepared    generation %d\nsynced      %v\nworkload    %s\ngroups      %d of %d\n",
			p.Generation, p.Synced, p.Workload.State, p.Workload.Frozen, p.Workload.Groups)
		if p.Workload.State != "frozen" {
			return 1, nil
		}
	case *prepare:
		if err := c.Prepare(ctx); err != nil {
			return 1, err
		}
	default:
		s, err := c.Snapshot(ctx)
		if err != nil {
			return 1, err
		}
		fmt.Printf("state       %s\ngeneration  %d\npending     %v\nfrozen      %v\n", s.State, s.Generation, s.Pending, s.Frozen)
	}
	return 0, nil
}
