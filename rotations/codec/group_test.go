package codec_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// anyCode is a frame of b signs for vectors of d numbers, with a metric that is not the identity.
func anyCode(t testing.TB, r *rand.Rand, d, b int) *codec.Code {
	t.Helper()
	decode := keydata.Normal(r, b*d)
	encode := slices.Clone(decode)
	for i := range encode {
		encode[i] *= 1 + float32(i%d%3)/2
	}
	c, err := codec.New(codec.Frame, d, b, keydata.Normal(r, d), decode, encode)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func joint(t testing.TB, r *rand.Rand, heads, dk, dv, b int, gains []float32) *codec.Group {
	t.Helper()
	spans, err := codec.Spans(heads, dk, dv, heads*(dk+dv), true, true)
	if err != nil || len(spans) != 1 {
		t.Fatal(spans, err)
	}
	g, err := codec.NewGroup(anyCode(t, r, heads*(dk+dv), b), spans[0], dk, dv, gains)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestKeyGroup: the keys of one head as a group have the bits of the code alone.
func TestKeyGroup(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const d, b, n = 16, 24, 33
	c, err := anyCode(t, r, d, b).WithGain(1.25)
	if err != nil {
		t.Fatal(err)
	}
	g, err := codec.KeyGroup(c, 3)
	if err != nil {
		t.Fatal(err)
	}
	keys := keydata.Keyish(r, n, d)
	words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
	encode(t, c, keys, words, alpha)
	c.DecodeKeys(hat, words, alpha)
	words2, alpha2, hat2 := make([]uint32, n*g.Words()), make([]float32, n), make([]float32, n*d)
	if err := g.EncodeRows(t.Context(), keys, words2, alpha2); err != nil {
		t.Fatal(err)
	}
	g.DecodeRows(hat2, words2, alpha2)
	if !slices.Equal(words, words2) || !slices.Equal(alpha, alpha2) || !slices.Equal(hat, hat2) {
		t.Error("bits differ")
	}
	if g.Parts[0].String() != "k3" || !slices.Equal(g.PartDecode(0), c.Decode) || !slices.Equal(g.PartMean(0), c.Mean) {
		t.Error("not the group of the keys of head 3")
	}
}

// TestGroupGains: gains change what signs stand for, part by part, and neither signs nor scales.
func TestGroupGains(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const heads, dk, dv, b, n = 2, 6, 4, 16, 9
	gains := []float32{1.25, 0.5, 3, 1.1}
	g := joint(t, r, heads, dk, dv, b, gains)
	plain, err := codec.NewGroup(g.Code, g.Parts, dk, dv, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := g.D()
	rows := keydata.Normal(r, n*d)
	words, alpha := make([]uint32, n*g.Words()), make([]float32, n)
	words2, alpha2 := make([]uint32, n*g.Words()), make([]float32, n)
	if err := g.EncodeRows(t.Context(), rows, words, alpha); err != nil {
		t.Fatal(err)
	}
	if err := plain.EncodeRows(t.Context(), rows, words2, alpha2); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(words, words2) || !slices.Equal(alpha, alpha2) {
		t.Error("gains change signs or scales")
	}
	hat := make([]float32, n*d)
	g.DecodeRows(hat, words, alpha)
	for i, p := range g.Parts {
		from, to := g.Range(i)
		m := g.PartDecode(i)
		if len(m) != b*(to-from) || to-from != g.Dim(p) {
			t.Fatal(len(m), from, to)
		}
		for k := range n {
			for j := from; j < to; j++ {
				var sum float32
				for s := range b {
					v := g.Code.Decode[s*d+j] * gains[i]
					if v != m[s*(to-from)+j-from] {
						t.Fatalf("part %s: PartDecode is not gain times matrix", p)
					}
					if words[k]>>s&1 == 0 {
						v = -v
					}
					sum += v
				}
				if want := g.Code.Mean[j] + float32(alpha[k]*sum); want != hat[k*d+j] {
					t.Fatalf("part %s, token %d: decoded %v, want %v", p, k, hat[k*d+j], want)
				}
			}
		}
	}
}

// TestValueSum: a weighted sum over coded values is the mean times the sum of weights and
// the part's matrix times the sums over signs.
func TestValueSum(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const n, b, dv = 40, 32, 8
	g := joint(t, r, 2, 4, dv, b, []float32{1, 1, 2, 3})
	d := g.D()
	words, alpha, hat := make([]uint32, n*g.Words()), make([]float32, n), make([]float32, n*d)
	if err := g.EncodeRows(t.Context(), keydata.Normal(r, n*d), words, alpha); err != nil {
		t.Fatal(err)
	}
	g.DecodeRows(hat, words, alpha)
	part := g.Index(codec.Part{Head: 1, Value: true})
	from, to := g.Range(part)
	m, mean := g.PartDecode(part), g.PartMean(part)
	weights := keydata.Uniform(r, n)
	var total float64
	sums := make([]float64, b)
	for k, w := range weights {
		total += float64(w)
		for i := range sums {
			s := float64(w) * float64(alpha[k])
			if words[k]>>i&1 == 0 {
				s = -s
			}
			sums[i] += s
		}
	}
	for j := from; j < to; j++ {
		var direct, bound float64
		for k, w := range weights {
			direct += float64(w) * float64(hat[k*d+j])
			bound += math.Abs(float64(w)) * (math.Abs(float64(mean[j-from])) + math.Abs(float64(hat[k*d+j])))
		}
		fast := total * float64(mean[j-from])
		for i, s := range sums {
			fast += s * float64(m[i*dv+j-from])
		}
		// The decoded values are float32 sums of b numbers, rounded twice more.
		if tol := bound * (b + 2) / (1 << 24); math.Abs(direct-fast) > tol {
			t.Errorf("dimension %d: %g decoded, %g by sums over signs; tolerance %.2g", j, direct, fast, tol)
		}
	}
}

func TestGroupConcat(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const heads, dk, dv, n = 3, 4, 2, 5
	g := joint(t, r, heads, dk, dv, 8, nil)
	of, back := map[codec.Part][]float32{}, map[codec.Part][]float32{}
	for _, p := range g.Parts {
		of[p], back[p] = keydata.Normal(r, n*g.Dim(p)), make([]float32, n*g.Dim(p))
	}
	rows := make([]float32, n*g.D())
	g.Concat(rows, func(p codec.Part) []float32 { return of[p] })
	if got := rows[2*g.D()+heads*dk+dv]; got != of[codec.Part{Head: 1, Value: true}][2*dv] {
		t.Errorf("value of head 1 of token 2 begins with %v", got)
	}
	g.Split(rows, func(p codec.Part) []float32 { return back[p] })
	for p, x := range of {
		if !slices.Equal(x, back[p]) {
			t.Errorf("part %s comes back changed", p)
		}
	}
}

// TestGroupTo: in another pair layout, keys move and values stay.
func TestGroupTo(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	const heads, dk, dv = 2, 8, 6
	g := joint(t, r, heads, dk, dv, 16, []float32{1, 2, 3, 4})
	moved, err := g.To(rope.Half, rope.Interleaved)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range g.Parts {
		a, b := g.PartMean(i), moved.PartMean(i)
		for j := range a {
			to := j
			if !p.Value {
				to = rope.Half.Index(rope.Interleaved, j, dk)
			}
			if a[j] != b[to] || g.PartDecode(i)[3*len(a)+j] != moved.PartDecode(i)[3*len(a)+to] {
				t.Fatalf("part %s: dimension %d did not move to %d", p, j, to)
			}
		}
	}
	if back, err := moved.To(rope.Interleaved, rope.Half); err != nil || !slices.Equal(back.Code.Encode, g.Code.Encode) {
		t.Error("there and back is another group", err)
	}
}

func TestParts(t *testing.T) {
	for _, text := range []string{"k0", "v4095", "k17"} {
		if p, err := codec.ParsePart(text); err != nil || p.String() != text {
			t.Errorf("%s: %v %v", text, p, err)
		}
	}
	for _, text := range []string{"", "k", "x0", "k01", "k-1", "v4096", "k+1", "k1 ", "v99999999999"} {
		if p, err := codec.ParsePart(text); err == nil {
			t.Errorf("%q is %v", text, p)
		}
	}
}

func TestGroupRefuses(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	code := anyCode(t, r, 8, 8)
	k0, k1, v0 := codec.Part{}, codec.Part{Head: 1}, codec.Part{Value: true}
	for name, x := range map[string]struct {
		parts  []codec.Part
		dk, dv int
		gains  []float32
	}{
		"none":             {nil, 8, 8, nil},
		"order":            {[]codec.Part{v0, k0}, 4, 4, nil},
		"twice":            {[]codec.Part{k0, k0}, 4, 4, nil},
		"length":           {[]codec.Part{k0, k1}, 8, 8, nil},
		"empty part":       {[]codec.Part{k0, v0}, 8, 0, nil},
		"too few gains":    {[]codec.Part{k0, k1}, 4, 4, []float32{1}},
		"gain 0":           {[]codec.Part{k0, k1}, 4, 4, []float32{1, 0}},
		"gain is not one":  {[]codec.Part{k0, k1}, 4, 4, []float32{1, float32(math.NaN())}},
		"gain beyond most": {[]codec.Part{k0, k1}, 4, 4, []float32{17, 1}},
		"head":             {[]codec.Part{k0, {Head: 4096}}, 4, 4, nil},
	} {
		if _, err := codec.NewGroup(code, x.parts, x.dk, x.dv, x.gains); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	huge := anyCode(t, r, 8, 8)
	huge.Decode[9] = math.MaxFloat32
	if _, err := codec.NewGroup(huge, []codec.Part{k0, k1}, 4, 4, []float32{2, 1}); err == nil {
		t.Error("a number out of range: no error")
	}
}

func TestCheckLayer(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	group := func(dk, dv int, parts ...string) *codec.Group {
		var ps []codec.Part
		d := 0
		for _, s := range parts {
			p, err := codec.ParsePart(s)
			if err != nil {
				t.Fatal(err)
			}
			if d += dk; p.Value {
				d += dv - dk
			}
			ps = append(ps, p)
		}
		g, err := codec.NewGroup(anyCode(t, r, d, 8), ps, dk, dv, nil)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	for i, x := range []struct {
		groups []*codec.Group
		heads  int
		ok     bool
	}{
		{nil, 2, true},
		{[]*codec.Group{group(4, 2, "k0", "k1")}, 2, true},
		{[]*codec.Group{group(4, 2, "v0"), group(4, 2, "v1", "v2")}, 3, true},
		{[]*codec.Group{group(4, 2, "k0", "v0"), group(4, 2, "k1", "v1")}, 2, true},
		{[]*codec.Group{group(4, 2, "k0", "v0"), group(4, 2, "k1")}, 2, false},
		{[]*codec.Group{group(4, 2, "k0")}, 2, false},
		{[]*codec.Group{group(4, 2, "k0", "k1"), group(4, 2, "k1")}, 2, false},
		{[]*codec.Group{group(4, 2, "k0", "k1", "k2")}, 2, false},
		{[]*codec.Group{group(4, 2, "k0", "k1"), group(4, 4, "v0", "v1")}, 2, false},
	} {
		if err := codec.CheckLayer(x.groups, x.heads); (err == nil) != x.ok {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

func TestSpans(t *testing.T) {
	for _, x := range []struct {
		heads, dk, dv, limit int
		keys, values         bool
		want                 string
	}{
		{3, 64, 64, 512, true, true, "[[k0 k1 k2 v0 v1 v2]]"},
		{3, 64, 64, 512, true, false, "[[k0 k1 k2]]"},
		{3, 64, 64, 512, false, true, "[[v0 v1 v2]]"},
		{8, 128, 128, 512, true, true, "[[k0 k1 v0 v1] [k2 k3 v2 v3] [k4 k5 v4 v5] [k6 k7 v6 v7]]"},
		{5, 128, 128, 512, false, true, "[[v0 v1 v2] [v3 v4]]"},
		{6, 128, 128, 512, true, false, "[[k0 k1 k2] [k3 k4 k5]]"},
		{1, 256, 256, 512, true, true, "[[k0 v0]]"},
		{2, 192, 128, 320, true, true, "[[k0 v0] [k1 v1]]"},
		{1, 512, 512, 512, true, true, "[]"},
		{1, 64, 64, 512, false, false, "[]"},
		{1, 64, 64, 2049, true, true, "[]"},
	} {
		got, err := codec.Spans(x.heads, x.dk, x.dv, x.limit, x.keys, x.values)
		if fmt.Sprint(got) != x.want || (err != nil) != (x.want == "[]") {
			t.Errorf("%+v: %v, %v", x, got, err)
		}
	}
}

// TestGiven: what a group is given has to fit it, and is not given anything itself.
func TestGiven(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 1))
	lower, g := joint(t, r, 2, 8, 8, 24, nil), joint(t, r, 2, 8, 8, 40, nil)
	matrix := keydata.Normal(r, 24*g.D())
	given, err := g.Given(24, matrix)
	if err != nil {
		t.Fatal(err)
	}
	if err := codec.CheckGiven(given, lower); err != nil {
		t.Error(err)
	}
	part := given.PartBelow(2)
	for k := range 24 {
		for j := range 8 {
			if part[k*8+j] != matrix[k*g.D()+16+j] {
				t.Fatalf("sign %d, dimension %d of a part is another", k, j)
			}
		}
	}
	twice, err := joint(t, r, 2, 8, 8, 24, nil).Given(24, matrix)
	if err != nil {
		t.Fatal(err)
	}
	for name, below := range map[string]*codec.Group{
		"other signs": joint(t, r, 2, 8, 8, 32, nil), "other lengths": joint(t, r, 2, 4, 12, 24, nil),
		"other parts": joint(t, r, 1, 16, 16, 24, nil), "one that is given another": twice,
	} {
		if err := codec.CheckGiven(given, below); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := g.Given(24, matrix[1:]); err == nil {
		t.Error("a number too few is accepted")
	}
	matrix[5] = float32(math.Inf(1))
	if _, err := g.Given(24, matrix); err == nil {
		t.Error("an infinite number is accepted")
	}
}
