package gguf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/phaseconv/phaseconv/format"
)

var (
	// ErrKeyNotFound is wrapped by the getters' error when a file lacks a key.
	ErrKeyNotFound = errors.New("key not found")

	// ErrNotFinite is wrapped by QuantizeRow's error when a block format is asked
	// to hold an infinity or a NaN: the block's scale, and with it every value of
	// the block, would be lost.
	ErrNotFinite = errors.New("value is not finite")

	// ErrLength is wrapped by errors about slices that do not fit the operation:
	// not a whole number of blocks, or source and destination that disagree.
	ErrLength = errors.New("length does not fit")
)

// A FormatError says that a file breaks the GGUF format, or that it lacks or
// mistypes a key that the caller needs.
type FormatError struct {
	File   string // path, or the name given to NewFile
	Key    string // the key-value pair in question, if any
	Tensor string // the tensor in question, if any
	Offset int64  // position in the file, -1 if the error has none
	Msg    string
	Err    error // underlying error, may be nil
}

func (e *FormatError) Error() string {
	s := where(e.File, e.Key, e.Tensor)
	if e.Offset >= 0 {
		s += fmt.Sprintf("offset %d: ", e.Offset)
	}
	return s + join(e.Msg, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// Is says that the error is of kind format.ErrBroken.
func (e *FormatError) Is(kind error) bool { return kind == format.ErrBroken }

// An UnsupportedError says that a file or a request is well formed but outside
// of what this package handles: a version, a byte order, a tensor type.
type UnsupportedError struct {
	File   string // path, or the name given to NewFile; empty for row functions
	Key    string
	Tensor string
	Msg    string
}

func (e *UnsupportedError) Error() string { return where(e.File, e.Key, e.Tensor) + e.Msg }

// Is says that the error is of kind format.ErrUnsupported.
func (e *UnsupportedError) Is(kind error) bool { return kind == format.ErrUnsupported }

func where(file, key, tensor string) string {
	var b strings.Builder
	if file != "" {
		b.WriteString(file + ": ")
	}
	if key != "" {
		fmt.Fprintf(&b, "key %q: ", key)
	}
	if tensor != "" {
		fmt.Fprintf(&b, "tensor %q: ", tensor)
	}
	return b.String()
}

func join(msg string, err error) string {
	switch {
	case err == nil:
		return msg
	case msg == "":
		return err.Error()
	}
	return msg + ": " + err.Error()
}
