package ppl

import (
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestMeasureMemory: what Measure allocates grows with the context by what it keeps of each
// token, not by logits; and no result depends on how many rows of logits there are at a time.
func TestMeasureMemory(t *testing.T) {
	const vocab, hidden = 1024, 32
	path := filepath.Join(t.TempDir(), "m.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Layers: 1, Hidden: hidden, Vocab: vocab, Untied: true})
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := refmodel.New(c.Config, c, 1)
	r := rand.New(rand.NewPCG(1, 2))
	positions := func(n int) Positions {
		x := make([]float32, n*hidden)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return Positions{m, x}
	}
	window := func(n int) *Windows { // n scored tokens
		ids := make([]int32, n+1)
		for i := range ids {
			ids[i] = int32(i % vocab)
		}
		return From([][]int32{ids}, 0)
	}
	allocated := func(n int) uint64 {
		w, a, b := window(n), positions(n), positions(n)
		if _, err := Measure(t.Context(), w, nil, a.Part(w, 1), b); err != nil { // buffers of the model
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := Measure(t.Context(), w, nil, a, b); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	const short, long = 2 * rowsAtOnce, 6 * rowsAtOnce
	grown := int64(allocated(long)) - int64(allocated(short))
	logits := int64(2 * 4 * vocab * (long - short))
	if grown > logits/4 {
		t.Errorf("%d more tokens take %d more bytes; their logits alone are %d", long-short, grown, logits)
	}

	const n = 200
	w, a, b := window(n), positions(n), positions(n)
	want, err := measure(t.Context(), w, n, nil, []Positions{a, b})
	if err != nil {
		t.Fatal(err)
	}
	for _, rows := range []int{1, 33, 199} {
		got, err := measure(t.Context(), w, rows, nil, []Positions{a, b})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d rows at a time give another result", rows)
		}
	}
}

func TestBands(t *testing.T) {
	w := From([][]int32{make([]int32, 12), make([]int32, 12)}, 5) // 6 scored positions each
	d := &Divergence{KLD: []float64{1, 1, 2, 2, 4, 4, 3, 3, 2, 2, 0, 8}}
	got := Bands(d, w, 3)
	if len(got) != 3 {
		t.Fatal(got)
	}
	for i, x := range []struct {
		from, to int
		kld      float64
	}{{5, 7, 2}, {7, 9, 2}, {9, 11, 4}} {
		if b := got[i]; b.From != x.from || b.To != x.to || b.Tokens != 4 || b.KLD != x.kld {
			t.Errorf("band %d: %+v", i, b)
		}
	}
	if got := Bands(d, w, 4); len(got) != 3 || got[2].To != 11 {
		t.Errorf("4 bands of 6 positions: %+v", got)
	}
	if got := Bands(d, w, 100); len(got) != 6 {
		t.Errorf("more bands than positions: %+v", got)
	}
}
