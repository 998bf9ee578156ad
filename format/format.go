// Package format says how the readers below it tell a caller what is wrong with a file:
// it is broken, or it is sound and holds something that is not handled.
//
// Every error about the content of a file is one of the two by errors.Is. Errors of
// the file system, such as a file that is not there, are neither.
package format

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

var (
	// ErrBroken is what errors about files are that break their format or contradict
	// themselves: cut off in a download, damaged, written wrongly.
	ErrBroken = errors.New("the file is broken")
	// ErrUnsupported is what errors about files are that may be sound, but hold what is not
	// handled: another family, a type of tensor, a kind of tokenizer.
	ErrUnsupported = errors.New("not supported")
)

// An Error is an error about a file, of a kind.
type Error struct {
	Path   string // "" where Err names the file, or whoever opened it will
	Offset int64  // in bytes, -1 where there is none
	Kind   error  // ErrBroken or ErrUnsupported
	Err    error  // what is wrong, and what to do
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	if e.Offset >= 0 {
		fmt.Fprintf(&b, "offset %d: ", e.Offset)
	}
	return b.String() + e.Err.Error()
}

// Unwrap gives the kind to errors.Is, and what Err wraps.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

// Unsupportedf formats an error of kind ErrUnsupported, as fmt.Errorf does.
func Unsupportedf(text string, args ...any) error {
	return &Error{Offset: -1, Kind: ErrUnsupported, Err: fmt.Errorf(text, args...)}
}

// Brokenf formats an error of kind ErrBroken, as fmt.Errorf does.
func Brokenf(text string, args ...any) error {
	return &Error{Offset: -1, Kind: ErrBroken, Err: fmt.Errorf(text, args...)}
}

// Broken returns a reader's error: of kind ErrBroken, unless it has a kind or comes from
// the file system. The text stays what it is.
func Broken(err error) error {
	var path *fs.PathError
	var syscall *os.SyscallError
	switch {
	case err == nil, errors.Is(err, ErrBroken), errors.Is(err, ErrUnsupported):
		return err
	case errors.As(err, &path), errors.As(err, &syscall):
		return err
	}
	return &Error{Offset: -1, Kind: ErrBroken, Err: err}
}
