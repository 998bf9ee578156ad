package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/placeholder"
)

// A Tensor describes one tensor of a file.
type Tensor struct {
	Name string
	Type Type
	// Dims are the dimensions in ggml order: Dims[0] is the length of a row, the
	// innermost dimension. A scalar has none. All are at least 1.
	Dims []int
	// Offset is where the data starts, counted from the start of its file.
	Offset int64
	// Size is the size of the data in bytes, without padding.
	Size int64
	// Shard is the index of the file of a split that holds the data.
	Shard int

	src io.ReaderAt // the file that holds the data
}

// Shape returns the dimensions in row-major order, outermost first, as numpy and
// safetensors give them.
func (t *Tensor) Shape() []int {
	s := slices.Clone(t.Dims)
	slices.Reverse(s)
	return s
}

// RowLen returns how many numbers a row has, Dims[0].
func (t *Tensor) RowLen() int {
	if len(t.Dims) == 0 {
		return 1
	}
	return t.Dims[0]
}

// Rows returns how many rows there are, the product of the outer dimensions.
func (t *Tensor) Rows() int {
	n := 1
	for _, d := range t.Dims[min(1, len(t.Dims)):] {
		n *= d
	}
	return n
}

// Elements returns how many numbers there are.
func (t *Tensor) Elements() int { return t.RowLen() * t.Rows() }

// Spec returns what a Writer needs to write a tensor of the same kind.
func (t *Tensor) Spec() TensorSpec {
	return TensorSpec{Name: t.Name, Type: t.Type, Dims: slices.Clone(t.Dims)}
}

// A File is an open GGUF file or split. Its fields are for reading only. All
// methods but Close may be called by any number of goroutines at once.
type File struct {
	// Path is what the file was opened as: of a split, the shard given to Open.
	Path string
	// Version is the format version, 2 or 3.
	Version uint32
	// Alignment is that of the tensor data, from general.alignment.
	Alignment int
	// KVs is the metadata in file order. Of a split it is that of the first shard
	// without the keys that describe the split.
	KVs []KV
	// Tensors are in file order, those of later shards after those of earlier ones.
	Tensors []Tensor
	// Shards is the number of files, 1 unless this is a split.
	Shards int

	kvIndex     map[string]int
	tensorIndex map[string]int
	closers     []io.Closer
}

