package convert

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// joint is a conversion with joint codes, two groups a layer.
func joint(src, out string) Options {
	o := small(src, out)
	o.Joint, o.CalibrationTokens = jointOf(3, 64), 240
	o.Policy.Recent = 4
	return o
}

func jointOf(perPair float64, span int) *plan.Joint {
	return &plan.Joint{GroupOptions: bits.GroupOptions{Parts: bits.PartsBoth, Bits: perPair, Span: span}}
}

// planned returns what is planned for the keys, and the conversion.
func planned(t *testing.T, o Options) (plan.Keys, *Result) {
	t.Helper()
	plans, err := Plans(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	res, err := Convert(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return plans[0].Keys, res
}

// TestJoint: what is planned for joint codes is what the artifact has, its bytes are those of the
// whole cache, and units merged give what one run gives.
func TestJoint(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	tiny.HF(t, at("src"), "llama", tiny.Options{Seed: 1, Layers: 2, HeadDim: 32})
	o := joint(at("src"), at("one/out"))
	k, res := planned(t, o)
	m, b := res.Manifest, res.Verify.Bytes
	if m.Version != spec.VersionGroups || m.Code.Parts != "kv" || m.Code.GroupDim != k.GroupDim || m.Code.Bits != k.Bits ||
		m.Code.Recent != 4 || k.GroupDim != 64 {
		t.Errorf("planned %+v, written %+v", k, m.Code)
	}
	pairs := m.Model.Layers * m.Model.KVHeads * m.Model.HeadDim
	if b.KVF16 != 4*pairs || b.KVCode != k.Bytes || b.KCode != b.KVCode || 8*b.KVCode > 3*pairs ||
		8*b.KVCode <= 3*pairs-32 {
		t.Errorf("bytes %+v for %d pairs of numbers, planned %d", b, pairs, k.Bytes)
	}
	if !res.Verify.OK || !(res.Verify.KLD.Mean > 0) {
		t.Errorf("measured %+v", res.Verify.KLD)
	}
	for _, name := range []string{"model.phase.gguf", "phaseconv.sidecar"} {
		s, err := sidecar.Read(t.Context(), at("one/out/"+name))
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Layers) != 2 || len(s.Groups()) != k.Groups {
			t.Errorf("%s: %d layers, %d groups", name, len(s.Layers), len(s.Groups()))
		}
	}

	o = joint(at("src"), at("two/out"))
	o.Work = WorkDir(o.Out)
	for i := 2; i >= 1; i-- {
		if _, err := RunUnit(context.Background(), o, i, 2); err != nil {
			t.Fatal(err)
		}
	}
	o.Merge = true
	fisher := joint(at("src"), at("fisher"))
	fisher.Joint.Fisher, fisher.Report = true, false
	if _, err := Convert(context.Background(), fisher); err != nil {
		t.Error(err)
	}
	other := o
	other.Joint = jointOf(3, 128)
	if _, err := Convert(context.Background(), other); err == nil || !strings.Contains(err.Error(), "codes is joint") {
		t.Errorf("merged with other groups: %v", err)
	}
	other.Joint = jointOf(3, 64)
	other.Joint.Fisher = true
	if _, err := Convert(context.Background(), other); err == nil || !strings.Contains(err.Error(), "fisher true here") {
		t.Errorf("merged with another metric: %v", err)
	}
	other.Joint = jointOf(4, 64)
	if _, err := Convert(context.Background(), other); err == nil || !strings.Contains(err.Error(), "signs is") {
		t.Errorf("merged with more signs: %v", err)
	}
	converted(t, o)
	sameTrees(t, at("one/out"), at("two/out"))
}

// TestJointParts: keys alone, values alone and both apart. What is not coded costs nothing and takes
// what F16 takes.
func TestJointParts(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Layers: 2, HeadDim: 32})
	for parts, groups := range map[bits.Parts]int{bits.PartsKeys: 1, bits.PartsValues: 1, bits.PartsApart: 2} {
		o := joint(src, filepath.Join(dir, string(parts)))
		o.Report, o.Joint.Parts, o.Joint.Span, o.Joint.Bits = false, parts, 128, 1.5
		if parts == bits.PartsApart {
			o.Joint.Bits = 3
		}
		res, err := Convert(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		m, b := res.Manifest, res.Verify.Bytes
		pairs := m.Model.Layers * m.Model.KVHeads * m.Model.HeadDim
		coded := pairs // numbers of a token that are coded
		if parts == bits.PartsApart {
			coded *= 2
		}
		signs := coded*3/2 - 16*groups*m.Model.Layers
		if m.Code.Parts != string(parts) || b.Parts != string(parts) || b.KF16 != 2*coded || b.KVF16 != 4*pairs ||
			b.KVCode != b.KVF16-b.KF16+b.KCode || b.KCode != signs/32*4+2*groups*m.Model.Layers {
			t.Errorf("%s: code %+v, bytes %+v for %d pairs of numbers", parts, m.Code, b, pairs)
		}
		s, err := sidecar.Read(t.Context(), filepath.Join(o.Out, "model.phase.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(s.Groups()); n != groups*m.Model.Layers || !(res.Verify.KLD.Mean > 0) {
			t.Errorf("%s: %d groups, KLD %g", parts, n, res.Verify.KLD.Mean)
		}
	}
}

// TestJointLongHeads: where the keys and values of one head do not fit the span together, every part
// has a group of its own, at the bits that were asked for, with pairs too.
func TestJointLongHeads(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Layers: 2, HeadDim: 32})
	o := joint(src, filepath.Join(dir, "out"))
	o.Report, o.Joint.Span, o.Joint.Pairs = false, 32, true
	k, res := planned(t, o)
	m, b := res.Manifest, res.Verify.Bytes
	if k.Parts != bits.PartsApart || m.Code.Parts != "k+v" || k.Groups != 4*m.Model.Layers || k.GroupDim != 32 ||
		b.KVCode != k.Bytes || !(res.Verify.KLD.Mean > 0) {
		t.Errorf("planned %+v, written %+v of %+v", k, m.Code, b)
	}
}

