package cgroup

// spareGroups is how many leaves of a class are made ahead: as many as may be
// wanted before tidy makes more. To make one is a tenth of the time from a request
// to its program, and somebody waits for that; nobody does once a command has ended.
const spareGroups = 16

// takeSpare answers a leaf that was made ahead, or nil.
func (h *Hierarchy) takeSpare(c Class) *Group {
	h.mu.Lock()
	var g *Group
	if n := len(h.spares[c]); n > 0 {
		g = h.spares[c][n-1]
		h.spares[c] = h.spares[c][:n-1]
	}
	h.mu.Unlock()
	if g != nil && g.Removed() { // by somebody, meanwhile
		g.Discard()
		return nil
	}
	return g
}

// addSpare makes a leaf ahead, if there are not enough. What keeps it from that,
// the next Create tells.
func (h *Hierarchy) addSpare(c Class) {
	h.mu.Lock()
	wanted := h.wantsSpare(c)
	h.mu.Unlock()
	if !wanted {
		return
	}
	g, err := h.make(c)
	if err != nil {
		return
	}
	h.mu.Lock()
	if wanted = h.wantsSpare(c); wanted {
		h.spares[c] = append(h.spares[c], g)
	}
	h.mu.Unlock()
	if !wanted {
		g.Discard()
	}
}

// wantsSpare tells whether there are too few. The caller holds mu.
func (h *Hierarchy) wantsSpare(c Class) bool {
	return !h.closed && len(h.spares[c]) < h.most
}

// Trim removes the leaves that were made ahead, and those of commands that have just
// ended.
func (h *Hierarchy) Trim() { h.dropSpares(false) }

// dropSpares removes what was made ahead; for good, when that is the last there
// will be.
func (h *Hierarchy) dropSpares(forGood bool) {
	h.tidying.Lock()
	defer h.tidying.Unlock()
	h.mu.Lock()
	all, over := h.spares, h.over
	h.spares, h.over = make(map[Class][]*Group), nil
	h.closed = h.closed || forGood
	h.mu.Unlock()
	for _, g := range over {
		g.giveUp()
	}
	for _, spares := range all {
		for _, g := range spares {
			g.Discard()
		}
	}
}
