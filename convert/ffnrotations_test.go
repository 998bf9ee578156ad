package convert_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
)

// TestFFNRotations: rotations of dense FFNs and of experts are the same whether they are fitted at
// once, by units, or after an interruption; they preserve products,
// pass their check, and find nothing in random weights.
func TestFFNRotations(t *testing.T) {
	ctx := context.Background()
	cases := [][2]string{{"qwen3_moe", spec.FFNOwn}}
	if os.Getenv("PHASECONV_LONG") != "" {
		cases = append(cases, [][2]string{{"llama", spec.FFNOwn}, {"qwen3_moe", spec.FFNShared}}...)
	}
	for _, x := range cases {
		fam, basis := x[0], x[1]
		t.Run(fam+" "+basis, func(t *testing.T) {
			c := tiny.Open(t, fam, tiny.Options{Seed: 1})
			dir := t.TempDir()
			o := convert.DefaultFFNRotationOptions()
			o.Out, o.Basis, o.Block, o.Threads, o.Tool = filepath.Join(dir, "once.gguf"), basis, 32, 2, "test"
			res, err := convert.FitFFNRotations(ctx, c, o)
			if err != nil {
				t.Fatal(err)
			}
			experts := 1
			if basis == spec.FFNOwn {
				experts = max(1, c.Config.Experts())
			}
			if res.Rotations != 2*len(c.Config.Layers)*experts || len(res.Rows) != 9*len(c.Config.Layers)*experts ||
				res.Verdict.Learned {
				t.Errorf("%d rotations, %d rows, %+v", res.Rotations, len(res.Rows), res.Verdict)
			}
			// Bits per weight: sign, scale of a row, and 32 for each number of the rotation.
			r := res.Rows[2]
			shares := float64(2 * 2 * r.HeldOut * r.Dims) // gate and up, held out and fitted
			if want := 1 + 16/float64(r.Dims) + 32*float64(r.Block*r.Dims)/shares; r.Rotation != basis ||
				r.EffectiveBits != want {
				t.Errorf("%+v, want %g bits", r, want)
			}
			checks, err := convert.CheckFFNRotations(ctx, o.Out, c, 1, nil)
			if err != nil || len(checks) != 6 {
				t.Errorf("%v %v", checks, err)
			}
			for _, x := range checks {
				if !x.OK {
					t.Errorf("%v", x)
				}
			}
			byUnits(t, o, func(o convert.FFNRotationOptions) error { _, err := convert.FitFFNRotations(ctx, c, o); return err })
		})
	}
}

// byUnits fits the units of a job, damages one layer, and goes on from them: the file is that of o.Out.
func byUnits(t *testing.T, o convert.FFNRotationOptions, run func(convert.FFNRotationOptions) error) {
	t.Helper()
	want, err := os.ReadFile(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	o.Out, o.Threads, o.Units = filepath.Join(filepath.Dir(o.Out), "units.gguf"), 1, 2
	for o.Unit = 1; o.Unit <= 2; o.Unit++ {
		if err := run(o); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadDir(convert.WorkDir(o.Out))
	if err != nil || len(kept) != 2 {
		t.Fatalf("%v %v", kept, err)
	}
	if err := os.Truncate(filepath.Join(convert.WorkDir(o.Out), kept[1].Name()), 100); err != nil {
		t.Fatal(err)
	}
	o.Unit, o.Units, o.Resume = 0, 0, true
	said := ""
	o.Notice = func(text string) { said += text }
	if err := run(o); err != nil || !strings.Contains(said, "fitted again") || strings.Count(said, "again") != 1 {
		t.Errorf("%v, said %q", err, said)
	}
	if got, err := os.ReadFile(o.Out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes by units: %v", err)
	}
	if _, err := os.Stat(convert.WorkDir(o.Out)); !os.IsNotExist(err) {
		t.Errorf("the work folder is left: %v", err)
	}
	if err := run(o); err == nil {
		t.Error("wrote over a file")
	}
}

// TestFFNRotationsRefused: a file of another model, or with other numbers than are measured, fails its
// check, and so do products of what is no rotation.
func TestFFNRotationsRefused(t *testing.T) {
	ctx := context.Background()
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 1})
	o := convert.DefaultFFNRotationOptions()
	o.Out, o.Block, o.Threads = filepath.Join(t.TempDir(), "a.ffn"), 32, 1
	if _, err := convert.FitFFNRotations(ctx, c, o); err != nil {
		t.Fatal(err)
	}
	failed := func(checks []spec.Check) string {
		for _, x := range checks {
			if !x.OK {
				return x.Check
			}
		}
		return ""
	}
	other := tiny.Open(t, "llama", tiny.Options{Seed: 2, Layers: 1})
	checks, err := convert.CheckFFNRotations(ctx, o.Out, other, 1, nil)
	if err != nil || failed(checks) != "they are of this model" {
		t.Errorf("%v %v", checks, err)
	}
	raw, err := os.ReadFile(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, []byte(`cos1bit\":0.`))
	raw[at+len(`cos1bit\":0.`)] ^= 1 // another digit
	if err := os.WriteFile(o.Out, raw, 0o666); err != nil {
		t.Fatal(err)
	}
	checks, err = convert.CheckFFNRotations(ctx, o.Out, c, 1, nil)
	if err != nil || failed(checks) != "measured as the file says" {
		t.Errorf("%v %v", checks, err)
	}

	f, err := sidecar.OpenFFN(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x, err := f.Layer(ctx, f.Shapes[0])
	if err != nil {
		t.Fatal(err)
	}
	m := audit.NewFFNMeter(c.Config, c, audit.FFNOptions{Block: 32, Seed: o.Seed, Threads: 1}, 32)
	s, err := m.Sample(ctx, 0, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	r := x[0][0]
	if e := m.Products(s, r); e > audit.ProductBound(32) || e == 0 {
		t.Errorf("products of a rotation are off by %g", e)
	}
	r.R[5] += 0.01
	if e := m.Products(s, r); e <= audit.ProductBound(32) {
		t.Errorf("products of what is no rotation are off by %g only", e)
	}
}
