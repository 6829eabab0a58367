package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
)

const (
	listTarget  = 2.5
	watchTarget = 1.3
	// listPeakTarget is what the daemon may need at most while it lists, in KiB.
	listPeakTarget = 60 << 10
)

// listings compares ListDir of large directories, in JSON as SDKs call it and
// in binary, with reading the directory and looking at each entry; and measures the
// daemon's peak of resident memory.
func listings(b *bench) ([]row, error) {
	var rows []row
	for _, n := range []int{pick(b, 10_000, 1000), pick(b, 100_000, 2000)} {
		more, err := b.listing(n)
		rows = append(rows, more...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func (b *bench) listing(n int) ([]row, error) {
	dir, err := b.fill(n)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	f, err := b.spawn("files")
	if err != nil {
		return nil, err
	}
	defer f.stop()
	c, err := dial(d.addr, readBuffer)
	if err != nil {
		return nil, err
	}
	defer c.close()

	var json, binary, floor []float64
	for round := range pick(b, 11, 3) {
		times := make([]float64, 3)
		for i, run := range []func() error{
			func() error { return f.files("list", dir, n) },
			func() error { return c.list(dir, n, true) },
			func() error { return c.list(dir, n, false) },
		} {
			begin := time.Now()
			if err := run(); err != nil {
				return nil, err
			}
			times[i] = millis(time.Since(begin))
		}
		if round > 0 { // the first warms caches up
			floor, json, binary = append(floor, times[0]), append(json, times[1]), append(binary, times[2])
		}
	}
	peak, err := procField(d.pid(), "status", "VmHWM:")
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("list %d entries", n)
	return []row{
		limit(name+", JSON", "ms", median(json), median(floor), listTarget),
		limit(name+", binary", "ms", median(binary), median(floor), listTarget),
		absolute(name+": peak resident", "KiB", peak, listPeakTarget),
	}, nil
}

// fill makes a directory of n files.
func (b *bench) fill(n int) (string, error) {
	dir, err := os.MkdirTemp(b.dir, "list-")
	if err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	for i := range n {
		if err := os.WriteFile(fmt.Sprintf("%s/some-file-%06d.txt", dir, i), nil, 0o644); err != nil {
			return "", fmt.Errorf("fill directory: %w", err)
		}
	}
	return dir, nil
}

// files lets the floor do one thing and checks how much it found.
func (s *server) files(verb, dir string, want int) error {
	if _, err := fmt.Fprintln(s.in, verb, dir); err != nil {
		return fmt.Errorf("floor %s: %w", verb, err)
	}
	line, err := s.out.ReadString('\n')
	if got := strings.TrimSpace(line); err != nil || got != strconv.Itoa(want) {
		return fmt.Errorf("floor %s: found %q of %d, %w\n%s", verb, got, want, err, s.log.String())
	}
	return nil
}

// list calls ListDir and reads the answer, which has to hold n entries' worth
// of names at least.
func (c *client) list(dir string, n int, json bool) error {
	req := &pb.ListDirRequest{Path: dir, Depth: 1}
	marshal, contentType := proto.Marshal, "application/proto"
	if json {
		marshal, contentType = protojson.Marshal, "application/json"
	}
	body, err := marshal(req)
	if err != nil {
		return err
	}
	if err := c.post(filesystemconnect.FilesystemListDirProcedure, contentType, body); err != nil {
		return err
	}
	length, err := c.headers()
	if err != nil {
		return err
	}
	got, err := c.body(length)
	if least := n * (len(dir) + 2*len("/some-file-000000.txt")); err == nil && got < least {
		err = fmt.Errorf("list: %d bytes for %d entries", got, n)
	}
	return err
}

// body reads a unary answer, which may come in chunks (length -1), and answers
// its size.
func (c *client) body(length int) (size int, err error) {
	if length >= 0 {
		return c.in.Discard(length)
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return size, fmt.Errorf("read chunk: %w", err)
		}
		chunk, err := strconv.ParseUint(strings.TrimSpace(string(line)), 16, 31)
		if err != nil {
			return size, fmt.Errorf("read chunk: %w", err)
		}
		if _, err := c.in.Discard(int(chunk) + len("\r\n")); err != nil {
			return size, fmt.Errorf("read chunk: %w", err)
		}
		if chunk == 0 {
			return size, nil
		}
		size += int(chunk)
	}
}

// watchSetup compares the start of a recursive watch, to its first event, with
// a walk that adds a watch for each directory.
func watchSetup(b *bench) ([]row, error) {
	dir, n, err := b.tree(pick(b, 10, 3))
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	f, err := b.spawn("files")
	if err != nil {
		return nil, err
	}
	defer f.stop()
	request := envelope(&pb.WatchDirRequest{Path: dir, Recursive: true})
	var ours, floor []float64
	for round := range pick(b, 31, 3) {
		begin := time.Now()
		if err := f.files("watch", dir, n); err != nil {
			return nil, err
		}
		raw := millis(time.Since(begin))
		took, err := d.watch(request)
		if err != nil {
			return nil, err
		}
		if round > 0 { // the first warms caches up
			ours, floor = append(ours, took), append(floor, raw)
		}
	}
	return []row{limit(fmt.Sprintf("watch %d directories", n), "ms", median(ours), median(floor), watchTarget)}, nil
}

// tree makes a tree of width³ directories with three files each, and those
// above them. It answers how many directories there are.
func (b *bench) tree(width int) (dir string, n int, err error) {
	if dir, err = os.MkdirTemp(b.dir, "watch-"); err != nil {
		return "", 0, fmt.Errorf("make directory: %w", err)
	}
	for i := range width * width * width {
		leaf := filepath.Join(dir, strconv.Itoa(i/width/width), strconv.Itoa(i/width%width), strconv.Itoa(i%width))
		if err := os.MkdirAll(leaf, 0o755); err != nil {
			return "", 0, fmt.Errorf("make tree: %w", err)
		}
		for j := range 3 {
			if err := os.WriteFile(filepath.Join(leaf, strconv.Itoa(j)), nil, 0o644); err != nil {
				return "", 0, fmt.Errorf("make tree: %w", err)
			}
		}
	}
	return dir, 1 + width + width*width + width*width*width, nil
}

// watch starts a watch and answers how long its first event took, in
// milliseconds. It closes the connection: that ends the watch.
func (s *server) watch(request []byte) (took float64, err error) {
	c, err := dial(s.addr, 4<<10)
	if err != nil {
		return 0, err
	}
	defer c.close()
	begin := time.Now()
	if err := c.open(filesystemconnect.FilesystemWatchDirProcedure, request); err != nil {
		return 0, err
	}
	_, err = c.message()
	if err == io.EOF { //nolint:errorlint // as message answers it
		err = io.ErrUnexpectedEOF
	}
	return millis(time.Since(begin)), err
}
