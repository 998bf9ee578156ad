package tokenizer

import (
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format"
)

// A FormatError reports a tokenizer file or GGUF metadata that is damaged or
// contradicts itself.
type FormatError struct {
	File   string // path, or "" for metadata that did not come from a named file
	Key    string // JSON path or metadata key, "" when the whole file is meant
	Offset int64  // byte offset in File, -1 when not known
	Msg    string // what is wrong
	Hint   string // what to do, may be ""
}

func (e *FormatError) Error() string {
	where := e.File
	if e.Offset >= 0 {
		where += " at offset " + strconv.FormatInt(e.Offset, 10)
	}
	return message(where, e.Key, e.Msg, e.Hint)
}

// Is says that the error is of kind format.ErrBroken.
func (e *FormatError) Is(kind error) bool { return kind == format.ErrBroken }

// An UnsupportedError reports a tokenizer that is sound but of a kind this
// package does not implement.
type UnsupportedError struct {
	File string // path, or ""
	Key  string // JSON path or metadata key
	What string // the feature, by name
	Hint string // what to do, may be ""
}

func (e *UnsupportedError) Error() string {
	return message(e.File, e.Key, e.What+" is not supported", e.Hint)
}

// Is says that the error is of kind format.ErrUnsupported.
func (e *UnsupportedError) Is(kind error) bool { return kind == format.ErrUnsupported }

func message(where, key, msg, hint string) string {
	var parts []string
	for _, s := range []string{where, key} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	out := strings.Join(append(parts, msg), ": ")
	if hint != "" {
		out += " (" + hint + ")"
	}
	return out
}

// clip shortens text that is quoted in a message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "..."
}
