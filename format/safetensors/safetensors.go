// Package safetensors reads and writes the safetensors container: one JSON
// header, then the tensors' bytes. Unknown element types stay opaque, so every
// tensor of a checkpoint can be copied; F32, F16 and BF16 can be read as numbers.
//
// Layout of a file: an 8-byte little-endian header length, the header, then
// the data that the header's offsets count from.
package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"

	"phaseconv/format/dtype"
)

// Limits on what a header may ask for.
const (
	MaxHeader  = 100 << 20 // bytes; the reference implementation's own limit
	MaxTensors = 1 << 20
	MaxDims    = 16
	MaxName    = 1 << 10 // bytes
	// MaxIndex bounds model.safetensors.index.json.
	MaxIndex = 100 << 20
)

// A FormatError says where a file breaks the format.
type FormatError struct {
	File   string
	Tensor string // "" when the header itself is at fault
	Offset int64  // byte offset in the file, -1 when it does not apply
	Msg    string
}

func (e *FormatError) Error() string {
	s := e.File
	if e.Tensor != "" {
		s += ": tensor " + e.Tensor
	}
	if e.Offset >= 0 {
		s += fmt.Sprintf(" (offset %d)", e.Offset)
	}
	return s + ": " + e.Msg
}

// An UnsupportedError names an element type that cannot be read as numbers.
type UnsupportedError struct {
	File, Tensor, DType string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: tensor %s has element type %s, which cannot be used for computing (F32, F16 and BF16 can)", e.File, e.Tensor, e.DType)
}

// elementBits is the size of each element type of the format's specification.
// Types that are not listed are copied by their offsets alone.
var elementBits = map[string]int{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32,
	"F64": 64, "I64": 64, "U64": 64, "C64": 64,
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

// A Tensor describes one tensor of a file.
type Tensor struct {
	Name  string
	DType string
	Shape []int // row-major, outermost first; empty for a scalar
	// Begin and End are byte offsets from the start of the data section.
	Begin, End int64
}

// Size returns the number of bytes.
func (t *Tensor) Size() int64 { return t.End - t.Begin }

// Cols returns the innermost dimension (1 for a scalar).
func (t *Tensor) Cols() int {
	if len(t.Shape) == 0 {
		return 1
	}
	return t.Shape[len(t.Shape)-1]
}

// Rows returns the product of all dimensions but the innermost.
func (t *Tensor) Rows() int {
	n := 1
	for _, d := range t.Shape[:max(len(t.Shape)-1, 0)] {
		n *= d
	}
	return n
}

// A File is an open safetensors file. Reading is safe for concurrent use.
type File struct {
	Path     string
	Tensors  []Tensor // in the order of their data
	Metadata map[string]string

	byName map[string]int
	data   int64 // offset of the data section
	size   int64
	f      *os.File
}

// Open reads the header of path and checks it against the file's size.
func Open(path string) (*File, error) {
	h, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f := &File{Path: path, f: h}
	if err := f.parse(); err != nil {
		h.Close()
		return nil, err
	}
	return f, nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Find returns the tensor with this name.
func (f *File) Find(name string) (*Tensor, bool) {
	i, ok := f.byName[name]
	if !ok {
		return nil, false
	}
	return &f.Tensors[i], true
}

func (f *File) fail(tensor string, off int64, format string, args ...any) error {
	return &FormatError{f.Path, tensor, off, fmt.Sprintf(format, args...)}
}

func (f *File) parse() error {
	st, err := f.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return f.fail("", -1, "not a regular file")
	}
	f.size = st.Size()
	var lead [8]byte
	if f.size < 8 {
		return f.fail("", 0, "file has %d bytes, a safetensors header needs at least 8; is it a Git LFS pointer or cut off?", f.size)
	}
	if _, err := f.f.ReadAt(lead[:], 0); err != nil {
		return f.fail("", 0, "cannot read the header length: %v", err)
	}
	n := binary.LittleEndian.Uint64(lead[:])
	if n > MaxHeader {
		return f.fail("", 0, "header length %d exceeds the limit of %d bytes; this is not a safetensors file", n, int64(MaxHeader))
	}
	if int64(n) > f.size-8 {
		return f.fail("", 0, "header of %d bytes does not fit into a file of %d bytes; the file is cut off", n, f.size)
	}
	head := make([]byte, n)
	if _, err := f.f.ReadAt(head, 8); err != nil {
		return f.fail("", 8, "cannot read the header: %v", err)
	}
	f.data = 8 + int64(n)
	if err := f.parseHeader(head); err != nil {
		return err
	}
	return f.checkOffsets()
}

// parseHeader walks the JSON by tokens, because a map would hide a duplicate name.
func (f *File) parseHeader(head []byte) error {
	dec := json.NewDecoder(bytes.NewReader(head))
	bad := func(err error) error { return f.fail("", 8+dec.InputOffset(), "header is not valid JSON: %v", err) }
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return f.fail("", 8, "header does not start with {")
	}
	f.byName = map[string]int{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return bad(err)
		}
		name := key.(string)
		if name == "__metadata__" {
			if f.Metadata != nil {
				return f.fail("", 8+dec.InputOffset(), "__metadata__ appears twice")
			}
			if err := dec.Decode(&f.Metadata); err != nil {
				return bad(err)
			}
			continue
		}
		var e struct {
			DType   string  `json:"dtype"`
			Shape   []int64 `json:"shape"`
			Offsets []int64 `json:"data_offsets"`
		}
		if err := dec.Decode(&e); err != nil {
			return f.fail(clip(name), 8+dec.InputOffset(), "bad header entry: %v", err)
		}
		if len(name) > MaxName {
			return f.fail(clip(name), 8+dec.InputOffset(), "name of %d bytes exceeds the limit of %d", len(name), MaxName)
		}
		if _, dup := f.byName[name]; dup {
			return f.fail(name, 8+dec.InputOffset(), "the name appears twice")
		}
		if len(f.Tensors) == MaxTensors {
			return f.fail("", 8+dec.InputOffset(), "more than %d tensors", MaxTensors)
		}
		if len(e.Offsets) != 2 || len(e.Shape) > MaxDims {
			return f.fail(name, 8+dec.InputOffset(), "data_offsets has %d numbers, shape has %d dimensions", len(e.Offsets), len(e.Shape))
		}
		t := Tensor{Name: name, DType: e.DType, Begin: e.Offsets[0], End: e.Offsets[1]}
		if t.Begin < 0 || t.End < t.Begin || t.End > f.size-f.data {
			return f.fail(name, 8+dec.InputOffset(), "data_offsets [%d, %d] lie outside the data section of %d bytes; the file is cut off or damaged", t.Begin, t.End, f.size-f.data)
		}
		count := int64(1)
		for _, d := range e.Shape {
			if d < 0 || d > math.MaxInt32 || d > 0 && count > math.MaxInt64/16/d {
				return f.fail(name, 8+dec.InputOffset(), "shape %v is not possible", e.Shape)
			}
			count *= d
			t.Shape = append(t.Shape, int(d))
		}
		if bits, ok := elementBits[t.DType]; ok && (count*int64(bits)+7)/8 != t.Size() {
			return f.fail(name, 8+dec.InputOffset(), "shape %v of %s needs %d bytes, data_offsets span %d", e.Shape, t.DType, (count*int64(bits)+7)/8, t.Size())
		}
		f.byName[name] = len(f.Tensors)
		f.Tensors = append(f.Tensors, t)
	}
	if _, err := dec.Token(); err != nil {
		return bad(err)
	}
	if rest := bytes.TrimRight(head[dec.InputOffset():], " "); len(rest) > 0 {
		return f.fail("", 8+dec.InputOffset(), "bytes after the header's closing brace")
	}
	return nil
}

