// Package option has the error that functions return for options that cannot be, before
// they do any work.
package option

import (
	"errors"
	"fmt"
	"reflect"
)

// An Error says what is wrong with what was asked for. Field names the field of the options
// in question, so that a command line can name its flag; it is empty where the mistake is not
// that of one field.
type Error struct {
	Field string
	Value any    // as given; nil where it says nothing
	Want  string // what was expected, or what to do
	Err   error  // instead of Value and Want
}

// Error returns one sentence that begins with the field's name.
func (e *Error) Error() string { return e.Describe(e.Field) }

// Describe returns the sentence with another name for the field.
func (e *Error) Describe(name string) string {
	var text string
	switch reflect.ValueOf(e.Value).Kind() {
	case reflect.Invalid: // nil
	case reflect.String: // also of a named type
		text = fmt.Sprintf(" %q", e.Value)
	default:
		text = fmt.Sprintf(" %v", e.Value)
	}
	switch {
	case e.Err != nil && name == "":
		return e.Err.Error()
	case e.Err != nil:
		return name + text + ": " + e.Err.Error()
	}
	return name + text + ": " + e.Want
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an Error that is not about one field.
func Errorf(format string, args ...any) error { return &Error{Err: fmt.Errorf(format, args...)} }

// Bad returns the Error of a field whose value cannot be; want says what can.
func Bad(field string, value any, want string, args ...any) error {
	return &Error{Field: field, Value: value, Want: fmt.Sprintf(want, args...)}
}

// Of names the field in an error that does not know it. It leaves an Error with a field as it
// is, and returns nil for nil.
func Of(field string, value any, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) && e.Field != "" {
		return err
	}
	return &Error{Field: field, Value: value, Err: err}
}
