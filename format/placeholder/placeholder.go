// Package placeholder recognises what stands in place of a file that was never
// fetched: a pointer of Git LFS or Xet, or the web page that a failed download left.
// Readers ask it before they say that a file is damaged.
package placeholder

import (
	"bytes"

	"github.com/phaseconv/phaseconv/format"
)

// Head is how many bytes of a file Check needs to see.
const Head = 64

// An Error says that a file holds a placeholder.
type Error struct {
	File string
	Msg  string
}

func (e *Error) Error() string { return e.File + ": " + e.Msg }

// Is says that the error is of kind format.ErrBroken.
func (e *Error) Is(kind error) bool { return kind == format.ErrBroken }

var kinds = []struct {
	prefix string // in lower case
	msg    string
}{
	{"version https://git-lfs.github.com/spec/", lfs},
	{"version https://hawser.github.com/spec/", lfs}, // Git LFS before it had that name
	{"# xet version", "this is a pointer of Git Xet, not the file itself; fetch the file with git xet or the hub's own " +
		"tools"},
	{"<!doctype html", html},
	{"<html", html},
}

const (
	lfs  = "this is a Git LFS pointer, not the file itself; fetch the file with git lfs pull"
	html = "this is a web page, not the file itself; the download failed (is a login needed?): fetch the file again"
)

// Check returns an *Error if head, the first bytes of the file at path (Head of
// them, or all), belongs to a placeholder, nil otherwise.
func Check(path string, head []byte) error {
	head = bytes.TrimLeft(head[:min(len(head), Head)], "\xef\xbb\xbf \t\r\n")
	for _, k := range kinds {
		if len(head) >= len(k.prefix) && string(bytes.ToLower(head[:len(k.prefix)])) == k.prefix {
			return &Error{File: path, Msg: k.msg}
		}
	}
	return nil
}