// checkOffsets orders the tensors by data and demands that they tile the data
// section without gap or overlap, as the reference reader does.
func (f *File) checkOffsets() error {
	sort.SliceStable(f.Tensors, func(i, j int) bool {
		a, b := f.Tensors[i], f.Tensors[j]
		return a.Begin < b.Begin || a.Begin == b.Begin && a.End < b.End
	})
	var at int64
	for i, t := range f.Tensors {
		if t.Begin != at {
			return f.fail(t.Name, f.data+t.Begin, "data starts at %d, the tensor before ends at %d", t.Begin, at)
		}
		at = t.End
		f.byName[t.Name] = i
	}
	if at != f.size-f.data {
		return f.fail("", f.data+at, "%d bytes of data are described, %d are there", at, f.size-f.data)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// Reader returns the raw bytes of a tensor.
func (f *File) Reader(t *Tensor) *io.SectionReader {
	return io.NewSectionReader(f.f, f.data+t.Begin, t.Size())
}

// Readable says whether ReadRows can decode the element type.
func Readable(dt string) bool { return dt == "F32" || dt == "F16" || dt == "BF16" }

// ReadRows decodes rows [row0, row0+n) of t into dst, which holds at least
// n*t.Cols() numbers.
func (f *File) ReadRows(t *Tensor, row0, n int, dst []float32) error {
	if !Readable(t.DType) {
		return &UnsupportedError{f.Path, t.Name, t.DType}
	}
	if row0 < 0 || n < 0 || row0+n > t.Rows() || len(dst) < n*t.Cols() {
		return f.fail(t.Name, -1, "rows [%d, %d) of %d asked for, room for %d numbers", row0, row0+n, t.Rows(), len(dst))
	}
	w := elementBits[t.DType] / 8
	count := n * t.Cols()
	off := f.data + t.Begin + int64(row0)*int64(t.Cols())*int64(w)
	buf := make([]byte, count*w)
	if _, err := f.f.ReadAt(buf, off); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file became shorter while it was read")
		}
		return f.fail(t.Name, off, "%v", err)
	}
	Decode(t.DType, dst[:count], buf)
	return nil
}

// Decode turns little-endian elements of a readable type into float32.
func Decode(dt string, dst []float32, src []byte) {
	switch dt {
	case "F32":
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case "F16":
		dtype.DecodeF16(dst, src)
	case "BF16":
		dtype.DecodeBF16(dst, src)
	}
}

// Encode rounds float32 numbers (to nearest, ties to even) into little-endian
// elements of a readable type.
func Encode(dt string, dst []byte, src []float32) {
	switch dt {
	case "F32":
		for i, v := range src {
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
		}
	case "F16":
		dtype.EncodeF16(dst, src)
	case "BF16":
		dtype.EncodeBF16(dst, src)
	}
}

// ElementBytes returns the size of one element of a readable type, 0 for others.
func ElementBytes(dt string) int {
	if !Readable(dt) {
		return 0
	}
	return elementBits[dt] / 8
}
