package gguf

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// WriteHollow writes a file with metadata and tensors whose numbers are zeros where fill gives none: nil, or
// what follows of the tensor's stored bytes. Zeros take no room where the filesystem has sparse files. It is
// for asking readers what they make of shapes; nothing is synced, and a failure leaves no file.
func WriteHollow(path string, kvs []KV, tensors []TensorSpec, fill func(name string) io.Reader) (err error) {
	w := &Writer{}
	header, err := w.plan(path, kvs, tensors)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if _, err := f.Write(header); err != nil {
		return err
	}
	at := int64(len(header))
	for _, t := range w.tensors {
		if r := fill(t.name); r != nil {
			if n, err := io.Copy(io.NewOffsetWriter(f, at), io.LimitReader(r, t.size+1)); err != nil || n > t.size {
				return &FormatError{File: path, Tensor: t.name, Offset: -1, Err: err,
					Msg: fmt.Sprintf("%d bytes, its shape has %d", n, t.size)}
			}
		}
		at = t.end
	}
	return f.Truncate(w.size)
}
