package vm

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	"github.com/wrenn/envd/gen/filesystem"
	pb "github.com/wrenn/envd/gen/process"
)

// TestClones restores one snapshot twice, side by side: two machines that were
// one up to the freeze, and are to have nothing in common from then on.
func TestClones(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: env.bare, params: []string{modulesParam(bareModules...)}})
	m.init(t)
	quiet := startQuiet(t, m, 0)
	other, err := openLink()
	must(t, err)
	t.Cleanup(func() {
		if err := other.close(); err != nil {
			t.Error(err)
		}
	})
	_, err = m.do(t.Context(), http.MethodPost, base+"/snapshot/prepare", "", nil)
	must(t, err)
	s := m.snapshot(t)
	m.link.sever()

	var clones []*machine
	seen := map[string]string{} // what only one may have, and which has it
	for i, l := range []*link{m.link, other} {
		name := fmt.Sprintf("clone-%d", i)
		l.meta.set(map[string]string{"instanceID": name, "envID": "template"})
		clone := s.restore(t, l)
		clone.waitHealth(t, stepLimit)
		clone.adopt(t, "token of "+name)
		clones = append(clones, clone)
		clone.waitIdentity(t, name)
		unique := map[string]string{
			"random bytes of a command": clone.output(t, "/guest", "random"),
			"id of a watcher":           clone.watcher(t),
			"identity":                  clone.output(t, "/guest", "env", "WRENN_SANDBOX_ID"),
		}
		for what, value := range unique {
			if first, ok := seen[value]; ok {
				t.Errorf("%s of %s is that of %s: %q", what, name, first, value)
			}
			seen[value] = name
		}
	}
	for i, clone := range clones {
		// The one has run on for as long as the other was restored, and is
		// no less right.
		clone.checkClock(t)
		quiet.check(t, clone)
		stranger := clone.as("token of the other")
		if i == 0 {
			stranger = clone.as("token of clone-1")
		}
		if _, err := stranger.Process.List(t.Context(), connect.NewRequest(&pb.ListRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("clone %d lets another's token in: %v", i, err)
		}
	}
	// What ends in one goes on in the other.
	quiet.end(t, clones[0])
	quiet.check(t, clones[1])
}

// as is the machine's client with another token.
func (m *machine) as(token string) *client.Client {
	return client.New(base, client.Options{HTTP: m.link.http, Token: token})
}

// adopt gives a restored machine its own token, and uses it from then on.
func (m *machine) adopt(t testing.TB, token string) {
	t.Helper()
	body := fmt.Sprintf(`{"timestamp": %q, "accessToken": %q}`, time.Now().UTC().Format(time.RFC3339Nano), token)
	_, err := m.do(t.Context(), http.MethodPost, base+"/init", "application/json", strings.NewReader(body))
	must(t, err)
	m.Client = m.as(token)
}

// watcher makes a watcher and answers its id.
func (m *machine) watcher(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	res, err := m.Filesystem.CreateWatcher(ctx, connect.NewRequest(&filesystem.CreateWatcherRequest{Path: "/tmp"}))
	must(t, err)
	return res.Msg.WatcherId
}
