package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sort"

	"phaseconv/format/atomicfile"
)

// A Writer writes one file, tensor by tensor in the order given to Create, so
// that memory does not grow with the file.
type Writer struct {
	out     *atomicfile.File
	tensors []Tensor
	next    int
	data    int64
}

// Create starts a file with these tensors (Begin and End are computed here) and
// metadata. Readers map tensors by their header, so the data order is free;
// keeping a source's order keeps its shard layout.
func Create(path string, tensors []Tensor, metadata map[string]string) (*Writer, error) {
	w := &Writer{tensors: append([]Tensor(nil), tensors...)}
	var at int64
	seen := map[string]bool{}
	for i := range w.tensors {
		t := &w.tensors[i]
		size := t.Size()
		if bits, ok := elementBits[t.DType]; ok {
			count := int64(1)
			for _, d := range t.Shape {
				count *= int64(d)
			}
			size = (count*int64(bits) + 7) / 8
		}
		if seen[t.Name] {
			return nil, fmt.Errorf("%s: tensor %s is given twice", path, t.Name)
		}
		seen[t.Name] = true
		t.Begin, t.End = at, at+size
		at += size
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
	w.data = int64(8 + len(head))
	return w, nil
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
		b.WriteString(`"__metadata__":{`)
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
		return nil, fmt.Errorf("header of %d bytes exceeds the format's limit", b.Len())
	}
	return b.Bytes(), nil
}

// WriteTensor writes the bytes of the next tensor, which must be name. body
// must write exactly the tensor's size.
func (w *Writer) WriteTensor(name string, body func(io.Writer) error) error {
	if w.next >= len(w.tensors) || w.tensors[w.next].Name != name {
		return fmt.Errorf("%s: tensor %s written out of order", w.out.Path(), name)
	}
	t := w.tensors[w.next]
	start := w.out.Offset()
	if err := body(w.out); err != nil {
		return fmt.Errorf("%s: tensor %s: %w", w.out.Path(), name, err)
	}
	if n := w.out.Offset() - start; n != t.Size() {
		return fmt.Errorf("%s: tensor %s: %d bytes written, expected %d", w.out.Path(), name, n, t.Size())
	}
	w.next++
	return nil
}

// Commit finishes the file; all tensors must have been written.
func (w *Writer) Commit() error {
	if w.next != len(w.tensors) {
		w.Abort()
		return fmt.Errorf("%s: only %d of %d tensors were written", w.out.Path(), w.next, len(w.tensors))
	}
	return w.out.Commit()
}

// Abort discards the file. It does nothing after Commit.
func (w *Writer) Abort() { w.out.Abort() }
