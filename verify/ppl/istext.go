package ppl

import (
	"bytes"
	"unicode/utf8"

	"github.com/phaseconv/phaseconv/format/placeholder"
	"github.com/phaseconv/phaseconv/verify/option"
)

// signatures of files that hold a text, or something else, in another form.
var signatures = []struct{ prefix, what, hint string }{
	{"PAR1", "a Parquet file", "write its text column to a plain file"},
	{"ARROW1", "an Arrow file", "write its text column to a plain file"},
	{"\x1f\x8b", "gzip", "unpack it"},
	{"\x28\xb5\x2f\xfd", "zstd", "unpack it"},
	{"\xfd7zXZ\x00", "xz", "unpack it"},
	{"BZh", "bzip2", "unpack it"},
	{"\x04\x22\x4d\x18", "LZ4", "unpack it"},
	{"PK\x03\x04", "a zip archive, or what is one inside", "unpack it"},
	{"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it"},
	{"%PDF-", "a PDF file", "write its text to a plain file"},
	{"SQLite format 3\x00", "an SQLite database", "write its text to a plain file"},
	{"GGUF", "a GGUF file", "name a text"},
	{"\x00\x00\xfe\xff", "UTF-32 text", "convert it to UTF-8"},
	{"\xff\xfe\x00\x00", "UTF-32 text", "convert it to UTF-8"},
	{"\xff\xfe", "UTF-16 text", "convert it to UTF-8"},
	{"\xfe\xff", "UTF-16 text", "convert it to UTF-8"},
}

// Check refuses what is no text in UTF-8: a model can be run on any bytes, and would
// be fitted to nonsense. The text may end inside a character.
func (t Text) Check() error {
	if err := placeholder.Check(t.Name, t.Data); err != nil {
		return option.Errorf("%w", err)
	}
	for _, s := range signatures {
		if bytes.HasPrefix(t.Data, []byte(s.prefix)) && (s.prefix != "BZh" || !utf8.Valid(t.Data)) {
			return option.Errorf("%s: this is %s, not text in UTF-8: %s", t.Name, s.what, s.hint)
		}
	}
	if i := bytes.IndexByte(t.Data, 0); i >= 0 {
		what := "a binary file"
		if n := min(len(t.Data), 1<<16); bytes.Count(t.Data[:n], []byte{0}) > n/4 {
			what = "UTF-16 text, or a binary file"
		}
		return option.Errorf("%s: byte %d is NUL: this is %s, not text in UTF-8", t.Name, i, what)
	}
	for i := 0; i < len(t.Data) && utf8.FullRune(t.Data[i:]); {
		r, n := utf8.DecodeRune(t.Data[i:])
		if r == utf8.RuneError && n == 1 {
			return option.Errorf("%s: byte %d (%#02x) is not UTF-8: convert the text from its encoding (such as Latin-1), "+
				"with iconv for example", t.Name, i, t.Data[i])
		}
		i += n
	}
	return nil
}