// Open reads the header of a GGUF file. If the file is one of a split, the whole
// split is opened as one File; see OpenShard for one file of it.
//
// Broken files give a *FormatError, valid files that this package cannot handle
// (version 1, big-endian, unknown tensor types) an *UnsupportedError.
func Open(path string) (*File, error) {
	f, err := OpenShard(path)
	if err != nil {
		return nil, err
	}
	n, err := f.splitCount()
	if err == nil && n > 1 {
		f.Close()
		return openSplit(path, n)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// OpenShard reads the header of the one file that path names, whether or not it
// belongs to a split.
func OpenShard(path string) (*File, error) {
	osFile, info, err := format.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	f, err := NewFile(osFile, info.Size(), path)
	if err != nil {
		osFile.Close()
		return nil, err
	}
	f.closers = append(f.closers, osFile)
	return f, nil
}

// HasMagic says whether a file begins as GGUF files do. It fails if the file cannot be read,
// or is not a regular one.
func HasMagic(path string) (bool, error) {
	f, _, err := format.OpenRegular(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var lead [len(magic)]byte
	n, err := f.ReadAt(lead[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return string(lead[:n]) == magic, nil
}

// NewFile reads the header of a GGUF file of the given size from r; name is used
// in errors. Splits are not followed. r is used until the File is no longer, and
// must allow concurrent ReadAt calls if the File is used concurrently.
func NewFile(r io.ReaderAt, size int64, name string) (*File, error) {
	if size < 0 || size > math.MaxInt64-MaxAlignment { // so that positions cannot overflow
		return nil, &FormatError{File: name, Offset: -1, Msg: fmt.Sprintf("impossible file size %d", size)}
	}
	f := &File{Path: name, Shards: 1, Alignment: DefaultAlignment,
		kvIndex: map[string]int{}, tensorIndex: map[string]int{}}
	c := &cursor{r: r, size: size, file: name}
	if err := f.parse(c); err != nil {
		return nil, err
	}
	return f, nil
}

// Close closes the files that Open opened. Readers of tensors fail afterwards.
func (f *File) Close() error {
	var errs []error
	for _, c := range f.closers {
		errs = append(errs, c.Close())
	}
	f.closers = nil
	return errors.Join(errs...)
}

// Tensor returns the tensor of the given name.
func (f *File) Tensor(name string) (*Tensor, bool) {
	i, ok := f.tensorIndex[name]
	if !ok {
		return nil, false
	}
	return &f.Tensors[i], true
}

// Reader returns a reader over the stored bytes of t, a tensor of f. Readers are
// independent of each other.
func (f *File) Reader(t *Tensor) *io.SectionReader {
	if t.src == nil { // a Tensor that is not from a File
		return io.NewSectionReader(emptyReaderAt{}, 0, 0)
	}
	return io.NewSectionReader(t.src, t.Offset, t.Size)
}

type emptyReaderAt struct{}

func (emptyReaderAt) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

const magic = "GGUF"

func (f *File) parse(c *cursor) error {
	b, err := c.take(4, "the magic")
	if err != nil {
		return err
	}
	if string(b) != magic {
		if err := c.notGGUF(); err != nil {
			return err
		}
		return c.failAt(0, "", "", "not a GGUF file: it starts with %q instead of %q", b, magic)
	}
	if f.Version, err = c.uint32("the version"); err != nil {
		return err
	}
	// Version 3 of the other byte order reads as 0x03000000.
	if f.Version != 0 && f.Version&0xffff == 0 {
		return &UnsupportedError{File: c.file,
			Msg: "the file is big-endian, which is not supported; convert it with gguf-py's gguf_convert_endian.py"}
	}
	if f.Version != 2 && f.Version != 3 {
		return &UnsupportedError{File: c.file,
			Msg: fmt.Sprintf("GGUF version %d is not supported, only 2 and 3; convert the model again with a current llama.cpp",
				f.Version)}
	}
	// The smallest tensor description is a name of one byte without dimensions,
	// the smallest pair a key of one byte with a value of one.
	tensors, err := c.count("tensors", MaxTensors, 8+1+4+4+8)
	if err != nil {
		return err
	}
	kvs, err := c.count("key-value pairs", MaxKVs, 8+1+4+1)
	if err != nil {
		return err
	}
	f.KVs = make([]KV, 0, kvs)
	for range kvs {
		if err := f.parseKV(c); err != nil {
			return err
		}
	}
	if err := f.setAlignment(); err != nil {
		return err
	}
	f.Tensors = make([]Tensor, 0, tensors)
	for range tensors {
		if err := f.parseTensor(c); err != nil {
			return err
		}
	}
	return f.placeTensors(c)
}

// notGGUF says what a file is that lacks the magic, if that can be told.
func (c *cursor) notGGUF() error {
	head := make([]byte, min(c.size, placeholder.Head))
	if _, err := c.r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return c.failAt(0, "", "", "cannot read the file: %v", err)
	}
	return placeholder.Check(c.file, head)
}

func (f *File) parseKV(c *cursor) error {
	at := c.off
	key, err := c.string("a key", MaxKeyLength)
	if err != nil {
		return err
	}
	if err := checkName("key", key, MaxKeyLength); err != nil {
		return c.failAt(at, "", "", "%v", err)
	}
	if _, dup := f.kvIndex[key]; dup {
		return c.failAt(at, key, "", "the key occurs twice")
	}
	c.key = key
	kind, err := c.uint32("the kind of the value")
	if err != nil {
		return err
	}
	raw, err := c.value(Kind(kind), nil, 0)
	if err != nil {
		return err
	}
	c.key = ""
	f.kvIndex[key] = len(f.KVs)
	f.KVs = append(f.KVs, KV{Key: key, kind: Kind(kind), raw: raw})
	return nil
}

func (f *File) setAlignment() error {
	a, err := alignment(f.KVs)
	if err != nil {
		return &FormatError{File: f.Path, Key: KeyAlignment, Offset: -1, Msg: err.Error()}
	}
	f.Alignment = a
	return nil
}

// KeyAlignment is the key for the alignment of tensor data.
const KeyAlignment = "general.alignment"

// alignment finds the alignment that metadata asks for.
func alignment(kvs []KV) (int, error) {
	for _, kv := range kvs {
		if kv.Key != KeyAlignment {
			continue
		}
		a, ok := kv.Value().(uint32)
		if !ok {
			return 0, fmt.Errorf("the value is %s, expected uint32", kv.kind)
		}
		if bits.OnesCount32(a) != 1 || a > MaxAlignment {
			return 0, fmt.Errorf("the value is %d, expected a power of two up to %d", a, MaxAlignment)
		}
		return int(a), nil
	}
	return DefaultAlignment, nil
}

// parseTensor reads one description. Offset is left relative to the data section.
func (f *File) parseTensor(c *cursor) error {
	at := c.off
	name, err := c.string("a tensor name", MaxTensorName)
	if err != nil {
		return err
	}
	if err := checkName("tensor name", name, MaxTensorName); err != nil {
		return c.failAt(at, "", "", "%v", err)
	}
	if _, dup := f.tensorIndex[name]; dup {
		return c.failAt(at, "", name, "the tensor occurs twice")
	}
	c.tensor = name
	nDims, err := c.uint32("the number of dimensions")
	if err != nil {
		return err
	}
	if nDims > MaxDims {
		return c.failAt(c.off-4, "", name, "%d dimensions, at most %d are allowed", nDims, MaxDims)
	}
	dims := make([]int, nDims)
	for i := range dims {
		d, err := c.uint64("a dimension")
		if err != nil {
			return err
		}
		if d == 0 || d > math.MaxInt {
			return c.failAt(c.off-8, "", name, "dimension %d is %d", i, d)
		}
		dims[i] = int(d)
	}
	id, err := c.uint32("the type")
	if err != nil {
		return err
	}
	offset, err := c.uint64("the offset")
	if err != nil {
		return err
	}
	if !Type(id).Known() {
		return &UnsupportedError{File: c.file, Tensor: name, Msg: unknownType(Type(id))}
	}
	size, err := tensorSize(Type(id), dims)
	if err != nil {
		return c.failAt(at, "", name, "%v", err)
	}
	if offset > uint64(c.size) {
		return c.failAt(c.off-8, "", name, "the data offset %d lies outside the file", offset)
	}
	if offset%uint64(f.Alignment) != 0 {
		return c.failAt(c.off-8, "", name, "the data offset %d is no multiple of the alignment %d", offset, f.Alignment)
	}
	c.tensor = ""
	f.tensorIndex[name] = len(f.Tensors)
	f.Tensors = append(f.Tensors, Tensor{Name: name, Type: Type(id), Dims: dims,
		Offset: int64(offset), Size: size, src: c.r})
	return nil
}

// tensorSize returns the stored size of a tensor whose dimensions are at least 1.
func tensorSize(t Type, dims []int) (int64, error) {
	n := 1
	for i := len(dims) - 1; i >= 0; i-- {
		if n > math.MaxInt/dims[i] {
			return 0, fmt.Errorf("the shape %v has too many elements", dims)
		}
		n *= dims[i]
	}
	row := 1
	if len(dims) > 0 {
		row = dims[0]
	}
	if _, err := RowBytes(t, row); err != nil { // rows are whole blocks
		return 0, err
	}
	size, err := RowBytes(t, n)
	return int64(size), err
}

// placeTensors turns offsets into file positions and checks that the data lies
// inside the file and that no two tensors share a byte.
func (f *File) placeTensors(c *cursor) error {
	start := align(c.off, f.Alignment)
	room := c.size - start // negative if even the padding is missing
	order := make([]*Tensor, len(f.Tensors))
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if t.Offset > room || t.Size > room-t.Offset {
			return &FormatError{File: c.file, Tensor: t.Name, Offset: -1,
				Msg: fmt.Sprintf("the data takes %d bytes from %d on after the header, but the file has only %d bytes; it may be cut short", t.Size, t.Offset, c.size)}
		}
		t.Offset += start
		order[i] = t
	}
	slices.SortFunc(order, func(a, b *Tensor) int {
		return int(min(max(a.Offset-b.Offset, -1), 1))
	})
	for i := 1; i < len(order); i++ {
		if a, b := order[i-1], order[i]; a.Offset+a.Size > b.Offset {
			return &FormatError{File: c.file, Tensor: b.Name, Offset: b.Offset,
				Msg: fmt.Sprintf("the data overlaps that of tensor %q", a.Name)}
		}
	}
	return nil
}

// align rounds n up to a multiple of a, a power of two.
func align(n int64, a int) int64 { return (n + int64(a) - 1) &^ (int64(a) - 1) }

// A cursor reads a header front to back. Nothing is allocated for a claimed
// length before the file is known to hold it.
type cursor struct {
	r    io.ReaderAt
	size int64
	off  int64 // position of the next unread byte
	file string
	// What is being read, for errors.
	key, tensor string

	buf []byte // file bytes from bufOff on
	// bufOff is the file position of buf[0].
	bufOff int64
}

// window is how much is read ahead; longer values are read in one piece.
const window = 1 << 16

func (c *cursor) fail(format string, args ...any) error {
	return c.failAt(c.off, c.key, c.tensor, format, args...)
}

func (c *cursor) failAt(off int64, key, tensor, format string, args ...any) error {
	return &FormatError{File: c.file, Key: key, Tensor: tensor, Offset: off, Msg: fmt.Sprintf(format, args...)}
}

// left is how many bytes of the file are unread.
func (c *cursor) left() uint64 { return uint64(c.size - c.off) }

// take returns the next n bytes, at most window; they are valid until the next call.
func (c *cursor) take(n int, what string) ([]byte, error) {
	if uint64(n) > c.left() {
		return nil, c.fail("the file ends inside %s", what)
	}
	at := int(c.off - c.bufOff)
	if at+n > len(c.buf) {
		if c.buf == nil {
			c.buf = make([]byte, 0, min(window, c.size))
		}
		c.buf = c.buf[:min(int64(cap(c.buf)), c.size-c.off)]
		c.bufOff, at = c.off, 0
		if err := c.readAt(c.buf, c.off); err != nil {
			c.buf = c.buf[:0]
			return nil, err
		}
	}
	c.off += int64(n)
	return c.buf[at : at+n : at+n], nil
}

// readAt fills b from position off.
func (c *cursor) readAt(b []byte, off int64) error {
	n, err := c.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than it was when opened
	}
	return &FormatError{File: c.file, Key: c.key, Tensor: c.tensor, Offset: off + int64(n), Msg: "read failed", Err: err}
}

// appendN appends the next n bytes to b; n has been checked against left.
func (c *cursor) appendN(b []byte, n int, what string) ([]byte, error) {
	if n <= window {
		p, err := c.take(n, what)
		return append(b, p...), err
	}
	at := len(b)
	b = slices.Grow(b, n)[:at+n]
	if err := c.readAt(b[at:], c.off); err != nil {
		return nil, err
	}
	c.off += int64(n)
	c.buf, c.bufOff = c.buf[:0], c.off
	return b, nil
}

func (c *cursor) uint32(what string) (uint32, error) {
	b, err := c.take(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (c *cursor) uint64(what string) (uint64, error) {
	b, err := c.take(8, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// count reads a number of things that take at least minSize bytes each.
func (c *cursor) count(what string, limit, minSize uint64) (int, error) {
	n, err := c.uint64("the number of " + what)
	if err != nil {
		return 0, err
	}
	if n > limit {
		return 0, c.failAt(c.off-8, c.key, "", "%d %s, at most %d are allowed", n, what, limit)
	}
	if n > c.left()/minSize {
		return 0, c.failAt(c.off-8, c.key, "", "%d %s do not fit into the %d bytes left in the file", n, what, c.left())
	}
	return int(n), nil
}

// string reads a key or name of at most limit bytes, which is at most window.
func (c *cursor) string(what string, limit uint64) (string, error) {
	n, err := c.uint64("the length of " + what)
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", c.failAt(c.off-8, c.key, c.tensor, "%s of %d bytes, at most %d are allowed", what, n, limit)
	}
	b, err := c.take(int(n), what)
	return string(b), err
}

// value appends the encoding of a value of kind k to raw.
func (c *cursor) value(k Kind, raw []byte, depth int) ([]byte, error) {
	switch {
	case k >= numKinds:
		return nil, c.fail("the value has kind %d, which GGUF does not have", uint32(k))
	case k == KindString:
		return c.stringValue(raw)
	case k != KindArray:
		return c.scalars(k, 1, raw)
	case depth == MaxArrayDepth:
		return nil, c.fail("arrays are nested more than %d deep", MaxArrayDepth)
	}
	id, err := c.uint32("an array's element kind")
	if err != nil {
		return nil, err
	}
	elem := Kind(id)
	if elem >= numKinds {
		return nil, c.failAt(c.off-4, c.key, "", "the array's elements have kind %d, which GGUF does not have", id)
	}
	minSize := kindSize[elem]
	switch elem {
	case KindString:
		minSize = 8
	case KindArray:
		minSize = 12
	}
	n, err := c.count("array elements", MaxArrayLength, uint64(minSize))
	if err != nil {
		return nil, err
	}
	raw = binary.LittleEndian.AppendUint32(raw, id)
	raw = binary.LittleEndian.AppendUint64(raw, uint64(n))
	switch elem {
	case KindString:
		for range n {
			if raw, err = c.stringValue(raw); err != nil {
				return nil, err
			}
		}
		return raw, nil
	case KindArray:
		for range n {
			if raw, err = c.value(KindArray, raw, depth+1); err != nil {
				return nil, err
			}
		}
		return raw, nil
	}
	return c.scalars(elem, n, raw)
}

func (c *cursor) stringValue(raw []byte) ([]byte, error) {
	n, err := c.count("bytes of a string", MaxStringLength, 1)
	if err != nil {
		return nil, err
	}
	raw = binary.LittleEndian.AppendUint64(raw, uint64(n))
	return c.appendN(raw, n, "a string")
}

// scalars appends n values of a kind of fixed size.
func (c *cursor) scalars(k Kind, n int, raw []byte) ([]byte, error) {
	size := uint64(n) * uint64(kindSize[k])
	if size > c.left() || size > math.MaxInt {
		return nil, c.fail("the file ends inside a value of %d bytes", size)
	}
	at, pos := len(raw), c.off
	raw, err := c.appendN(raw, int(size), "a value")
	if err != nil {
		return nil, err
	}
	if k == KindBool {
		for i, b := range raw[at:] {
			if b > 1 {
				return nil, c.failAt(pos+int64(i), c.key, "", "a bool has the value %d", b)
			}
		}
	}
	return raw, nil
}
