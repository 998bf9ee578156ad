// Package safetensors reads and writes the safetensors container: one JSON
// header, then the tensors' bytes. Unknown element types stay opaque, so every
// tensor of a checkpoint can be copied; F64, F32, F16 and BF16 can be read as numbers,
// F64 rounded to float32.
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
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/placeholder"
)

// Limits on what a header may ask for.
const (
	MaxHeader  = 100_000_000 // bytes; the reference implementation's own limit
	MaxTensors = 1 << 20
	MaxDims    = 16
	MaxName    = 1 << 10 // bytes
	// MaxIndex bounds model.safetensors.index.json.
	MaxIndex = 100 << 20
	// MaxShards bounds how many files an index may name; all are kept open.
	MaxShards = 1 << 12
)

// metadataKey is the one key of a header that is not a tensor.
const metadataKey = "__metadata__"

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
		s += ": tensor " + printable(e.Tensor)
	}
	if e.Offset >= 0 {
		s += fmt.Sprintf(" (offset %d)", e.Offset)
	}
	return s + ": " + e.Msg
}

// Is says that the error is of kind format.ErrBroken.
func (e *FormatError) Is(kind error) bool { return kind == format.ErrBroken }

// An UnsupportedError names an element type that cannot be read as numbers.
type UnsupportedError struct {
	File, Tensor, DType string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: tensor %s has element type %s, which cannot be used for computing (F64, F32, F16 and BF16 can)",
		e.File, e.Tensor, e.DType)
}

