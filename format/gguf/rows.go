package gguf

import (
	"fmt"
	"io"
	"sync"
)

// chunkBytes is how much of a tensor ReadRows holds at a time. It fits the
// second-level cache, where the dequantisers find it again.
const chunkBytes = 1 << 18

var chunks = sync.Pool{New: func() any { b := make([]byte, chunkBytes); return &b }}

// ReadRows reads nrows rows of t, a tensor of f, from row row0 on and converts
// them to float32 in dst, which must have room for nrows * t.RowLen() numbers. A
// row is a run of t.RowLen() numbers; there are t.Rows() of them. The memory in
// use beside dst does not depend on the tensor's size.
//
// It fails with an *UnsupportedError if CanDequantize(t.Type) is false.
func (f *File) ReadRows(t *Tensor, row0, nrows int, dst []float32) error {
	if !CanDequantize(t.Type) {
		return &UnsupportedError{File: f.Path, Tensor: t.Name, Msg: noDequantizer(t.Type)}
	}
	if row0 < 0 || nrows < 0 || nrows > t.Rows()-row0 {
		return fmt.Errorf("%srows %d to %d of %d: %w", where(f.Path, "", t.Name), row0, row0+nrows-1, t.Rows(), ErrLength)
	}
	n := nrows * t.RowLen()
	if len(dst) < n {
		return fmt.Errorf("%s%d rows of %d need %d numbers, got room for %d: %w",
			where(f.Path, "", t.Name), nrows, t.RowLen(), n, len(dst), ErrLength)
	}
	dst = dst[:n]
	block, blockBytes := t.Type.Block()
	r := f.Reader(t)
	at := int64(row0*t.RowLen()/block) * int64(blockBytes)
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	perChunk := chunkBytes / blockBytes * block
	for len(dst) > 0 {
		n := min(perChunk, len(dst))
		b := (*buf)[:n/block*blockBytes]
		if got, err := r.ReadAt(b, at); got < len(b) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return &FormatError{File: f.Path, Tensor: t.Name, Offset: t.Offset + at + int64(got), Msg: "read failed", Err: err}
		}
		dequantizers[t.Type](dst[:n], b)
		dst = dst[n:]
		at += int64(len(b))
	}
	return nil
}
