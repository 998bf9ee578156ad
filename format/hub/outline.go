package hub

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
)

// An Outline is a model of which only headers, and tensors that are small, were downloaded: files of
// the right size with holes, which read as zeros, where the weights would be.
type Outline struct {
	Path  string   // what to open: a folder, or a GGUF file
	Files []string // of weights
	Read  int64    // bytes that were downloaded
}

// Outline makes an outline of a model in a folder. Tensors of at most small bytes are in it, and no
// file but headers with small < 0.
func (c *Client) Outline(ctx context.Context, r Ref, dir string, small int64) (*Outline, error) {
	files, err := c.Remotes(ctx, r)
	if err != nil {
		return nil, err
	}
	o := &Outline{Path: dir}
	for _, x := range files {
		defer x.Close()
		name := strings.TrimPrefix(x.Name, r.String()+"/")
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		weights := true
		switch filepath.Ext(name) {
		case ".gguf":
			if o.Path == dir {
				o.Path = path
			}
			err = x.outline(path, small, x.ggufHeader)
		case ".safetensors":
			err = x.outline(path, small, x.safetensorsHeader)
		default:
			if weights = false; small < 0 {
				continue
			}
			if x.Size > maxAnswer {
				return nil, fmt.Errorf("%s: %d bytes are too many for a file without weights", x.Name, x.Size)
			}
			err = x.outline(path, small, func(*os.File) ([]extent, error) { return []extent{{0, x.Size}}, nil })
		}
		if err != nil {
			return nil, err
		}
		if weights {
			o.Files = append(o.Files, path)
		}
		o.Read += x.Read()
	}
	return o, nil
}

// An extent is a part of a file.
type extent struct{ at, n int64 }

// outline writes parts of the file: those that header, which gets the file it may write to, returns.
func (x *Remote) outline(path string, small int64, header func(*os.File) ([]extent, error)) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(x.Size); err != nil {
		return err
	}
	parts, err := header(f)
	if err != nil {
		return err
	}
	for i, p := range parts {
		if i > 0 && p.n > small {
			continue
		}
		if _, err := io.Copy(io.NewOffsetWriter(f, p.at), io.NewSectionReader(x, p.at, p.n)); err != nil {
			return err
		}
	}
	return f.Close()
}

// ggufHeader returns the header, and then each tensor.
func (x *Remote) ggufHeader(*os.File) ([]extent, error) {
	seen := &furthest{r: x}
	f, err := gguf.NewFile(seen, x.Size, x.Name)
	if err != nil {
		return nil, err
	}
	parts := []extent{{0, seen.end}}
	for i := range f.Tensors {
		_, at, n := f.Reader(&f.Tensors[i]).Outer()
		parts = append(parts, extent{at, n})
	}
	return parts, nil
}

// furthest remembers where the last byte was that was read.
type furthest struct {
	r   io.ReaderAt
	end int64
}

func (f *furthest) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.r.ReadAt(p, off)
	f.end = max(f.end, off+int64(n))
	return n, err
}

// safetensorsHeader does the same. It writes the header: the reader takes files by name.
func (x *Remote) safetensorsHeader(out *os.File) ([]extent, error) {
	var lead [8]byte
	if _, err := x.ReadAt(lead[:], 0); err != nil {
		return nil, fmt.Errorf("%s: %w", x.Name, err)
	}
	n := binary.LittleEndian.Uint64(lead[:])
	if n > safetensors.MaxHeader || int64(n) > x.Size-8 {
		return nil, fmt.Errorf("%s: a header of %d bytes is too long", x.Name, n)
	}
	data := 8 + int64(n)
	if _, err := io.Copy(io.NewOffsetWriter(out, 0), io.NewSectionReader(x, 0, data)); err != nil {
		return nil, err
	}
	f, err := safetensors.Open(out.Name())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parts := []extent{{0, data}}
	for i := range f.Tensors {
		parts = append(parts, extent{data + f.Tensors[i].Begin, f.Tensors[i].Size()})
	}
	return parts, nil
}
