// Command envd is the daemon inside a sandbox: it starts commands and
// terminals, streams their output and more, over one TCP port.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/wrenn/envd/internal/daemon"
	"github.com/wrenn/envd/internal/process"
)

// version is what /health reports; SDKs choose features by it.
const version = "0.9.0"

// leastRetain is how long clients may rely on an ended process, from the wire
// contract.
const leastRetain = 30 * time.Second

// commit is set by the build.
var commit = "unknown"

func main() {
	if filepath.Base(os.Args[0]) == "sync" {
		os.Exit(sync(os.Args[1:]))
	}
	if code, is := daemon.Helper(os.Args); is {
		os.Exit(code)
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	output := process.DefaultConfig()
	cfg := daemon.Config{Version: version, Commit: commit}
	fs := flag.NewFlagSet("envd", flag.ContinueOnError)
	fs.IntVar(&cfg.Port, "port", 49983, "TCP `port` to serve on, on all addresses")
	fs.UintVar(&cfg.VsockPort, "vsock-port", 0, "vsock `port` to serve on as well, 0 for none")
	fs.StringVar(&cfg.Unix, "unix", "", "`path` of a unix socket to serve on as well, for root")
	outside := fs.Bool("isnotfc", false, "not inside Firecracker: no metadata service, no PID 1 duties, readable log")
	showVersion := fs.Bool("version", false, "print the version and exit")
	showCommit := fs.Bool("commit", false, "print the commit and exit")
	fs.StringVar(&cfg.Command, "cmd", "", "`command` to run through the shell at start-up")
	fs.StringVar(&cfg.CgroupRoot, "cgroup-root", "/sys/fs/cgroup", "cgroup v2 `directory` to manage")
	fs.TextVar(&cfg.ForwardIP, "forward-ip", netip.AddrFrom4([4]byte{169, 254, 0, 21}), "`address` where ports on loopback become reachable, empty for nowhere")
	fs.BoolVar(&cfg.UserAccess, "user-access", false, "requests reach only files that their user may reach")
	fs.IntVar(&output.Window, "output-window", output.Window, "output kept per process, in `bytes`")
	fs.Int64Var(&output.Total, "output-total", output.Total, "output and configurations kept of all processes together, in `bytes`")
	fs.DurationVar(&output.Retain, "output-retain", output.Retain, "how `long` an ended process and its output are kept, 30s or more")
	var level slog.Level
	fs.TextVar(&level, "log-level", slog.LevelInfo, "least `level` to log: DEBUG, INFO, WARN or ERROR")
	isInit := os.Getpid() == 1
	switch err := parse(fs, args, isInit); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Println("usage: envd [flags]")
		fs.SetOutput(os.Stdout)
		fs.PrintDefaults()
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "envd: see envd --help")
		return 2
	case *showVersion && !isInit:
		fmt.Println(version)
		return 0
	case *showCommit && !isInit:
		fmt.Println(commit)
		return 0
	case output.Retain < leastRetain && !isInit:
		fmt.Fprintf(os.Stderr, "envd: flag output-retain: less than %v\n", leastRetain)
		return 2
	case (output.Window < 0 || output.Total < 0) && !isInit:
		fmt.Fprintln(os.Stderr, "envd: flags output-window and output-total: less than 0")
		return 2
	}
	output.Retain = max(output.Retain, leastRetain)
	output.Window, output.Total = max(output.Window, 0), max(output.Total, 0)
	cfg.Firecracker, cfg.Output = !*outside, output
	cfg.Log = newLog(cfg.Firecracker, level)
	if err := daemon.Run(context.Background(), cfg); err != nil {
		cfg.Log.Error("envd ended", "error", err)
		return 1
	}
	return 0
}

// newLog writes JSON for a host to collect, or text for a person.
func newLog(firecracker bool, level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if firecracker {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
