package api

import (
	"maps"
	"os"
	"slices"

	"github.com/wrenn/envd/internal/guest"
)

const (
	// defaultPath is for a daemon without a PATH, as PID 1 is started.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "xterm-256color"
)

// environment is all that a process gets: the daemon's PATH, who the user is,
// the default variables and the request's. The later wins.
func environment(acct guest.Account, settings *guest.Settings, request map[string]string, terminal bool) []string {
	env := map[string]string{
		"PATH":    defaultPath,
		"HOME":    acct.Home,
		"USER":    acct.Name,
		"LOGNAME": acct.Name,
	}
	if path := os.Getenv("PATH"); path != "" {
		env["PATH"] = path
	}
	if terminal {
		env["TERM"] = defaultTerm
	}
	maps.Copy(env, settings.Env)
	maps.Copy(env, request)
	list := make([]string, 0, len(env)+1)
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}