// TestJointPairs: every second layer is given the one below, in both containers; units, each of which
// has half of a pair, give what one run gives; a reader refuses a matrix that is for nothing.
func TestJointPairs(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	tiny.HF(t, at("src"), "llama", tiny.Options{Seed: 1, Layers: 3, HeadDim: 16})
	paired := func(out string) Options {
		o := joint(at("src"), at(out))
		o.Joint.Pairs, o.Report = true, false
		return o
	}
	res, err := Convert(context.Background(), paired("one/out"))
	if err != nil {
		t.Fatal(err)
	}
	plans, err := Plans(t.Context(), paired("one/out"))
	if err != nil {
		t.Fatal(err)
	}
	if v, m, k := res.Verify, res.Manifest.Measured, plans[0].Keys; v.CodeName != spec.CodeJoint || !v.Pairs ||
		m.CodeName != "" || m.Pairs || k.CodeName != spec.CodeJoint || !k.Pairs {
		t.Errorf("printed %q, %v, in the manifest %q, %v, planned %q, %v", v.CodeName, v.Pairs, m.CodeName, m.Pairs, k.CodeName, k.Pairs)
	}
	chosen := paired("one/out")
	chosen.Joint.ChooseSpan, chosen.Joint.ChooseAnchor, chosen.Alloc = true, true, bits.AllocSensitivity
	if plans, err = Plans(t.Context(), chosen); err != nil || !slices.Equal(plans[0].Keys.MeasuredChoices, []string{"span", "anchor"}) ||
		!plans[0].Keys.Pairs || plans[0].Keys.Alloc != bits.AllocSensitivity {
		t.Errorf("choices to come: %+v, %v", plans, err)
	}
	if !res.Verify.OK || !(res.Verify.KLD.Mean > 0) {
		t.Errorf("measured %+v", res.Verify.KLD)
	}
	for _, name := range []string{"model.phase.gguf", "phaseconv.sidecar"} {
		s, err := sidecar.Read(t.Context(), at("one/out/"+name))
		if err != nil {
			t.Fatal(err)
		}
		for l, y := range s.Layers {
			for i, g := range y.Groups {
				if (g.Below != nil) != (l == 1) || l == 1 && g.BelowSigns != s.Layers[0].Groups[i].B() {
					t.Errorf("%s: layer %d is given %d signs", name, l, g.BelowSigns)
				}
			}
		}
		s.Layers[0].Groups = s.Layers[1].Groups
		if err := s.WriteGGUF(at("bad.phase.gguf")); err == nil {
			t.Error("a first layer that is given one below is written")
		}
	}
	byUnits(t, paired("two/out"))
	sameTrees(t, at("one/out"), at("two/out"))
}

