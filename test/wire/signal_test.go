package wire

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/process"
)

// TestSignalNumbers checks that every number from 1 to 31 reaches the leader.
func TestSignalNumbers(t *testing.T) {
	each(t, "connect-json-http1", func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, sh(`for s in 1 2 3 10 12 14 15 28; do trap "echo got $s" $s; done
			echo ready; while :; do sleep 0.05; done`))
		f.until("ready")
		for _, n := range []int32{1, 2, 3, 10, 12, 14, 15, 28} {
			c.must(c.signal(ctx, pid(f.pid), n))
			f.until("got " + strconv.Itoa(int(n)) + "\n")
		}
		for _, n := range []int32{0, 32, 64, -1, 1 << 30} {
			c.wantCode(c.signal(ctx, pid(f.pid), n), connect.CodeInvalidArgument)
		}
	})
}

func TestSignalTerm(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, sh("sleep 1000 & echo $!; wait"))
		f.until("\n")
		child, err := strconv.Atoi(strings.TrimSpace(string(f.stdout)))
		c.must(err)
		c.must(c.signal(ctx, pid(f.pid), 15))
		if f.exit(-1); f.end.Status != "signal: terminated" {
			t.Errorf("end %v", f.end)
		}
		// The leader has ended, and the child has not: SIGTERM finds nobody,
		// SIGKILL does.
		c.wantCode(c.signal(ctx, pid(f.pid), 15), connect.CodeNotFound)
		c.must(c.signal(ctx, pid(f.pid), 9))
		if c.d.cmd != nil {
			waitGone(t, child)
		}
	})
}

// TestSignalKillTree checks that nothing is left, whatever it did to get away.
func TestSignalKillTree(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		c.d.ours(t)
		ctx := bounded(t)
		f := c.start(ctx, sh(`trap '' TERM HUP INT
			sleep 1000 & echo $!
			setsid sleep 1000 & echo $!
			setsid sh -c 'trap "" TERM; sh -c "setsid sleep 1000 & echo \$!"; sleep 1000 & echo $!; wait' &
			echo ready >&2; wait`))
		for !strings.Contains(string(f.stderr), "ready") || strings.Count(string(f.stdout), "\n") < 4 {
			if !f.read() {
				t.Fatal(f.err)
			}
		}
		c.must(c.signal(ctx, pid(f.pid), 9))
		for _, field := range strings.Fields(string(f.stdout)) {
			child, err := strconv.Atoi(field)
			c.must(err)
			waitGone(t, child)
		}
		if f.exit(-1); f.end.Status != "signal: killed" {
			t.Errorf("end %v", f.end)
		}
		for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
			if err := c.signal(ctx, pid(f.pid), 9); err != nil {
				c.wantCode(err, connect.CodeNotFound)
				return
			}
			if time.Now().After(end) {
				t.Fatal("something is left to kill")
			}
		}
	})
}

func TestKillAfter(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		c.d.needs(t, "process.kill_after")
		ctx := bounded(t)
		f := c.start(ctx, sh("trap 'echo asked' TERM; setsid sleep 1000 & echo ready; while :; do sleep 0.05; done"))
		f.until("ready")
		began := time.Now()
		c.must(c.unary(ctx, methodSignal, &pb.SendSignalRequest{
			Process: pid(f.pid), Signal: 15, KillAfterMs: 400,
		}, &pb.SendSignalResponse{}))
		f.until("asked").exit(-1)
		if took := time.Since(began); f.end.Status != "signal: killed" || took < 350*time.Millisecond || took > 10*time.Second {
			t.Errorf("end %v after %v", f.end, took)
		}
	})
}
