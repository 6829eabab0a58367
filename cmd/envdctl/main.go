// Command envdctl calls an envd daemon from the command line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// exitUnable is the exit code of what never ran, as of env(1).
const exitUnable = 125

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "envdctl:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	var a app
	fs := flag.NewFlagSet("envdctl", flag.ContinueOnError)
	fs.StringVar(&a.url, "url", envOr("ENVD_URL", "http://127.0.0.1:49983"), "`address` of the daemon (ENVD_URL)")
	fs.StringVar(&a.user, "user", "", "`user` to act as")
	fs.StringVar(&a.token, "token", os.Getenv("ENVD_TOKEN"), "access `token` (ENVD_TOKEN)")
	switch err := parse(fs, args); {
	case errors.Is(err, flag.ErrHelp):
		return 0, printUsage(os.Stdout, fs)
	case err != nil:
		return exitUnable, fmt.Errorf("%w: %w", err, errUsage)
	case fs.NArg() == 0:
		return exitUnable, printUsage(os.Stderr, fs)
	}
	if err := checkURL(a.url); err != nil {
		return exitUnable, err
	}
	commands := map[string]func(context.Context, []string) (int, error){
		"health": a.health, "exec": a.exec, "ps": a.ps, "attach": a.attach, "kill": a.kill,
		"ls": a.ls, "stat": a.stat, "mkdir": a.mkdir, "mv": a.mv, "rm": a.rm, "watch": a.watch,
		"cat": a.cat, "cp": a.cp, "pack": a.pack, "unpack": a.unpack,
		"snapshot": a.snapshot,
		"init":     a.init, "envs": a.envs,
	}
	command, ok := commands[fs.Arg(0)]
	if !ok {
		return exitUnable, fmt.Errorf("unknown command %q: %w", fs.Arg(0), errUsage)
	}
	code, err := command(ctx, fs.Args()[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil // and has been printed
	}
	return code, a.explained(err)
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
