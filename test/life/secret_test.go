package life

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
)

// TestTokenStaysSecret has a process without privileges try to read, set and
// clear the token, and looks through everything the daemon says.
func TestTokenStaysSecret(t *testing.T) {
	w := newWorld(t)
	d := startDaemon(t)
	host := newCaller(t, "host", w.host, true, guest4)
	host.must(t, 204, "POST", "/init", "", `{"accessToken":"`+theToken+`","envVars":{"A":"1"}}`)
	host.must(t, 401, "POST", "/init", "", `{"accessToken":"`+theToken+`-guess"}`)
	for _, malformed := range []string{`,"defaultUser":5}`, ``, `,"caBundle":"x"}`} {
		if said := host.must(t, 400, "POST", "/init", "", `{"accessToken":"`+theToken+`"`+malformed); strings.Contains(said, theToken) {
			t.Errorf("the answer to a malformed init has the token: %s", said)
		}
	}

	// What of these shows the token would show it in its output.
	pid := strconv.Itoa(d.cmd.Process.Pid)
	script := `
id -u
env; cat /proc/self/environ /proc/self/cmdline
for f in environ cmdline mem maps auxv stack syscall; do cat /proc/` + pid + `/$f; done
ls -l /proc/` + pid + `/fd /proc/` + pid + `/exe
for p in /proc/[0-9]*; do cat $p/cmdline $p/environ; done
grep -rs . /run
kill -9 ` + pid + ` && echo kill''ed
for url in 127.0.0.1 '[::1]' ` + guest4 + ` '[` + guest6 + `]'; do
	curl -sg -m 5 http://$url:` + port + `/envs -w ' status %{http_code}\n'
	curl -sg -m 5 http://$url:` + port + `/init -d '{"accessToken":""}' -w ' status %{http_code}\n'
	curl -sg -m 5 http://$url:` + port + `/init -d '{"accessToken":"mine"}' -w ' status %{http_code}\n'
	curl -sg -m 5 -X POST http://$url:` + port + `/init -w ' status %{http_code}\n'
	curl -sg -m 5 -X POST http://$url:` + port + `/snapshot/prepare -w ' status %{http_code}\n'
done
`
	c := client.New(host.base, client.Options{User: "nobody", Token: theToken, HTTP: host.http})
	ctx, cancel := context.WithTimeout(t.Context(), 2*limit)
	defer cancel()
	stdin := false
	cmd, err := c.Start(ctx, &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "sh", Args: []string{"-c", "exec 2>&1\n" + script}}, Stdin: &stdin,
	})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for {
		e, err := cmd.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if data := e.GetData(); data != nil {
			out.Write(client.Output(data))
			continue
		}
		break
	}
	text := out.String()
	if !strings.HasPrefix(text, "65534\n") || strings.Contains(text, "killed") {
		t.Errorf("not as nobody: %.100q", text)
	}
	if got := strings.Count(text, "status 401") + strings.Count(text, "status 403"); got != 20 || strings.Contains(text, "status 2") {
		t.Errorf("%d of 20 calls were refused:\n%q", got, text)
	}
	host.must(t, 200, "GET", "/envs", theToken, "") // it is still the one
	for what, said := range map[string]string{"the process": text, "the log": d.text(), "/envs": host.must(t, 200, "GET", "/envs", theToken, "")} {
		if strings.Contains(said, theToken) {
			t.Errorf("%s has the token", what)
		}
	}
	for _, file := range []string{"cmdline", "environ"} {
		if b, err := os.ReadFile("/proc/" + pid + "/" + file); err != nil || strings.Contains(string(b), theToken) {
			t.Errorf("%s of the daemon: %v", file, err)
		}
	}
}

// TestWrongTokensSlowNobody measures calls of somebody with the token while
// others try a thousand wrong ones a second, and more.
func TestWrongTokensSlowNobody(t *testing.T) {
	w := newWorld(t)
	startDaemon(t)
	host := newCaller(t, "host", w.host, true, guest4)
	host.must(t, 204, "POST", "/init", "", initBody(theToken))
	median := func() time.Duration {
		const calls = 200
		took := make([]time.Duration, calls)
		for i := range took {
			began := time.Now()
			host.must(t, 200, "GET", "/envs", theToken, "")
			took[i] = time.Since(began)
		}
		slices.Sort(took)
		return took[calls/2]
	}
	alone := median()
	const guessers = 4
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	tried, wrong := make([]int, guessers), make([]error, guessers)
	began := time.Now()
	for i := range guessers {
		c := newCaller(t, "guest", nil, false, "127.0.0.1")
		pace := time.NewTicker(time.Second * guessers / 1000)
		wg.Go(func() {
			defer pace.Stop()
			for n := 0; ; n++ {
				select {
				case <-pace.C:
				case <-ctx.Done():
					return
				}
				code, _, err := c.send(t.Context(), "GET", "/envs", http.Header{"X-Access-Token": {fmt.Sprint("guess", n)}}, "")
				if err != nil || code != 401 {
					wrong[i] = fmt.Errorf("status %d, %w", code, err)
					return
				}
				tried[i]++
			}
		})
	}
	beside := median()
	for time.Since(began) < time.Second { // a whole second of them
		beside = max(beside, median())
	}
	cancel()
	wg.Wait()
	total := 0
	for i, n := range tried {
		total += n
		if wrong[i] != nil {
			t.Error(wrong[i])
		}
	}
	rate := float64(total) / time.Since(began).Seconds()
	t.Logf("median %v alone, %v beside %.0f wrong tokens a second", alone, beside, rate)
	// The guessers share the processors with the one who is measured, so it may
	// wait for its turn, but not in a queue.
	if beside > 5*alone+5*time.Millisecond {
		t.Errorf("median %v, beside wrong tokens %v", alone, beside)
	}
}
