package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// window is how much is asked for at once when parts of a file are read.
const window = 1 << 20

// maxKept is how many windows a Remote keeps: headers with large vocabularies have some tens.
const maxKept = 256

// A Remote is a file of the hub of which only what is asked for is downloaded. It is safe for
// concurrent use.
type Remote struct {
	Name string // hf:ORG/NAME/FILE
	Size int64

	ctx     context.Context
	c       *Client
	address string

	mu    sync.Mutex
	kept  map[int64][]byte
	local *os.File // the file in the cache, if it is there
	read  int64
}

// Remotes lists the files of a model that Choose picks, to be read in parts. Files that the cache has
// are read there, with Offline no others. The caller closes them.
func (c *Client) Remotes(ctx context.Context, r Ref) ([]*Remote, error) {
	m, err := c.chosen(ctx, r)
	if err != nil {
		return nil, err
	}
	var out []*Remote
	for _, f := range m.files {
		x := &Remote{Name: r.String() + "/" + f.Name, Size: f.Size, ctx: ctx, c: c, address: c.address(r.Repo, m.at, f.Name),
			kept: map[int64][]byte{}}
		out = append(out, x)
		file, err := os.Open(filepath.Join(c.snapshot(r.Repo, m.at), filepath.FromSlash(f.Name)))
		switch {
		case err == nil:
			x.local = file
		case m.here: // and nowhere else
			return nil, closeAll(out, err)
		}
		if x.Size < 0 {
			return nil, closeAll(out, fmt.Errorf("%s: the server does not say how long the file is", x.Name))
		}
	}
	return out, nil
}

// closeAll releases files and returns err.
func closeAll(files []*Remote, err error) error {
	for _, x := range files {
		x.Close()
	}
	return err
}

// Close releases the file.
func (x *Remote) Close() error {
	if x.local != nil {
		return x.local.Close()
	}
	return nil
}

// Read returns how many bytes were downloaded.
func (x *Remote) Read() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.read
}

// ReadAt reads a part of the file.
func (x *Remote) ReadAt(p []byte, off int64) (int, error) {
	if x.local != nil {
		return x.local.ReadAt(p, off)
	}
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	n := 0
	for n < len(p) && off < x.Size {
		w, err := x.window(off / window)
		if err != nil {
			return n, err
		}
		k := copy(p[n:], w[off%window:])
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// window returns a part of the file, from what is kept or from the hub.
func (x *Remote) window(i int64) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if w, ok := x.kept[i]; ok {
		return w, nil
	}
	from, to := i*window, min((i+1)*window, x.Size)
	body, at, err := x.c.part(x.ctx, x.Name, x.address, from, fmt.Sprintf("bytes=%d-%d", from, to-1))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if at != from {
		return nil, fmt.Errorf("%s: the server cannot send parts of files; download the model", x.Name)
	}
	w := make([]byte, to-from)
	n, err := io.ReadFull(body, w)
	x.read += int64(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", x.Name, err)
	}
	if len(x.kept) == maxKept {
		clear(x.kept)
	}
	x.kept[i] = w
	return w, nil
}
