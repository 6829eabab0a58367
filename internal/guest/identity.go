package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Identity is which sandbox this is, from the host's metadata service. The zero
// value stands for what nobody has said yet.
type Identity struct {
	Instance  string // the sandbox
	Template  string // what it was made from
	TokenHash string // hex SHA-512 of the access token; "" for none said
}

// dialects are the names under which processes find the identity. The second
// is for templates made for E2B's daemon.
var dialects = []struct{ prefix, dir string }{
	{"WRENN", "run/wrenn"},
	{"E2B", "run/e2b"},
}

// Words of the names. Files are called like variables, with a dot before.
const (
	wordSandbox  = "_SANDBOX"
	wordInstance = "_SANDBOX_ID"
	wordTemplate = "_TEMPLATE_ID"
)

// SandboxEnv is the environment of a guest that does not know who it is.
func SandboxEnv(firecracker bool) map[string]string {
	env := make(map[string]string)
	for _, d := range dialects {
		env[d.prefix+wordSandbox] = strconv.FormatBool(firecracker)
	}
	return env
}

// Identify makes s the settings of id, with the variables that say so.
func (s *Settings) Identify(id Identity) {
	s.Identity = id
	for _, d := range dialects {
		s.Env[d.prefix+wordInstance] = id.Instance
		s.Env[d.prefix+wordTemplate] = id.Template
	}
}

// WriteSandbox writes the files below root that say whether this is a sandbox.
func WriteSandbox(root string, firecracker bool) error {
	return writeFacts(root, map[string]string{wordSandbox: strconv.FormatBool(firecracker)})
}

// WriteIdentity writes the files below root that say which sandbox this is.
func WriteIdentity(root string, id Identity) error {
	return writeFacts(root, map[string]string{wordInstance: id.Instance, wordTemplate: id.Template})
}

// writeFacts gives each dialect a file for each word, readable by all.
func writeFacts(root string, facts map[string]string) error {
	for _, d := range dialects {
		dir := filepath.Join(root, d.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("write identity: %w", err)
		}
		for word, value := range facts {
			if err := renameInto(filepath.Join(dir, "."+d.prefix+word), []byte(value)); err != nil {
				return fmt.Errorf("write identity: %w", err)
			}
		}
	}
	return nil
}
