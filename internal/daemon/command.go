package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/api"
	"github.com/wrenn/envd/internal/guest"
	domain "github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/snapshot"
)

// commandTag is the tag of the start-up command, from the wire contract.
const commandTag = "init-cmd"

// startCommand is runCommand, when a prepare that comes before is undone.
func startCommand(ctx context.Context, coordinator *snapshot.Coordinator, run func() error) error {
	for {
		err := run()
		if !errors.Is(err, snapshot.ErrPrepared) || coordinator.Await(ctx) != nil {
			return err
		}
	}
}

// runCommand runs line through a login shell as the default user. Its output is
// kept like any other's; nobody has to read it.
func runCommand(table *domain.Table, settings *guest.Store, accounts *guest.Accounts, line string) error {
	s := settings.Load()
	acct, err := accounts.Lookup(s.User)
	if err != nil {
		return fmt.Errorf("start-up command: %w", err)
	}
	tag, stdin := commandTag, false
	spec, err := api.NewSpec(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: shell(), Args: []string{"-l", "-c", line}},
		Tag:     &tag, Stdin: &stdin,
	}, acct, s)
	if err != nil {
		return fmt.Errorf("start-up command: %w", err)
	}
	_, cursor, err := table.Start(spec)
	if err != nil {
		return fmt.Errorf("start-up command: %w", err)
	}
	cursor.Close()
	return nil
}

// shell is bash, as SDKs use it, where there is one.
func shell() string {
	const bash = "/bin/bash"
	if _, err := os.Stat(bash); err == nil {
		return bash
	}
	return "/bin/sh"
}
