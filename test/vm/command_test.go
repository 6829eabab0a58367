package vm

import (
	"bytes"
	"context"
	"testing"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
)

// result is what came of a command.
type result struct {
	output string // of all streams
	end    *pb.ProcessEvent_EndEvent
}

// request asks for argv to be run.
func request(argv ...string) *pb.StartRequest {
	return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: argv[0], Args: argv[1:]}}
}

// run runs a command to its end.
func (m *machine) run(ctx context.Context, req *pb.StartRequest) (result, error) {
	cmd, err := m.Start(ctx, req)
	if err != nil {
		return result{}, err
	}
	defer cmd.Close()
	return finish(ctx, cmd)
}

// finish follows a command to its end.
func finish(ctx context.Context, cmd *client.Command) (result, error) {
	var out bytes.Buffer
	for {
		e, err := cmd.Next(ctx)
		if err != nil {
			return result{output: out.String()}, err
		}
		if end := e.GetEnd(); end != nil {
			return result{out.String(), end}, nil
		}
		out.Write(client.Output(e.GetData()))
	}
}

// output runs argv, which has to succeed, and answers what it printed.
func (m *machine) output(t testing.TB, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	r, err := m.run(ctx, request(argv...))
	if err != nil {
		t.Fatalf("%q: %v", argv, err)
	}
	if r.end.ExitCode != 0 {
		t.Fatalf("%q: %s: %s", argv, r.end.Status, r.output)
	}
	return r.output
}