// TestJointRefuses: what joint codes cannot have.
func TestJointRefuses(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, HeadDim: 32})
	for field, change := range map[string]func(o *Options){
		"Span":              func(o *Options) { o.Joint.Span = 31 },
		"Parts":             func(o *Options) { o.Joint.Parts = "q" },
		"BitsKV of a side":  func(o *Options) { o.Joint.Parts, o.Joint.Bits = "k", 9 },
		"BitsKV":            func(o *Options) { o.Joint.Bits = 0.1 },
		"BitsKV of much":    func(o *Options) { o.Joint.Bits = 17 },
		"BitsKV of nothing": func(o *Options) { o.Joint.Bits = math.NaN() },
		"Code":              func(o *Options) { o.Code = "srht" },
		"Alloc":             func(o *Options) { o.Alloc = "angle" },
		"Exceptions":        func(o *Options) { o.Policy.Exceptions = 1 },
		"CalibrationTokens": func(o *Options) { o.CalibrationTokens, o.Joint.Bits = 48, 8 },
	} {
		o := joint(src, filepath.Join(dir, "out"))
		change(&o)
		field, _, _ := strings.Cut(field, " ")
		var bad *option.Error
		if _, err := Convert(context.Background(), o); !errors.As(err, &bad) || bad.Field != field ||
			strings.Contains(bad.Want, "NaN") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestJointAllot: signs by sensitivity keep to the budget, differ from the even ones, and are the
// same by units; in pairs, with an anchor that measurements chose, too.
func TestJointAllot(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, Layers: 3, HeadDim: 32})
	for name, pairs := range map[string]bool{"alone": false, "pairs": true} {
		t.Run(name, func(t *testing.T) { jointAllot(t, src, filepath.Join(dir, name), pairs) })
	}
}

func jointAllot(t *testing.T, src, dir string, pairs bool) {
	at := func(s string) string { return filepath.Join(dir, s) }
	var said []string
	allotted := func(out string) Options {
		o := joint(src, at(out))
		o.Alloc, o.Report, o.CalibrationTokens = "sensitivity", false, 480
		o.Joint.Span, o.Joint.Pairs, o.Joint.ChooseAnchor = 128, pairs, pairs
		o.Notice = func(text string) { said = append(said, text) }
		return o
	}
	o := allotted("one/out")
	plans, err := Plans(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	converted(t, o)
	s, err := sidecar.Read(t.Context(), at("one/out/model.phase.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	signs, different := 0, false
	for _, g := range s.Groups() {
		signs += g.B()
		different = different || g.B() != s.Groups()[0].B()
	}
	if pairs != slices.ContainsFunc(said, func(s string) bool { return strings.HasPrefix(s, "chosen: span 128, anchor ") }) ||
		pairs != (s.Layers[1].Groups[0].Below != nil) {
		t.Errorf("pairs %v, said %q", pairs, said)
	}
	if signs != plans[0].Keys.Signs || !different {
		t.Errorf("%d signs, planned %d; all alike: %v", signs, plans[0].Keys.Signs, !different)
	}
	byUnits(t, allotted("two/out"))
	sameTrees(t, at("one/out"), at("two/out"))
}

// TestJointOpen: what was left open of joint codes gives way where it cannot be, with a note that
// names no field; what was asked for is refused.
func TestJointOpen(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, HeadDim: 32})
	c, err := checkpoint.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, x := range map[string]struct {
		change func(o *Options)
		recent int // -1: refused
		joint  bool
		note   string
	}{
		"short windows":    {func(o *Options) { o.Joint.OrNoRecent = true }, 0, true, "no recent tokens are kept"},
		"recent asked for": {func(*Options) {}, -1, true, ""},
		"span, code left open": {func(o *Options) {
			o.Joint.OrKeys, o.Joint.OrNoRecent, o.Joint.Span = true, true, 31
		}, 0, false, "head by head: span 31: "},
		"long heads": {func(o *Options) {
			o.Joint.OrKeys, o.Joint.OrNoRecent, o.Joint.Span = true, true, 63
		}, 0, true, "no recent tokens are kept; keys and values of 2 of 2 layers are in groups of their own: layer 0 has 32 and 32"},
		"keys, recent as asked": {func(o *Options) {
			o.Joint.OrKeys, o.Bits, o.Ctx, o.CalibrationTokens = true, 2, 96, 192
		}, JointRecent, false, ""},
	} {
		o := joint(src, src+".out")
		o.Policy.Recent = JointRecent
		x.change(&o)
		err := o.settle(c)
		if x.recent < 0 {
			if err == nil {
				t.Errorf("%s: not refused", name)
			}
			continue
		}
		if err != nil || o.Policy.Recent != x.recent || (o.Joint != nil) != x.joint ||
			!strings.Contains(o.settled, x.note) {
			t.Errorf("%s: recent %d, joint %v, note %q: %v", name, o.Policy.Recent, o.Joint != nil, o.settled, err)
		}
	}
}
