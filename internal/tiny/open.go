package tiny

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
)

// Open writes a GGUF model as GGUF does and opens it until the test ends.
func Open(t testing.TB, fam string, o Options) *checkpoint.Checkpoint {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	GGUF(t, path, fam, o)
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Windows returns n windows of T random token ids, the same at every call.
func Windows(c *family.Config, n, T int) [][]int32 {
	r := rand.New(rand.NewPCG(1, 1))
	out := make([][]int32, n)
	for w := range out {
		for range T {
			out[w] = append(out[w], int32(r.IntN(c.Vocab)))
		}
	}
	return out
}
