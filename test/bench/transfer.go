package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// exchange is one kind of request, to the daemon and to the floor.
type exchange struct {
	ours, floor string // requests up to their bodies
	body        int64  // bytes that follow
}

// fileBench is a daemon, the floor, and a directory in memory for files: what
// is measured is not the disk.
type fileBench struct {
	*bench
	dir           string
	daemon, floor *server
}

func (b *bench) openFiles() (*fileBench, error) {
	dir, err := os.MkdirTemp("/dev/shm", "envd-bench-")
	if err != nil {
		return nil, fmt.Errorf("make directory in memory: %w", err)
	}
	f := &fileBench{bench: b, dir: dir}
	if f.daemon, err = b.daemon(); err == nil {
		f.floor, err = b.floor("transfer")
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *fileBench) close() {
	for _, s := range []*server{f.daemon, f.floor} {
		if s != nil {
			s.stop()
		}
	}
	_ = os.RemoveAll(f.dir)
}

func (f *fileBench) path(name string) string { return filepath.Join(f.dir, name) }

// get asks for a file; encodings are what the daemon is to choose from. With
// any, the floor uses gzip.
func (f *fileBench) get(name, encodings string) exchange {
	const request = "GET /files?path=%s%s HTTP/1.1\r\nHost: bench\r\n%s\r\n"
	query, header := "", ""
	if encodings != "" {
		query, header = "&gzip=1", "Accept-Encoding: "+encodings+"\r\n"
	}
	return exchange{
		ours:  fmt.Sprintf(request, f.path(name), "", header),
		floor: fmt.Sprintf(request, f.path(name), query, ""),
	}
}

// post uploads size bytes; each side has its own file.
func (f *fileBench) post(name string, size int64) exchange {
	const request = "POST /files?path=%s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
	return exchange{
		ours:  fmt.Sprintf(request, f.path(name+"-ours"), size),
		floor: fmt.Sprintf(request, f.path(name+"-floor"), size),
		body:  size,
	}
}

// write makes a file of size bytes.
func (f *fileBench) write(name string, src io.Reader, size int64) error {
	file, err := os.Create(f.path(name))
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer file.Close()
	if _, err := io.CopyN(file, src, size); err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	return nil
}

// fileClient is one kept-alive connection.
type fileClient struct {
	*client
	buffer []byte // of writes and reads
}

func dialFiles(addr string) (*fileClient, error) {
	c, err := dial(addr, 4<<10)
	if err != nil {
		return nil, err
	}
	return &fileClient{c, make([]byte, readBuffer)}, nil
}

// do makes one exchange and answers how many bytes of body came back.
func (c *fileClient) do(request string, body int64) (int64, error) {
	if err := c.conn.SetDeadline(time.Now().Add(quietLimit)); err != nil {
		return 0, err
	}
	out := append(c.out[:0], request...)
	if body <= 4<<10 {
		out = append(out, c.buffer[:body]...)
		body = 0
	}
	c.out = out
	if _, err := c.conn.Write(out); err != nil {
		return 0, fmt.Errorf("send request: %w", err)
	}
	for body > 0 {
		n, err := c.conn.Write(c.buffer[:min(body, int64(len(c.buffer)))])
		if err != nil {
			return 0, fmt.Errorf("send body: %w", err)
		}
		body -= int64(n)
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, fmt.Errorf("read answer: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return 0, fmt.Errorf("answer %s: %s", res.Status, text)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, c.buffer)
	if err != nil {
		return n, fmt.Errorf("read body: %w", err)
	}
	return n, nil
}

// compare runs x in turns, times per round, and answers the medians of what one
// takes: ours and the floor's.
func (f *fileBench) compare(x exchange, rounds, times int) (ours, floor time.Duration, err error) {
	var took [2][]time.Duration
	var clients [2]*fileClient
	for i, s := range []*server{f.daemon, f.floor} {
		if clients[i], err = dialFiles(s.addr); err != nil {
			return 0, 0, err
		}
		defer clients[i].close()
	}
	for round := range rounds + 1 {
		for i, request := range []string{x.ours, x.floor} {
			began := time.Now()
			for range times {
				if _, err := clients[i].do(request, x.body); err != nil {
					return 0, 0, err
				}
			}
			if round > 0 { // the first makes files and buffers
				took[i] = append(took[i], time.Since(began)/time.Duration(times))
			}
		}
	}
	return median(took[0]), median(took[1]), nil
}

func speedOf(size int64, took time.Duration) float64 {
	return float64(size) / (1 << 20) / took.Seconds()
}

// fileSpeed compares transfers of large files with plain net/http handlers that
// copy files.
func fileSpeed(b *bench) ([]row, error) {
	f, err := b.openFiles()
	if err != nil {
		return nil, err
	}
	defer f.close()
	size := pick[int64](b, 512<<20, 16<<20)
	if err := f.write("noise", rand.Reader, size); err != nil {
		return nil, err
	}
	up, upFloor, err := f.compare(f.post("up", size), pick(b, 7, 2), 1)
	if err != nil {
		return nil, err
	}
	down, downFloor, err := f.compare(f.get("noise", ""), pick(b, 7, 2), 1)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%d MiB ", size>>20)
	return []row{
		share(name+"upload", "MiB/s", speedOf(size, up), speedOf(size, upFloor), 0.9),
		share(name+"download", "MiB/s", speedOf(size, down), speedOf(size, downFloor), 0.9),
	}, nil
}

// compression compares compressed downloads: of text with the standard
// library's gzip, of random data with the same file as it is.
func compression(b *bench) ([]row, error) {
	f, err := b.openFiles()
	if err != nil {
		return nil, err
	}
	defer f.close()
	textSize, noiseSize := pick[int64](b, 64<<20, 1<<20), pick[int64](b, 256<<20, 8<<20)
	if err := f.writeText("text", textSize); err != nil {
		return nil, err
	}
	if err := f.write("noise", rand.Reader, noiseSize); err != nil {
		return nil, err
	}
	rounds := pick(b, 5, 1)
	zip, zipFloor, err := f.compare(f.get("text", "gzip"), rounds, 1)
	if err != nil {
		return nil, err
	}
	zstd, _, err := f.compare(exchange{ours: f.get("text", "zstd, gzip").ours, floor: f.get("noise", "").floor}, rounds, 1)
	if err != nil {
		return nil, err
	}
	noise := exchange{ours: f.get("noise", "gzip").ours, floor: f.get("noise", "").floor}
	random, randomFloor, err := f.compare(noise, rounds, 1)
	if err != nil {
		return nil, err
	}
	return []row{
		share("text as gzip", "MiB/s", speedOf(textSize, zip), speedOf(textSize, zipFloor), 4),
		share("text as zstd", "MiB/s", speedOf(textSize, zstd), speedOf(textSize, zipFloor), 4),
		share("random data, gzip wanted", "MiB/s", speedOf(noiseSize, random), speedOf(noiseSize, randomFloor), 0.8),
	}, nil
}

// writeText makes a file of size bytes of the source text of Go itself.
func (f *fileBench) writeText(name string, size int64) error {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find source text: %w", err)
	}
	sources, err := filepath.Glob(strings.TrimSpace(string(root)) + "/src/*/*.go")
	if err != nil || len(sources) == 0 {
		return fmt.Errorf("find source text: %w", errors.Join(err, errors.New("there is none")))
	}
	var text bytes.Buffer
	for i := 0; int64(text.Len()) < size; i++ {
		b, err := os.ReadFile(sources[i%len(sources)])
		if err != nil {
			return fmt.Errorf("read source text: %w", err)
		}
		text.Write(b)
	}
	return f.write(name, &text, size)
}

// smallFiles compares transfers of 1 KiB, one after the other.
func smallFiles(b *bench) ([]row, error) {
	f, err := b.openFiles()
	if err != nil {
		return nil, err
	}
	defer f.close()
	const size = 1 << 10
	if err := f.write("small", rand.Reader, size); err != nil {
		return nil, err
	}
	rounds, times := pick(b, 21, 2), pick(b, 500, 20)
	up, upFloor, err := f.compare(f.post("small", size), rounds, times)
	if err != nil {
		return nil, err
	}
	down, downFloor, err := f.compare(f.get("small", ""), rounds, times)
	if err != nil {
		return nil, err
	}
	rate := func(d time.Duration) float64 { return 1 / d.Seconds() }
	return []row{
		share("1 KiB uploads", "/s", rate(up), rate(upFloor), 0.85),
		share("1 KiB downloads", "/s", rate(down), rate(downFloor), 0.85),
	}, nil
}

// fileMemory measures by how much the daemon grows while 1 GiB goes through it.
func fileMemory(b *bench) ([]row, error) {
	f, err := b.openFiles()
	if err != nil {
		return nil, err
	}
	defer f.close()
	size := pick[int64](b, 1<<30, 64<<20)
	c, err := dialFiles(f.daemon.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	up := f.post("large", size)
	down := f.get("large-ours", "")
	var rows []row
	for _, x := range []struct {
		name string
		exchange
	}{{"upload", up}, {"download", down}} {
		grown, err := peakGrowth(f.daemon.pid(), func() error {
			_, err := c.do(x.ours, x.body)
			return err
		})
		if err != nil {
			return nil, err
		}
		// Where nothing grew, the smallest amount that a table shows.
		rows = append(rows, absolute(fmt.Sprintf("%d MiB %s, peak growth", size>>20, x.name), "KiB", max(grown, 1), 4<<10))
	}
	return rows, nil
}

// peakGrowth is how far the resident memory of pid gets above what it was.
func peakGrowth(pid int, do func() error) (kib float64, err error) {
	// 5 resets the peak (proc_pid_clear_refs(5)).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return 0, fmt.Errorf("reset peak: %w", err)
	}
	before, err := procField(pid, "status", "VmRSS:")
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	peak, err := procField(pid, "status", "VmHWM:")
	return peak - before, err
}
