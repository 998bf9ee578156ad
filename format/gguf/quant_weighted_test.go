package gguf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// importantRows makes rows of 512 numbers with importances: of all sizes, with outliers, zeros, equal
// and one-sided numbers, and importances that are equal, spread by 10^6 or zero.
func importantRows(n int) (src, importance []float32) {
	const cols = 512
	r := rand.New(rand.NewPCG(7, 11))
	for i := range n {
		scale := math.Exp(4 * r.NormFloat64())
		for c := range cols {
			v := scale * r.NormFloat64()
			switch i % 8 {
			case 1:
				if r.IntN(50) == 0 {
					v *= 20
				}
			case 2:
				v = math.Abs(v)
			case 3:
				v = -math.Abs(v)
			case 4:
				if c/32%3 == 0 {
					v = 0
				}
			case 5:
				v = scale * float64(c/16%5-2) // equal within a group
			}
			w := math.Exp(3 * r.NormFloat64())
			switch i % 5 {
			case 1:
				w = 1
			case 2:
				if c%7 == 0 {
					w = 0
				}
			}
			src, importance = append(src, float32(v)), append(importance, float32(w))
		}
	}
	return src, importance
}

func quantizeImportant(t *testing.T, typ Type, src, importance []float32) []byte {
	t.Helper()
	const cols = 512
	size, err := RowBytes(typ, cols)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(src)/cols*size)
	for r := range len(src) / cols {
		if err := QuantizeRowWeighted(typ, out[r*size:][:size], src[r*cols:][:cols], importance[r*cols:][:cols]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// stockImportant are the digests of what ggml_quantize_chunk makes of the first 40 rows, by TestStockChunk.
var stockImportant = map[Type]string{
	TypeQ4_0: "99d6fd1ec65072d5", TypeQ4_1: "ee7eedc6e0396e27", TypeQ5_0: "3de9ec5a397058ef", TypeQ5_1: "cd5073eccf7d2d04",
	TypeQ2_K: "ec7cde767de3e49d", TypeQ3_K: "5fdee77900a4c80b", TypeQ4_K: "80475835b35ebb9f", TypeQ5_K: "bee1ef94bcd9c40c",
	TypeQ6_K: "d86685b456eb65f3",
}

func TestQuantizeRowWeighted(t *testing.T) {
	src, importance := importantRows(40)
	for typ, want := range stockImportant {
		if got := fmt.Sprintf("%x", sha256.Sum256(quantizeImportant(t, typ, src, importance)))[:16]; got != want {
			t.Errorf("%s: digest %s, of stock %s", typ, got, want)
		}
	}
	if len(stockImportant) != len(weighted) {
		t.Errorf("%d digests for %d types", len(stockImportant), len(weighted))
	}
	// Without importances, and for types that do not look at them, it is QuantizeRow.
	for _, typ := range []Type{TypeQ4_0, TypeQ8_0, TypeMXFP4, TypeF16} {
		size, _ := RowBytes(typ, 512)
		a, b := make([]byte, size), make([]byte, size)
		imp := importance[:512]
		if typ == TypeQ4_0 {
			imp = nil
		}
		err := errors.Join(QuantizeRow(typ, a, src[:512]), QuantizeRowWeighted(typ, b, src[:512], imp))
		if err != nil || string(a) != string(b) {
			t.Errorf("%s: differs from QuantizeRow: %v", typ, err)
		}
	}
	b := make([]byte, 18)
	if err := QuantizeRowWeighted(TypeQ4_0, b, src[:32], importance[:31]); !errors.Is(err, ErrLength) {
		t.Errorf("importances of another length: %v", err)
	}
	infinite := append([]float32{float32(math.Inf(1))}, importance[:31]...)
	if err := QuantizeRowWeighted(TypeQ4_0, b, src[:32], infinite); !errors.Is(err, ErrNotFinite) {
		t.Errorf("an infinite importance: %v", err)
	}
}

// TestStockChunk compares with ggml_quantize_chunk: PHASECONV_LIBLLAMA names a folder with libggml, and
// python3 calls it.
func TestStockChunk(t *testing.T) {
	lib := os.Getenv("PHASECONV_LIBLLAMA")
	if lib == "" {
		t.Skip("PHASECONV_LIBLLAMA names no folder with libllama")
	}
	dir := t.TempDir()
	in, imp, out := filepath.Join(dir, "rows"), filepath.Join(dir, "importances"), filepath.Join(dir, "out")
	src, importance := importantRows(2000)
	if err := errors.Join(os.WriteFile(in, dtype.AppendF32(nil, src), 0o666),
		os.WriteFile(imp, dtype.AppendF32(nil, importance), 0o666)); err != nil {
		t.Fatal(err)
	}
	for typ := range weighted {
		if said, err := exec.Command("python3", "../../scripts/oracles/stock_chunk.py", lib, strconv.Itoa(int(typ)), "512", in, imp,
			out).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", typ, err, said)
		}
		want, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		got := quantizeImportant(t, typ, src, importance)
		size, _ := RowBytes(typ, 512)
		bad := 0
		for r := range len(want) / size {
			if string(got[r*size:][:size]) != string(want[r*size:][:size]) {
				if bad++; bad == 1 {
					t.Errorf("%s: row %d:\n got % x\nwant % x", typ, r, got[r*size:][:min(size, 64)], want[r*size:][:min(size, 64)])
				}
			}
		}
		if bad > 0 || len(got) != len(want) {
			t.Errorf("%s: %d of 2000 rows differ", typ, bad)
		}
		t.Logf("%s: digest of 40 rows %s", typ, fmt.Sprintf("%x", sha256.Sum256(want[:40*size]))[:16])
	}
}
