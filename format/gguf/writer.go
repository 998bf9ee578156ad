package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/phaseconv/phaseconv/format/atomicfile"
)

// A TensorSpec describes a tensor that is to be written.
type TensorSpec struct {
	Name string
	Type Type
	// Dims are in ggml order, innermost first: reverse the shape of numpy or
	// safetensors. At most MaxDims, all at least 1; none for a scalar.
	Dims []int
}

// A Writer writes one GGUF file of version 3, tensor after tensor. The file
// appears under its name at Commit, complete and synced, or not at all. A Writer
// is not safe for concurrent use.
type Writer struct {
	out     *atomicfile.File
	tensors []plannedTensor
	next    int // index of the tensor to be written next
	align   int
	size    int64
	err     error // the first failure; nothing can be written after it
	done    bool  // committed or aborted
	sealed  bool  // committed
}

type plannedTensor struct {
	name string
	size int64
	end  int64 // position in the file behind the data and its padding
}

// Create starts writing path with the given metadata and tensors, in these
// orders, and writes the header. Pairs come from Value, Array or a File that was
// read. The data is aligned to general.alignment if kv has it, to 32 otherwise.
//
// It refuses what readers would refuse: names and keys that are empty, occur
// twice, are too long or not UTF-8, bad shapes, and unknown types
// (*UnsupportedError). No file is created then.
func Create(path string, kv []KV, tensors []TensorSpec) (*Writer, error) {
	w := &Writer{}
	header, err := w.plan(path, kv, tensors)
	if err != nil {
		return nil, err
	}
	if w.out, err = atomicfile.Create(path); err != nil {
		return nil, err
	}
	if _, err := w.write(header); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// plan checks everything, lays out the file and returns its header with the
// padding up to the first tensor.
func (w *Writer) plan(path string, kvs []KV, tensors []TensorSpec) ([]byte, error) {
	if len(kvs) > MaxKVs || len(tensors) > MaxTensors {
		return nil, &FormatError{File: path, Offset: -1,
			Msg: fmt.Sprintf("%d key-value pairs and %d tensors, at most %d and %d are allowed", len(kvs), len(tensors), MaxKVs,
				MaxTensors)}
	}
	le := binary.LittleEndian
	b := le.AppendUint32([]byte(magic), 3)
	b = le.AppendUint64(b, uint64(len(tensors)))
	b = le.AppendUint64(b, uint64(len(kvs)))
	seen := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		fail := func(format string, args ...any) error {
			return &FormatError{File: path, Key: kv.Key, Offset: -1, Msg: fmt.Sprintf(format, args...)}
		}
		switch err := checkName("key", kv.Key, MaxKeyLength); {
		case err != nil:
			return nil, fail("%v", err)
		case seen[kv.Key]:
			return nil, fail("the key occurs twice")
		case !kv.complete():
			return nil, fail("the pair has no value; make it with Value or Array")
		case kv.kind == KindString && len(kv.raw)-8 > MaxStringLength, kv.kind == KindArray && kv.Len() > MaxArrayLength:
			return nil, fail("the value is longer than readers accept")
		}
		seen[kv.Key] = true
		b = le.AppendUint64(b, uint64(len(kv.Key)))
		b = append(b, kv.Key...)
		b = le.AppendUint32(b, uint32(kv.kind))
		b = append(b, kv.raw...)
	}
	var err error
	if w.align, err = alignment(kvs); err != nil {
		return nil, &FormatError{File: path, Key: KeyAlignment, Offset: -1, Msg: err.Error()}
	}
	clear(seen)
	var offset int64 // in the data section
	for _, t := range tensors {
		size, err := t.check()
		var unsupported *UnsupportedError
		switch {
		case errors.As(err, &unsupported):
			return nil, &UnsupportedError{File: path, Tensor: t.Name, Msg: unsupported.Msg}
		case err != nil:
			return nil, &FormatError{File: path, Tensor: t.Name, Offset: -1, Err: err}
		case seen[t.Name]:
			return nil, &FormatError{File: path, Tensor: t.Name, Offset: -1, Msg: "the tensor occurs twice"}
		case size > math.MaxInt64/2-offset:
			return nil, &FormatError{File: path, Tensor: t.Name, Offset: -1, Msg: "the file would be too large"}
		}
		seen[t.Name] = true
		b = le.AppendUint64(b, uint64(len(t.Name)))
		b = append(b, t.Name...)
		b = le.AppendUint32(b, uint32(len(t.Dims)))
		for _, d := range t.Dims {
			b = le.AppendUint64(b, uint64(d))
		}
		b = le.AppendUint32(b, uint32(t.Type))
		b = le.AppendUint64(b, uint64(offset))
		offset = align(offset+size, w.align)
		w.tensors = append(w.tensors, plannedTensor{t.Name, size, offset})
	}
	start := align(int64(len(b)), w.align)
	b = append(b, make([]byte, start-int64(len(b)))...)
	for i := range w.tensors {
		w.tensors[i].end += start
	}
	w.size = start + offset
	return b, nil
}

