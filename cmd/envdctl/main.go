// Command envdctl calls an envd daemon from the command line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: envdctl [flags] command

commands:
  health                     what the daemon says of itself
  exec [-t] [-i] CMD [ARG…]  run a program, follow its output, exit as it does
  ps [-a]                    list processes; -a: also those that ended lately
  attach PID|TAG             follow a process from the oldest output kept
  kill [-s N] PID|TAG        send a signal; 9, the default, takes the whole tree
  ls [-depth N] [PATH]       list a directory, by default the working directory
  stat [PATH]                what is at a path, with its metadata
  mkdir PATH                 make a directory and its parents
  mv SOURCE DESTINATION      rename, also between file systems
  rm PATH                    remove, with everything below
  cat PATH…                  print files
  cp [-atomic] FILE :PATH    copy a file into the guest, or :PATH FILE out of it
  pack [-z|-zstd] PATH       write a directory as a tar archive to standard output
  unpack [-z|-zstd] PATH     make what a tar archive on standard input holds
  watch [-r] [-network] [PATH]
                             print what changes in a directory; -r: and below
  snapshot [-prepare] [-freeze]
                             the guest's state and generation; -prepare: bring it
                             to rest for a freeze; -freeze: its commands as well
  init [FLAG…]               what a host says after a boot: token, user, environment, …
  envs                       the default environment of processes

flags:
`

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

// errUsage says that the command line makes no sense.
var errUsage = errors.New("see envdctl -h")

func run(ctx context.Context, args []string) (int, error) {
	var a app
	fs := flag.NewFlagSet("envdctl", flag.ContinueOnError)
	fs.Usage = func() {
		_, _ = io.WriteString(fs.Output(), usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&a.url, "url", envOr("ENVD_URL", "http://127.0.0.1:49983"), "`address` of the daemon (ENVD_URL)")
	fs.StringVar(&a.user, "user", "", "`user` to act as")
	fs.StringVar(&a.token, "token", os.Getenv("ENVD_TOKEN"), "access `token` (ENVD_TOKEN)")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, nil
		}
		return exitUnable, errUsage
	}
	if fs.NArg() == 0 {
		fs.Usage()
		return exitUnable, nil
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
	return command(ctx, fs.Args()[1:])
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
