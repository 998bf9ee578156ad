package ppl

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/phaseconv/phaseconv/verify/option"
)

func utf16Text(s string, bom bool) string {
	var b strings.Builder
	if bom {
		b.WriteString("\xff\xfe")
	}
	for _, u := range utf16.Encode([]rune(s)) {
		b.WriteByte(byte(u))
		b.WriteByte(byte(u >> 8))
	}
	return b.String()
}

// TestIsText: what is no text is refused by its name, what is one is not.
func TestIsText(t *testing.T) {
	words := strings.Repeat("the river and the stone ", 40)
	for _, x := range []struct{ data, says string }{
		{words, ""},
		{"", ""},
		{"\ufeff" + words, ""}, // a byte order mark
		{"naïve – 漢字 \ufffd 🙂\r\n\t\x0c", ""}, // the replacement character itself is text
		{"漢字"[:5], ""},          // cut inside a character, as head -c does
		{"BZhang said so.", ""}, // begins like bzip2
		{"{\"text\": \"a\"}\n", ""},
		{"PAR1\x15\x04\x15" + words, "Parquet"},
		{"PAR1", "Parquet"},
		{"ARROW1\x00\x00", "Arrow"},
		{"\x1f\x8b\x08\x00" + words, "gzip"},
		{"\x28\xb5\x2f\xfd\x04", "zstd"},
		{"\xfd7zXZ\x00\x00", "xz"},
		{"BZh91AY&SY\x9f\xd2", "bzip2"},
		{"PK\x03\x04\x14\x00", "zip archive"},
		{"%PDF-1.7\n%\xe2\xe3", "PDF"},
		{"SQLite format 3\x00", "SQLite"},
		{"GGUF\x03\x00\x00\x00", "GGUF"},
		{utf16Text(words, true), "UTF-16"},
		{utf16Text(words, false), "UTF-16"},
		{"\xfe\xff\x00t\x00h", "UTF-16"},
		{"\xff\xfe\x00\x00t\x00\x00\x00", "UTF-32"},
		{words + "\x00", "byte 960 is NUL: this is a binary file"},
		{"na\xefve caf\xe9 " + words, "byte 2 (0xef) is not UTF-8"},
		{words + "\xff", "byte 960 (0xff)"},
		{words + "\xed\xa0\x80", "byte 960 (0xed)"}, // half of a surrogate pair
		{"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"},
		{"<!DOCTYPE html><html>", "web page"},
	} {
		err := Text{Name: "x.txt", Data: []byte(x.data)}.Check()
		var e *option.Error
		if (x.says == "") != (err == nil) || err != nil && (!errors.As(err, &e) || !strings.Contains(err.Error(),
			x.says) || !strings.HasPrefix(err.Error(), "x.txt: ")) {
			t.Errorf("%.20q: %v, want %q", x.data, err, x.says)
		}
	}
}
