// Package guest holds what the daemon knows about the machine it serves: the
// settings that requests fall back to and the user accounts.
//
// Settings is one immutable value behind an atomic pointer: a request loads it
// once and works with that. Accounts is a cache of the users and groups files
// that notices when they change. Both are safe for concurrent use; the package
// has no goroutine and knows no wire.
package guest
