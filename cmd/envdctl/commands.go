package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
)

// app holds the flags that all commands share.
type app struct{ url, user, token string }

func (a *app) client() *client.Client {
	return client.New(a.url, client.Options{User: a.user, Token: a.token})
}

func (a *app) health(ctx context.Context, args []string) (int, error) {
	if _, err := plain("health", args, 0, 0, "no argument"); err != nil {
		return exitUnable, err
	}
	h, err := a.client().Health(ctx)
	if err != nil {
		return 1, err
	}
	fmt.Printf("version  %s\n", h.Version)
	for _, f := range h.Features {
		fmt.Printf("feature  %s\n", f)
	}
	return 0, nil
}

func (a *app) exec(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("exec", flag.ContinueOnError)
	tty := fs.Bool("t", false, "run on a terminal")
	stdin := fs.Bool("i", false, "send our standard input")
	cwd := fs.String("cwd", "", "working `directory`")
	tag := fs.String("tag", "", "`name` to find the process by")
	args, err := arguments(fs, args, 1, math.MaxInt, "a program")
	if err != nil {
		return exitUnable, err
	}
	wantInput := *stdin || *tty
	req := &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: args[0], Args: args[1:]},
		Stdin:   &wantInput,
	}
	if *cwd != "" {
		req.Process.Cwd = cwd
	}
	if *tag != "" {
		req.Tag = tag
	}
	if *tty {
		t, err := openTerminal()
		if err != nil {
			return exitUnable, err
		}
		defer t.restore()
		req.Pty = &pb.PTY{Size: t.size()}
	}
	cmd, err := a.client().Start(ctx, req)
	if err != nil {
		return exitUnable, err
	}
	if wantInput {
		// It ends with the process of ours: a read of a terminal cannot be
		// interrupted.
		go sendInput(ctx, cmd, *tty)
	}
	return follow(ctx, cmd)
}

// sendInput copies our standard input to the process.
func sendInput(ctx context.Context, cmd *client.Command, terminal bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := os.Stdin.Read(buf)
		if n > 0 && cmd.Write(ctx, terminal, buf[:n]) != nil {
			return // the process is gone, as its end will tell
		}
		if err != nil {
			if !terminal {
				_ = cmd.CloseStdin(ctx)
			}
			return
		}
	}
}

func (a *app) attach(ctx context.Context, args []string) (int, error) {
	args, err := plain("attach", args, 1, 1, "one pid or tag")
	if err != nil {
		return exitUnable, err
	}
	cmd, err := a.client().Attach(ctx, selector(args[0]), 0)
	if err != nil {
		return exitUnable, err
	}
	return follow(ctx, cmd)
}

// follow prints the output of cmd and answers its exit code, as a shell does.
func follow(ctx context.Context, cmd *client.Command) (int, error) {
	defer cmd.Close() //nolint:errcheck // read to the end, or broken
	for {
		e, err := cmd.Next(ctx)
		if errors.Is(err, client.ErrLost) {
			fmt.Fprintln(os.Stderr, "envdctl:", err)
			continue
		}
		if err != nil {
			return exitUnable, err
		}
		if end := e.GetEnd(); end != nil {
			return exitCode(end), nil
		}
		d := e.GetData()
		out := os.Stdout
		if d.GetStderr() != nil {
			out = os.Stderr
		}
		if _, err := out.Write(client.Output(d)); err != nil {
			return exitUnable, fmt.Errorf("write output: %w", err)
		}
	}
}

// exitCode is 128 and the signal's number for a process that one ended. The
// wire has the signal's name only.
func exitCode(end *pb.ProcessEvent_EndEvent) int {
	if end.Exited {
		return int(end.ExitCode)
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(end.Status, "signal: "), " (")
	for sig := syscall.Signal(1); sig < 32; sig++ {
		if sig.String() == name {
			return 128 + int(sig)
		}
	}
	return 128
}

func (a *app) ps(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("ps", flag.ContinueOnError)
	all := fs.Bool("a", false, "also those that ended lately")
	if _, err := arguments(fs, args, 0, 0, "no argument"); err != nil {
		return exitUnable, err
	}
	res, err := a.client().Process.List(ctx, connect.NewRequest(&pb.ListRequest{IncludeExited: *all}))
	if err != nil {
		return 1, fmt.Errorf("list: %w", err)
	}
	return 0, printProcesses(os.Stdout, res.Msg.Processes)
}

func printProcesses(w io.Writer, list []*pb.ProcessInfo) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "PID\tTAG\tSTATE\tOUTPUT\tCOMMAND")
	for _, p := range list {
		state := "running"
		if p.End != nil {
			state = p.End.Status
		}
		line := strings.Join(append([]string{p.Config.GetCmd()}, p.Config.GetArgs()...), " ")
		_, _ = fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%s\n", p.Pid, p.GetTag(), state, p.OutputBytes, line)
	}
	return t.Flush()
}

func (a *app) kill(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("kill", flag.ContinueOnError)
	sig := fs.Int("s", 9, "signal `number`")
	args, err := arguments(fs, args, 1, 1, "one pid or tag")
	if err != nil {
		return exitUnable, err
	}
	_, err = a.client().Process.SendSignal(ctx, connect.NewRequest(
		&pb.SendSignalRequest{Process: selector(args[0]), Signal: pb.Signal(*sig)}))
	if err != nil {
		return 1, fmt.Errorf("kill: %w", err)
	}
	return 0, nil
}

// selector takes a number for a pid and anything else for a tag.
func selector(s string) *pb.ProcessSelector {
	if pid, err := strconv.ParseUint(s, 10, 32); err == nil {
		return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: uint32(pid)}}
	}
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: s}}
}
