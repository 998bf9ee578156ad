package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"sort"
	"unicode/utf8"

	"github.com/phaseconv/phaseconv/format/atomicfile"
)

// A Writer writes one file, tensor by tensor in the order given to Create, so
// that memory does not grow with the file. It is not safe for concurrent use.
type Writer struct {
	out     *atomicfile.File
	tensors []Tensor
	next    int
	err     error // the first failure; nothing can be written after it
}

// Create starts a file with these tensors (Begin and End are computed here; for
// element types of unknown size their difference is the tensor's size) and
// metadata. Readers map tensors by their header, so the data order is free;
// keeping a source's order keeps its shard layout. It refuses what Open would
// refuse; no file is created then.
func Create(path string, tensors []Tensor, metadata map[string]string) (*Writer, error) {
	if len(tensors) > MaxTensors {
		return nil, fmt.Errorf("%s: %d tensors exceed the limit of %d", path, len(tensors), MaxTensors)
	}
	w := &Writer{tensors: append([]Tensor(nil), tensors...)}
	var at int64
	seen := map[string]bool{}
	for i := range w.tensors {
		t := &w.tensors[i]
		size, err := checkNew(t)
		if err != nil {
			return nil, &FormatError{path, clip(t.Name), -1, err.Error()}
		}
		if seen[t.Name] {
			return nil, &FormatError{path, t.Name, -1, "the name is given twice"}
		}
		if size > math.MaxInt64/2-at {
			return nil, &FormatError{path, t.Name, -1, "the file would be too large"}
		}
		seen[t.Name] = true
		t.Begin, t.End = at, at+size
		at += size
	}
	for k, v := range metadata {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, &FormatError{path, "", -1, fmt.Sprintf("metadata key %q: not valid UTF-8", clip(k))}
		}
	}
	head, err := header(w.tensors, metadata)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if w.out, err = atomicfile.Create(path); err != nil {
		return nil, err
	}
	var lead [8]byte
	binary.LittleEndian.PutUint64(lead[:], uint64(len(head)))
	if _, err = w.out.Write(lead[:]); err == nil {
		_, err = w.out.Write(head)
	}
	if err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// checkNew returns the stored size of a tensor that is to be written.
func checkNew(t *Tensor) (int64, error) {
	switch {
	case t.Name == metadataKey:
		return 0, fmt.Errorf("the name is reserved")
	case len(t.Name) > MaxName || !utf8.ValidString(t.Name):
		return 0, fmt.Errorf("the name has %d bytes; valid UTF-8 of at most %d is needed", len(t.Name), MaxName)
	case len(t.Shape) > MaxDims:
		return 0, fmt.Errorf("%d dimensions, at most %d are allowed", len(t.Shape), MaxDims)
	case t.Size() < 0:
		return 0, fmt.Errorf("the size %d is negative", t.Size())
	}
	for _, d := range t.Shape {
		if d > math.MaxInt32 {
			return 0, fmt.Errorf("shape %v is not possible", t.Shape)
		}
	}
	return storedSize(t)
}

// header builds the JSON by hand to keep the tensors in data order; the length
// is padded with spaces to a multiple of 8 so that the data is aligned.
func header(tensors []Tensor, metadata map[string]string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	sep := func() {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
	}
	put := func(v any) error {
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return err
		}
		b.Truncate(b.Len() - 1) // Encode appends a newline
		return nil
	}
	if len(metadata) > 0 {
		var keys []string
		for k := range metadata {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		b.WriteString(`"` + metadataKey + `":{`)
		for i, k := range keys {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := put(k); err != nil {
				return nil, err
			}
			b.WriteByte(':')
			if err := put(metadata[k]); err != nil {
				return nil, err
			}
		}
		b.WriteByte('}')
	}
	for _, t := range tensors {
		sep()
		if err := put(t.Name); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		if err := put(struct {
			DType   string   `json:"dtype"`
			Shape   []int    `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}{t.DType, shape, [2]int64{t.Begin, t.End}}); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	if b.Len() > MaxHeader {
		return nil, fmt.Errorf("header of %d bytes exceeds the format's limit of %d", b.Len(), MaxHeader)
	}
	return b.Bytes(), nil
}

// WriteTensor writes the bytes of the next tensor, which must be name. body
// must write exactly the tensor's size. After an error only Abort is of use.
func (w *Writer) WriteTensor(name string, body func(io.Writer) error) error {
	switch {
	case w.err != nil:
		return w.err
	case w.next == len(w.tensors):
		return w.fail(name, "all tensors have been written")
	case w.tensors[w.next].Name != name:
		return w.fail(name, fmt.Sprintf("tensor %s is to be written next", printable(w.tensors[w.next].Name)))
	}
	tw := &tensorWriter{w: w.out, left: w.tensors[w.next].Size()}
	err := body(tw)
	switch {
	case tw.err != nil: // writing failed, whatever body made of that
		w.err = tw.err
	case err != nil:
		w.err = fmt.Errorf("%s: tensor %s: %w", w.out.Path(), printable(name), err)
	case tw.left != 0:
		_ = w.fail(name, fmt.Sprintf("%d bytes too few were written", tw.left))
	default:
		w.next++
	}
	return w.err
}

func (w *Writer) fail(tensor, msg string) error {
	w.err = &FormatError{w.out.Path(), tensor, -1, msg}
	return w.err
}

// tensorWriter takes the bytes of one tensor and no more.
type tensorWriter struct {
	w    *atomicfile.File
	left int64
	err  error
}

func (t *tensorWriter) Write(p []byte) (int, error) {
	if t.err == nil && int64(len(p)) > t.left {
		t.err = fmt.Errorf("%s: %d bytes more were written than the tensor holds", t.w.Path(), int64(len(p))-t.left)
	}
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.w.Write(p)
	t.left -= int64(n)
	t.err = err
	return n, err
}

// Commit finishes the file. If a tensor is missing or anything failed before, it
// returns an error and leaves no file.
func (w *Writer) Commit() error {
	if w.err == nil && w.next < len(w.tensors) {
		_ = w.fail(w.tensors[w.next].Name, "the tensor was not written")
	}
	if w.err != nil {
		w.Abort()
		return w.err
	}
	w.err = w.out.Commit()
	return w.err
}

// Size returns how many bytes were written so far; after Commit it is the file's size.
func (w *Writer) Size() int64 { return w.out.Offset() }

// SHA256 returns the digest of the whole file in hex, after a Commit without error.
func (w *Writer) SHA256() string { return w.out.SHA256() }

// Abort discards the file. It does nothing after Commit.
func (w *Writer) Abort() { w.out.Abort() }
