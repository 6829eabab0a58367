package watch

import "strings"

// node is one watched directory. Nodes belong to their Watcher and are touched
// under its lock only.
type node struct {
	parent   *node // nil for the root
	children map[string]*node
	// found holds the entries a list reported whose own events may still be
	// queued, that is before since. Nil once the fence is passed.
	found map[string]struct{}
	// shadow is the node that this one was moved over: removed as a rule, and
	// alive after an exchange.
	shadow *node
	hint   *hint // where a list saw this directory before its move was read
	name   string
	since  int64 // the fence: stream position from which events are newer than the list
	dev    uint64
	ino    uint64
	wd     int32
	dead   bool // no longer in the tree
}

// hint records that the list of a new directory showed one known at another
// place. Its move is queued, maybe without the half that tells where to.
type hint struct {
	slot
	moved    *node
	since    int64
	announce bool // report it if no move was read by the fence: a bind mount
}

// slot is a name in a directory.
type slot struct {
	dir  *node
	name string
}

// path is the node's name relative to the root, "" for the root.
func (n *node) path() string {
	size := 0
	for p := n; p.parent != nil; p = p.parent {
		size += len(p.name) + 1
	}
	if size == 0 {
		return ""
	}
	buf := make([]byte, size-1)
	end := len(buf)
	for p := n; p.parent != nil; p = p.parent {
		end -= len(p.name)
		copy(buf[end:], p.name)
		if end > 0 {
			end--
			buf[end] = '/'
		}
	}
	return string(buf)
}

// join appends a name to a path relative to the root.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	var b strings.Builder
	b.Grow(len(dir) + 1 + len(name))
	b.WriteString(dir)
	b.WriteByte('/')
	b.WriteString(name)
	return b.String()
}

// link puts n, which is in no directory, at a name.
func (n *node) link(dir *node, name string) {
	if dir.children == nil {
		dir.children = make(map[string]*node)
	}
	n.parent, n.name = dir, name
	dir.children[name] = n
}

// unlink takes n from its directory; the one it shadowed stays known by its
// watch descriptor alone.
func (n *node) unlink() {
	if n.parent == nil {
		return
	}
	switch c := n.parent.children[n.name]; {
	case c == n:
		delete(n.parent.children, n.name)
		if len(n.parent.children) == 0 {
			n.parent.children = nil
		}
	case c != nil && c.shadow == n:
		c.shadow = nil
	}
}

// below reports whether n is top or lies in its tree.
func (n *node) below(top *node) bool {
	for ; n != nil; n = n.parent {
		if n == top {
			return true
		}
	}
	return false
}

// settled reports whether an event at pos is newer than the list that found n.
func (n *node) settled(pos int64) bool { return pos >= n.since }
