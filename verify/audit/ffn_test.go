package audit_test

import (
	"context"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
)

// find returns the only row with these properties.
func find(t *testing.T, rows []spec.FFNRow, layer int, matrix string, expert int, rotation string) spec.FFNRow {
	t.Helper()
	var out []spec.FFNRow
	for _, r := range rows {
		if r.Layer == layer && r.Matrix == matrix && r.Expert == expert && r.Rotation == rotation {
			out = append(out, r)
		}
	}
	if len(out) != 1 {
		t.Fatalf("%d rows of layer %d, %s, expert %d, %s", len(out), layer, matrix, expert, rotation)
	}
	return out[0]
}

// TestFFN: the random weights of a tiny model are noise, so held out no rotation
// beats the Gaussian floor, and on the fitted rows each reaches what noise does;
// the numbers of rows and bits are those of the shapes.
func TestFFN(t *testing.T) {
	for _, fam := range []string{"llama", "qwen3_moe"} {
		c := tiny.Open(t, fam, tiny.Options{Seed: 1})
		rows, err := audit.FFN(context.Background(), c.Config, c, audit.FFNOptions{Block: 32, Experts: 2, Seed: 1,
			Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		want := 2 * 3 * 4 // layers, matrices, rotations
		experts := max(1, c.Config.Experts())
		if experts > 1 {
			want = 2 * 3 * (3 + 2*4) // no rotation of its own for a bank; two experts
		}
		if len(rows) != want {
			t.Errorf("%s: %d rows, want %d", fam, len(rows), want)
		}
		for _, r := range rows {
			// 32 to 192 rows of 64 to 96 numbers: a standard error of at most 0.01.
			if math.Abs(r.Cos1bit-0.80) > 0.03 || math.Abs(r.MomentRatio-2/math.Pi) > 0.045 {
				t.Errorf("%s: noise held out: %+v", fam, r)
			}
			if learned := r.Rotation == "shared" || r.Rotation == "own"; learned != (r.TrainCos1bit != nil) ||
				learned != (r.NoiseCos1bit != nil) || learned != (r.Rows > 0) {
				t.Errorf("%s: %+v", fam, r)
			} else if learned && (math.Abs(*r.TrainCos1bit-*r.NoiseCos1bit) > 0.02 || *r.TrainCos1bit < r.Cos1bit+0.01) {
				t.Errorf("%s: train %.3f, noise %.3f: %+v", fam, *r.TrainCos1bit, *r.NoiseCos1bit, r)
			}
		}
		// up is 96 x 64 a matrix, down 64 x 96.
		e := -1
		if experts > 1 {
			e = 2
		}
		own := find(t, rows, 1, "down", e, "own")
		if own.Dims != 96 || own.Block != 32 || own.Rows != 32 || own.HeldOut != 32 || own.RowsPerDim != 1 ||
			own.EffectiveBits != 1+16.0/96+16*32*96.0/(64*96) {
			t.Errorf("%s: %+v", fam, own)
		}
		shared := find(t, rows, 0, "gate", -1, "shared")
		if shared.Dims != 64 || shared.Rows != 2*48*experts || shared.HeldOut != 48*experts ||
			shared.EffectiveBits != 1+16.0/64+16*32*64.0/float64(2*96*64*experts) {
			t.Errorf("%s: %+v", fam, shared)
		}
		if none := find(t, rows, 0, "up", -1, "none"); none.Block != 0 || none.EffectiveBits != 1.25 {
			t.Errorf("%s: %+v", fam, none)
		}
		var last [2]int
		other, err := audit.FFN(context.Background(), c.Config, c, audit.FFNOptions{Block: 32, Experts: 2, Seed: 1,
			Threads: 1, Layers: []int{0, 1},
			Progress: func(done, total int) { last = [2]int{done, total} }})
		if last[0] == 0 || last[0] != last[1] {
			t.Errorf("%s: progress ends at %d of %d", fam, last[0], last[1])
		}
		if err != nil || !reflect.DeepEqual(rows, other) {
			t.Errorf("%s: other numbers with one thread (%v)", fam, err)
		}
	}
}

// TestFFNLearns: weights whose rows are signs after one rotation are recognised,
// held out: the audit can show a gain where there is one.
func TestFFNLearns(t *testing.T) {
	// A turn by 30 degrees of neighbouring numbers.
	turn := func(x []float32) {
		for i := 0; i < len(x); i += 2 {
			a, b := float32(1), float32(1)
			if x[i] < 0 {
				a = -1
			}
			if x[i+1] < 0 {
				b = -1
			}
			x[i], x[i+1] = 0.866*a-0.5*b, 0.5*a+0.866*b
		}
	}
	c := tiny.Open(t, "mixtral", tiny.Options{Layers: 1, FFN: 256, Experts: 2, Edit: func(name string, x []float32) {
		if strings.Contains(name, "w1") || strings.Contains(name, "w3") {
			turn(x)
		}
	}})
	rows, err := audit.FFN(context.Background(), c.Config, c, audit.FFNOptions{Block: 64, Seed: 3, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	raw, shared := find(t, rows, 0, "up", -1, "none"), find(t, rows, 0, "up", -1, "shared")
	if raw.Cos1bit > 0.95 || shared.Cos1bit < 0.97 || shared.Cos1bit < raw.Cos1bit {
		t.Errorf("raw %.3f, learned %.3f", raw.Cos1bit, shared.Cos1bit)
	}
	if d := find(t, rows, 0, "down", -1, "shared"); d.Cos1bit > 0.81 {
		t.Errorf("noise beside it: %+v", d)
	}
}

func TestFFNRefuses(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{})
	for _, o := range []audit.FFNOptions{{Block: -1}, {Block: 1 << 20}, {MaxRows: 1}, {Experts: -2}, {Layers: []int{2}}} {
		if rows, err := audit.FFN(context.Background(), c.Config, c, o); err == nil {
			t.Errorf("%+v: %d rows", o, len(rows))
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := audit.FFN(ctx, c.Config, c, audit.FFNOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// Zero matrices have no directions, and give no rows rather than no numbers.
	z := tiny.Open(t, "llama", tiny.Options{Layers: 1, Edit: func(name string, x []float32) {
		if strings.Contains(name, "up_proj") {
			clear(x)
		}
	}})
	rows, err := audit.FFN(context.Background(), z.Config, z, audit.FFNOptions{Block: 16})
	if err != nil || len(rows) != 8 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	for _, r := range rows {
		if math.IsNaN(r.Cos1bit) || r.Matrix == "up" {
			t.Errorf("%+v", r)
		}
	}
}
