package watch

import "fmt"

// Kind is what happened to an entry.
type Kind uint8

// The kinds, in the wire's order.
const (
	Create Kind = iota + 1 // made, linked or moved here
	Write                  // content changed, truncation included
	Remove                 // unlinked
	Rename                 // moved away; the event has the old name
	Chmod                  // mode, owner, times or extended attributes changed
)

func (k Kind) String() string {
	switch k {
	case Create:
		return "CREATE"
	case Write:
		return "WRITE"
	case Remove:
		return "REMOVE"
	case Rename:
		return "RENAME"
	case Chmod:
		return "CHMOD"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Event is one change to one entry. Names are bytes as the kernel has them,
// valid UTF-8 or not.
type Event struct {
	// Name is relative to the watched directory, "." for the directory itself.
	Name string
	// From is set on a Create that ends a rename within the watch: the name in
	// the Rename event before it. It is empty where the source is not known,
	// and then everything below Name is reported anew.
	From string
	Kind Kind
}

func (e Event) String() string {
	if e.From != "" {
		return fmt.Sprintf("%v %q from %q", e.Kind, e.Name, e.From)
	}
	return fmt.Sprintf("%v %q", e.Kind, e.Name)
}
