package wire

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

func TestUser(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		script := sh(`grep -E '^(Uid|Gid|Groups|CapEff):' /proc/self/status; umask; echo $USER $LOGNAME $HOME`)
		for user, want := range map[string]string{
			"nobody": "Uid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\nGroups:\t65534 \nCapEff:\t0000000000000000\n0022\nnobody nobody /nonexistent\n",
			"daemon": "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t1 \nCapEff:\t0000000000000000\n0022\ndaemon daemon /usr/sbin\n",
		} {
			if got := c.output(as(ctx, user), script); got != want {
				t.Errorf("as %s: %q, expected %q", user, got, want)
			}
		}
		root := c.output(ctx, script)
		if !strings.HasPrefix(root, "Uid:\t0\t0\t0\t0\n") || !strings.HasSuffix(root, "0022\nroot root /root\n") {
			t.Errorf("as the default user: %q", root)
		}
	})
}

func TestUserErrors(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		for _, row := range []struct{ name, header string }{
			{"unknown", "Basic bm9zdWNodXNlcjo="}, {"malformed", "Basic %%%"},
		} {
			bad := with(ctx, "Authorization", row.header)
			err := c.unary(bad, methodList, &pb.ListRequest{}, &pb.ListResponse{})
			if connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("%s: list: %v", row.name, err)
			}
			_, err = c.tryStart(bad, sh("true"))
			if connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("%s: start: %v", row.name, err)
			}
		}
		// Another scheme is somebody else's.
		other := with(ctx, "Authorization", "Bearer abc")
		c.list(other, false)
		// An empty name is the default user's.
		if got := c.output(as(ctx, ""), sh("id -un")); got != "root\n" {
			t.Errorf("as \"\": %q", got)
		}
	})
}

func TestEnvironment(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		env := func(req *pb.StartRequest) map[string]string {
			t.Helper()
			f := c.start(ctx, req).exit(0)
			m := make(map[string]string)
			for _, kv := range strings.Split(strings.TrimRight(string(f.stdout)+string(f.pty), "\x00"), "\x00") {
				k, v, _ := strings.Cut(kv, "=")
				m[k] = v
			}
			delete(m, "ENVD_COMMAND") // the mark where there are no cgroups
			return m
		}
		print0 := func(envs map[string]string) *pb.StartRequest {
			return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "env", Args: []string{"-0"}, Envs: envs}}
		}
		got := env(print0(nil))
		if c.d.cmd != nil {
			want := map[string]string{
				"PATH": os.Getenv("PATH"), "HOME": "/root", "USER": "root", "LOGNAME": "root",
				"WRENN_SANDBOX": "false", "E2B_SANDBOX": "false",
			}
			if !maps.Equal(got, want) {
				t.Errorf("got %v, expected %v", got, want)
			}
		}
		got = env(print0(map[string]string{"A": "1 2\n3=4", "HOME": "/elsewhere", "EMPTY": ""}))
		if v, ok := got["EMPTY"]; got["A"] != "1 2\n3=4" || got["HOME"] != "/elsewhere" || !ok || v != "" || got["USER"] != "root" {
			t.Errorf("got %v", got)
		}
		if got := env(onTerminal(print0(map[string]string{"TERM": "dumb"}), 80, 24)); got["TERM"] != "dumb" {
			t.Errorf("TERM is %q", got["TERM"])
		}
	})
}

// TestLookupInRequestedPath checks that the command is looked up in the PATH
// that the process gets.
func TestLookupInRequestedPath(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx, dir := bounded(t), t.TempDir()
		c.must(os.WriteFile(dir+"/only-here", []byte("#!/bin/sh\necho found; echo $0"), 0o755))
		req := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "only-here", Envs: map[string]string{"PATH": "/none:" + dir}}}
		if got := c.output(ctx, req); got != "found\n"+dir+"/only-here\n" {
			t.Errorf("got %q", got)
		}
		_, err := c.tryStart(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "sh", Envs: map[string]string{"PATH": dir}}})
		c.wantCode(err, connect.CodeNotFound)
		// A name with a slash is a path, from the working directory.
		req = &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "./only-here", Cwd: &dir}}
		if got := c.output(ctx, req); !strings.HasPrefix(got, "found\n") {
			t.Errorf("got %q", got)
		}
	})
}

func TestWorkingDirectory(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		for _, row := range []struct {
			user string
			cwd  *string
			want string
		}{
			{"root", nil, "/root"},
			{"root", proto.String(""), "/root"},
			{"root", proto.String("~"), "/root"},
			{"root", proto.String("~/../tmp"), "/tmp"},
			{"root", proto.String("/usr/./lib/.."), "/usr"},
			{"root", proto.String("../usr"), "/usr"}, // below the home
			{"daemon", nil, "/usr/sbin"},
			{"nobody", nil, "/"}, // its home does not exist
		} {
			req := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/pwd", Args: []string{"-P"}, Cwd: row.cwd}}
			if got := strings.TrimSpace(c.output(as(ctx, row.user), req)); got != row.want {
				t.Errorf("%s in %q: %q, expected %q", row.user, fmt.Sprint(row.cwd), got, row.want)
			}
		}
	})
}

// TestChildState checks what a program finds that the daemon gave it without
// being asked.
func TestChildState(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		c.d.ours(t)
		got := c.output(bounded(t), sh(`
			ls /proc/self/fd | wc -l
			cat /proc/self/oom_score_adj
			sh -c 'cat /proc/self/oom_score_adj'
			nice
			grep -E '^Sig(Blk|Ign):' /proc/self/status
			cat /proc/self/cgroup | grep ^0::
		`))
		lines := strings.Split(strings.TrimSpace(got), "\n")
		// 0, 1, 2 and the directory that ls itself reads.
		want := []string{"4", "100", "100", "0", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"}
		if len(lines) < len(want) || !slices.Equal(lines[:len(want)], want) {
			t.Errorf("got %q, expected %q", lines, want)
		}
		if c.d.cgroups != "" && !strings.Contains(got, "/wrenn/user/") {
			t.Errorf("its cgroup is not below wrenn/user: %q", got)
		}
		if c.d.cgroups != "" {
			tty := string(c.start(bounded(t), onTerminal(sh("grep ^0:: /proc/self/cgroup"), 80, 24)).exit(0).pty)
			if !strings.Contains(tty, "/wrenn/pty/") {
				t.Errorf("a terminal's cgroup is not below wrenn/pty: %q", tty)
			}
		}
	})
}
