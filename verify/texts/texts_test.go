package texts

import (
	"bytes"
	"testing"
	"unicode/utf8"
)

// TestKinds: texts have names of their own and share nothing with the one that is fitted to. All but the
// conversations fill the default context of 2,048 tokens where a token has 4.4 bytes, as those of English prose.
func TestKinds(t *testing.T) {
	names := map[string]bool{CalibrationName: true}
	for _, k := range Kinds() {
		if names[k.Name] || names[k.Kind] {
			t.Errorf("%s, %s: a name twice", k.Name, k.Kind)
		}
		names[k.Name], names[k.Kind] = true, true
		if !k.Chat && 10*len(k.Data) < 44*2048 || !utf8.Valid(k.Data) {
			t.Errorf("%s: %d bytes, valid UTF-8: %v", k.Name, len(k.Data), utf8.Valid(k.Data))
		}
		for line := range bytes.Lines(k.Data) {
			if len(line) > 80 && bytes.Contains(Calibration, line) {
				t.Errorf("%s: a line of the calibration text: %q", k.Name, line)
			}
		}
	}
}