// Is says that the error is of kind format.ErrUnsupported.
func (e *UnsupportedError) Is(kind error) bool { return kind == format.ErrUnsupported }

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
	h, _, err := format.OpenRegular(path)
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
	f.size = st.Size()
	var lead [8]byte
	if f.size < 8 {
		return f.fail("", 0, "file has %d bytes, a safetensors header needs at least 8; the file is cut off", f.size)
	}
	if _, err := f.f.ReadAt(lead[:], 0); err != nil {
		return f.fail("", 0, "cannot read the header length: %v", err)
	}
	n := binary.LittleEndian.Uint64(lead[:])
	if n > MaxHeader {
		if err := f.otherKind(lead[:]); err != nil {
			return err
		}
		return f.fail("", 0, "header length %d exceeds the limit of %d bytes; this is not a safetensors file", n,
			int64(MaxHeader))
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

// otherKind says what a file is that starts as no safetensors file can: with lead.
func (f *File) otherKind(lead []byte) error {
	head := make([]byte, min(f.size, placeholder.Head))
	if _, err := f.f.ReadAt(head, 0); err != nil {
		return f.fail("", 0, "cannot read the file: %v", err)
	}
	if err := placeholder.Check(f.Path, head); err != nil {
		return err
	}
	switch {
	case string(lead[:4]) == "GGUF":
		return f.fail("", 0, "this is a GGUF file, not a safetensors file")
	case string(lead[:4]) == "PK\x03\x04" || lead[0] == 0x80 && lead[1] <= 5: // zip, pickle
		return f.fail("", 0, "this is a PyTorch file, not a safetensors file; convert it with safetensors.torch.save_file")
	}
	return nil
}

// parseHeader walks the JSON by tokens. Decoding into maps and structs would
// hide a name that appears twice and would take "DTYPE" for "dtype", so that two
// readers could see two different files in the same bytes.
func (f *File) parseHeader(head []byte) error {
	if len(head) == 0 || head[0] != '{' {
		return f.fail("", 8, "header does not start with {; this is not a safetensors file")
	}
	if !utf8.Valid(head) {
		return f.fail("", 8, "header is not valid UTF-8")
	}
	p := &headerParser{f: f, dec: json.NewDecoder(bytes.NewReader(head)),
		replacement: bytes.Contains(head, []byte("\uFFFD"))}
	p.dec.UseNumber()
	f.byName = map[string]int{}
	if err := p.object("", p.member); err != nil {
		return err
	}
	if rest := bytes.TrimRight(head[p.dec.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return p.fail("", "bytes after the header's closing brace")
	}
	return nil
}

// headerParser reads the header of f.
type headerParser struct {
	f   *File
	dec *json.Decoder
	// replacement: the header itself contains U+FFFD, which the decoder otherwise
	// puts where an escape is half of a surrogate pair.
	replacement bool
	metadata    bool // __metadata__ was there
}

func (p *headerParser) fail(tensor, format string, args ...any) error {
	return p.f.fail(clip(tensor), 8+p.dec.InputOffset(), format, args...)
}

// token returns the next token, which is of type T or in error.
func token[T json.Delim | string | json.Number](p *headerParser, tensor, what string) (v T, err error) {
	t, err := p.dec.Token()
	if err != nil {
		return v, p.fail(tensor, "header is not valid JSON: %v", err)
	}
	v, ok := t.(T)
	if !ok {
		return v, p.fail(tensor, "%s expected, found %v", what, t)
	}
	if s, ok := t.(string); ok && !p.replacement && strings.ContainsRune(s, utf8.RuneError) {
		return v, p.fail(tensor, "a text is not valid Unicode")
	}
	return v, nil
}

// object reads an object; member is called with each key and reads its value.
func (p *headerParser) object(tensor string, member func(key string) error) error {
	if t, err := token[json.Delim](p, tensor, "{"); err != nil {
		return err
	} else if t != '{' {
		return p.fail(tensor, "{ expected, found %v", t)
	}
	return p.members(tensor, member)
}

// members reads an object after its opening brace.
func (p *headerParser) members(tensor string, member func(key string) error) error {
	for p.dec.More() {
		key, err := token[string](p, tensor, "a key")
		if err != nil {
			return err
		}
		if err := member(key); err != nil {
			return err
		}
	}
	_, err := token[json.Delim](p, tensor, "}")
	return err
}

// member reads one entry of the header: a tensor or the metadata.
func (p *headerParser) member(name string) error {
	f := p.f
	if name == metadataKey {
		return p.readMetadata()
	}
	if len(name) > MaxName {
		return p.fail(name, "name of %d bytes exceeds the limit of %d", len(name), MaxName)
	}
	if _, dup := f.byName[name]; dup {
		return p.fail(name, "the name appears twice")
	}
	if len(f.Tensors) == MaxTensors {
		return p.fail("", "more than %d tensors", MaxTensors)
	}
	t := Tensor{Name: name}
	var offsets []int64
	seen := map[string]bool{}
	err := p.object(name, func(key string) (err error) {
		if seen[key] {
			return p.fail(name, "%q appears twice", key)
		}
		switch key {
		case "dtype":
			t.DType, err = token[string](p, name, "an element type")
		case "shape":
			var dims []int64
			if dims, err = p.numbers(name, key, MaxDims); err != nil {
				return err
			}
			for _, d := range dims {
				if d > math.MaxInt32 {
					return p.fail(name, "shape %v is not possible", dims)
				}
				t.Shape = append(t.Shape, int(d))
			}
		case "data_offsets":
			offsets, err = p.numbers(name, key, 2)
		default: // other readers ignore what they do not know, too
			var skip json.RawMessage
			if e := p.dec.Decode(&skip); e != nil {
				err = p.fail(name, "header is not valid JSON: %v", e)
			}
			return err
		}
		seen[key] = true
		return err
	})
	if err != nil {
		return err
	}
	for _, key := range []string{"dtype", "shape", "data_offsets"} {
		if !seen[key] {
			return p.fail(name, "%s is missing", key)
		}
	}
	if len(offsets) != 2 {
		return p.fail(name, "data_offsets has %d numbers, not 2", len(offsets))
	}
	t.Begin, t.End = offsets[0], offsets[1]
	if t.End < t.Begin || t.End > f.size-f.data {
		return p.fail(name, "data_offsets [%d, %d] lie outside the data section of %d bytes; the file is cut off or damaged",
			t.Begin, t.End, f.size-f.data)
	}
	size, err := storedSize(&t)
	if err != nil {
		return p.fail(name, "%v", err)
	}
	if size != t.Size() {
		return p.fail(name, "shape %v of %s needs %d bytes, data_offsets span %d", t.Shape, t.DType, size, t.Size())
	}
	f.byName[name] = len(f.Tensors)
	f.Tensors = append(f.Tensors, t)
	return nil
}

// numbers reads a list of at most limit counts.
func (p *headerParser) numbers(tensor, key string, limit int) ([]int64, error) {
	if t, err := token[json.Delim](p, tensor, "["); err != nil {
		return nil, err
	} else if t != '[' {
		return nil, p.fail(tensor, "%s: [ expected, found %v", key, t)
	}
	out := []int64{}
	for p.dec.More() {
		n, err := token[json.Number](p, tensor, "a number")
		if err != nil {
			return nil, err
		}
		// 2^63 and more exceed every file; signs and fractions are no counts.
		v, err := strconv.ParseUint(n.String(), 10, 63)
		if err != nil {
			return nil, p.fail(tensor, "%s holds %s, expected a count", key, clip(n.String()))
		}
		if len(out) == limit {
			return nil, p.fail(tensor, "%s has more than %d numbers", key, limit)
		}
		out = append(out, int64(v))
	}
	_, err := token[json.Delim](p, tensor, "]")
	return out, err
}

func (p *headerParser) readMetadata() error {
	if p.metadata {
		return p.fail("", "%s appears twice", metadataKey)
	}
	p.metadata = true
	switch t, err := p.dec.Token(); {
	case err != nil:
		return p.fail("", "header is not valid JSON: %v", err)
	case t == nil: // null: the reference reader takes it for none
		return nil
	case t != json.Delim('{'):
		return p.fail("", "{ expected, found %v", t)
	}
	p.f.Metadata = map[string]string{}
	return p.members("", func(key string) (err error) {
		p.f.Metadata[key], err = token[string](p, "", metadataKey+" may hold only texts; a text")
		return err
	})
}

// storedSize returns the bytes that a tensor's shape and type need; for types
// that are not known, those it has.
func storedSize(t *Tensor) (int64, error) {
	count := int64(1)
	for _, d := range t.Shape {
		// Leave room for the largest element, 64 bits, in the product.
		if d < 0 || d > 0 && count > math.MaxInt64/64/int64(d) {
			return 0, fmt.Errorf("shape %v is not possible", t.Shape)
		}
		count *= int64(d)
	}
	bits, ok := elementBits[t.DType]
	if !ok {
		return t.Size(), nil
	}
	if count*int64(bits)%8 != 0 {
		return 0, fmt.Errorf("shape %v of %s does not fill whole bytes", t.Shape, t.DType)
	}
	return count * int64(bits) / 8, nil
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

// clip shortens a text from a file for a message.
func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}

// printable quotes a name that could move the cursor of a terminal.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// Reader returns the raw bytes of a tensor.
func (f *File) Reader(t *Tensor) *io.SectionReader {
	return io.NewSectionReader(f.f, f.data+t.Begin, t.Size())
}

// Readable says whether ReadRows can decode the element type.
func Readable(dt string) bool { return dt == "F32" || dt == "F16" || dt == "BF16" || dt == "F64" }

// ReadRows decodes rows [row0, row0+n) of t into dst, which holds at least
// n*t.Cols() numbers.
func (f *File) ReadRows(t *Tensor, row0, n int, dst []float32) error {
	if !Readable(t.DType) {
		return &UnsupportedError{f.Path, t.Name, t.DType}
	}
	if row0 < 0 || n < 0 || n > t.Rows()-row0 || len(dst) < n*t.Cols() {
		return f.fail(t.Name, -1, "%d rows from %d on of %d asked for, room for %d numbers", n, row0, t.Rows(), len(dst))
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
	if t.DType == "F64" {
		for i, v := range dst[:count] {
			x := math.Float64frombits(binary.LittleEndian.Uint64(buf[8*i:]))
			if math.IsInf(float64(v), 0) && !math.IsInf(x, 0) {
				return f.fail(t.Name, off+int64(8*i),
					"%g is more than float32, which everything is computed with, can hold", x)
			}
		}
	}
	return nil
}

// Decode turns little-endian elements of a readable type into float32; F64 is rounded
// to nearest, ties to even.
func Decode(dt string, dst []float32, src []byte) {
	switch dt {
	case "F64":
		for i := range dst {
			dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	case "F32":
		dtype.DecodeF32(dst, src)
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
	case "F64":
		for i, v := range src {
			binary.LittleEndian.PutUint64(dst[8*i:], math.Float64bits(float64(v)))
		}
	case "F32":
		dtype.EncodeF32(dst, src)
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