// check returns the stored size of the tensor that t describes.
func (t TensorSpec) check() (int64, error) {
	if err := checkName("tensor name", t.Name, MaxTensorNameWritten); err != nil {
		return 0, err
	}
	if len(t.Dims) > MaxDims {
		return 0, fmt.Errorf("%d dimensions, at most %d are allowed", len(t.Dims), MaxDims)
	}
	for _, d := range t.Dims {
		if d < 1 {
			return 0, fmt.Errorf("the shape %v has a dimension below 1", t.Dims)
		}
	}
	if t.Type.CacheOnly() {
		return 0, &UnsupportedError{Msg: fmt.Sprintf("%s is a type of caches, not of files", t.Type)}
	}
	return tensorSize(t.Type, t.Dims)
}

// Size returns how large the file will be, for a check of the free space or a
// progress display.
func (w *Writer) Size() int64 { return w.size }

// WriteTensor writes the data of the next tensor, which must have the given name:
// tensors come in the order of Create. fn gets a writer and must give it exactly
// the stored size of the tensor. After an error only Abort is of use.
func (w *Writer) WriteTensor(name string, fn func(io.Writer) error) error {
	switch {
	case w.err != nil:
		return w.err
	case w.done:
		return w.fail(name, "the writer was committed or aborted before", nil)
	case w.next == len(w.tensors):
		return w.fail(name, "all tensors have been written", nil)
	case w.tensors[w.next].name != name:
		return w.fail(name, fmt.Sprintf("tensor %q is to be written next", w.tensors[w.next].name), nil)
	}
	t := &w.tensors[w.next]
	tw := &tensorWriter{w: w, left: t.size}
	err := fn(tw)
	switch {
	case w.err != nil: // writing failed, whatever fn made of that
		return w.err
	case err != nil:
		return w.fail(name, "", err)
	case tw.over:
		return w.fail(name, fmt.Sprintf("more than the %d bytes of its shape were written", t.size), nil)
	case tw.left > 0:
		return w.fail(name, fmt.Sprintf("%d bytes were written, its shape has %d", t.size-tw.left, t.size), nil)
	}
	for pad := t.end - w.out.Offset(); pad > 0; {
		n, err := w.write(zeros[:min(pad, int64(len(zeros)))])
		if err != nil {
			return err
		}
		pad -= int64(n)
	}
	w.next++
	return nil
}

var zeros [4096]byte

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

// CopyTensor writes the next tensor by copying the stored bytes of t, a tensor of
// f. Its name and size must be those of the specification.
func (w *Writer) CopyTensor(f *File, t *Tensor) error {
	return w.WriteTensor(t.Name, func(out io.Writer) error {
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		_, err := io.CopyBuffer(out, f.Reader(t), *buf)
		if err != nil {
			return fmt.Errorf("copying from %s: %w", f.Path, err)
		}
		return nil
	})
}

// tensorWriter takes the bytes of one tensor and no more, so one that outlives
// its tensor cannot reach the next.
type tensorWriter struct {
	w    *Writer
	left int64
	over bool
}

func (t *tensorWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > t.left {
		t.over = true
		return 0, fmt.Errorf("gguf: %d bytes more than the tensor holds", int64(len(p))-t.left)
	}
	n, err := t.w.write(p)
	t.left -= int64(n)
	return n, err
}

// write sends p to the file.
func (w *Writer) write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

func (w *Writer) fail(tensor, msg string, err error) error {
	w.err = &FormatError{File: w.out.Path(), Tensor: tensor, Offset: -1, Msg: msg, Err: err}
	return w.err
}

// Commit finishes the file and gives it its name. If a tensor is missing or
// anything failed before, it returns an error and leaves no file.
func (w *Writer) Commit() error {
	if w.err == nil && w.next < len(w.tensors) {
		_ = w.fail(w.tensors[w.next].name, "the tensor was not written", nil)
	}
	if w.err == nil && w.done {
		return w.fail("", "the writer was committed or aborted before", nil)
	}
	if w.err != nil {
		w.Abort()
		return w.err
	}
	w.done = true
	if err := w.out.Commit(); err != nil {
		w.err = err
		return err
	}
	w.sealed = true
	return nil
}

// Abort removes what was written. It does nothing after Commit, so it can be deferred.
func (w *Writer) Abort() {
	if !w.done {
		w.done = true
		w.out.Abort()
	}
}

// SHA256 returns the digest of the whole file in hex, without reading it again. It fails
// before Commit and after a failure.
func (w *Writer) SHA256() (string, error) {
	switch {
	case w.err != nil:
		return "", w.err
	case !w.sealed:
		return "", errors.New("gguf: the digest is known after Commit")
	}
	return w.out.SHA256(), nil
}
