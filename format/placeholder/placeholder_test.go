package placeholder

import (
	"errors"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for text, says := range map[string]string{
		"version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("a", 64) + "\nsize 1\n": "Git LFS pointer",
		"version https://hawser.github.com/spec/v1\n":                                                      "Git LFS pointer",
		"\ufeffversion https://git-lfs.github.com/spec/v1\r\noid sha256:00":                                "Git LFS pointer",
		"# xet version 0\nfilesize = 1\n":                                                                  "Git Xet",
		"<!DOCTYPE html>\n<html lang=\"en\">":                                                              "web page",
		"\n  <html><head><title>Access denied</title></head><body></body></ht":                             "web page",
		"":                       "",
		"{}":                     "",
		"version":                "",
		"version https://git-lf": "",
		"GGUF\x03\x00\x00\x00":   "",
		"versions https://git-lfs.github.com/spec": "",
	} {
		err := Check("x", []byte(text))
		var e *Error
		if (says == "") != (err == nil) || err != nil && (!errors.As(err,
			&e) || e.File != "x" || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
