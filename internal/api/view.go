package api

import (
	"strings"
	"unicode/utf8"

	"github.com/wrenn/envd/internal/filesystem"
	"github.com/wrenn/envd/internal/guest"
)

// view is the filesystem as a request of acct's works with it.
func (c *Config) view(acct guest.Account) *filesystem.View {
	return &filesystem.View{
		User: filesystem.User{
			UID: acct.UID, GID: acct.GID, Groups: acct.Groups,
			Home: acct.Home, Workdir: c.Settings.Load().Workdir,
		},
		Names:    c.Accounts,
		Confined: c.UserAccess,
	}
}

// asUser tells whether what a request of acct's does to files holds a thread.
func (c *Config) asUser(acct guest.Account) bool { return c.UserAccess && acct.UID != 0 }

// text is a name as JSON and messages can hold it: in UTF-8. Each run of other
// bytes becomes one U+FFFD.
func text(name string) string { return strings.ToValidUTF8(name, string(utf8.RuneError)) }
