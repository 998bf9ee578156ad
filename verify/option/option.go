package option

import (
	"fmt"
)

// option.Error is a mistake in what was asked for, found before any work.
type Error struct{ Err error }

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

func Errorf(format string, args ...any) error { return &Error{fmt.Errorf(format, args...)} }
