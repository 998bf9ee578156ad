package report

import (
	"fmt"
	"math"
	"strconv"

	"github.com/phaseconv/phaseconv/internal/svg"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/spec"
)

// The three probes. Go draws their first state and computes the numbers of some
// states for readers who cannot turn them; probes.js draws all others with the
// same formulas, and a browser test compares the two.

type probesView struct {
	Shape, Cloud, Scores pair
	ShapeRows            []shapeRow
	CloudRows            []cloudRow
	CloudNote            string
	ScoreRows            []scoreRow
	ScoreNote            string
	ScoreStart, ScoreMax int
	// First outputs, which the script replaces.
	ShapeText, CloudText, ScoreText string
}

type shapeRow struct{ Name, Ratio, Cos, Lost, Angle string }
type cloudRow struct{ Name, Degrees, Cos, Ratio string }
type scoreRow struct{ Code, Bits, RMS, R, KL, Top, Stop string }

func newProbes(v *view, d probeData) *probesView {
	p := &probesView{Shape: shapeChart(v, 0.5), ShapeText: shapeText(0.5)}
	for _, s := range []struct {
		name string
		t    float64
	}{{"Laplace", 1}, {"between", 0.75}, {"Gaussian", 0.5}, {"between", 0.25}, {"uniform", 0}} {
		r := momentRatio(s.t)
		p.ShapeRows = append(p.ShapeRows, shapeRow{s.name, fix(r, 3), fix(math.Sqrt(r), 3), pct(1-r, 1),
			fix(fmath.Acos(math.Sqrt(r))*180/math.Pi, 1) + "°"})
	}
	if c := d.Cloud; c != nil {
		best := bestTurn(c.Points)
		p.Cloud = cloudChart(c, 0, best)
		for _, s := range []struct {
			name string
			deg  float64
		}{{"as stored", 0}, {"SRHT (45°)", 45}, {"learned (best)", best}} {
			cos, ratio := planeBeta(c.Points, s.deg)
			p.CloudRows = append(p.CloudRows, cloudRow{s.name, fix(s.deg, 1) + "°", fix(cos, 4), fix(ratio, 4)})
		}
		p.CloudText = cloudText(c.Points, 0)
		p.CloudNote = fmt.Sprintf("%d held-out keys of layer %d, KV head %d: coordinates %d and %d, centred; the pair in which the best turn gains most over no turn and over 45°.",
			len(c.Points), c.Layer, c.Head, c.Dims[0], c.Dims[1])
	}
	if s := d.Scores; s != nil {
		p.ScoreMax = len(s.Codes) - 1
		p.ScoreStart = p.ScoreMax
		for i, c := range s.Codes {
			st := scoreStats(s.Float, c.Scores, s.Sink)
			p.ScoreRows = append(p.ScoreRows, scoreRow{codeName(c), trim(fix(c.Bits, 2)), fix(st.rms, 3), fix(st.r, 3),
				fix(st.kl, 4), sameTop(st.same), c.Code + " " + trim(fix(c.Bits, 2))})
			if c.Code == v.Code && c.Fitted == "" {
				p.ScoreStart = i
			}
		}
		p.Scores = scoresChart(s, p.ScoreStart)
		p.ScoreText = scoreText(s, p.ScoreStart)
		p.ScoreNote = fmt.Sprintf("Layer %d, KV head %d, query head %d, the query at position %d of a held-out window against its %d keys.",
			s.Layer, s.Head, s.QueryHead, s.Position, len(s.Float))
	}
	return p
}

func codeName(c spec.ScoreCode) string {
	name := c.Code
	if c.Fitted == "" && c.Code != "raw" && c.Code != "srht" && c.Code != "random" {
		name += " (this file)"
	}
	return name
}

func sameTop(same bool) string {
	if same {
		return "stays"
	}
	return "changes"
}

// lanczos holds the coefficients of Lanczos' series for the gamma function, g = 7, n = 9.
var lanczos = [9]float64{
	0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
	12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
}

// lgamma is the logarithm of the gamma function for positive x, the same on
// every machine and in the script.
func lgamma(x float64) float64 {
	if x < 0.5 { // the series wants larger arguments
		return lgamma(x+1) - fmath.Log(x)
	}
	x--
	sum := lanczos[0]
	for i := 1; i < len(lanczos); i++ {
		sum += lanczos[i] / (x + float64(i))
	}
	t := x + 7.5
	return 0.91893853320467274178 + float64((x+0.5)*fmath.Log(t)) - t + fmath.Log(sum)
}

// momentRatio is (E|x|)^2 / E[x^2] of the generalised Gaussian exp(-|x/a|^(1/t)):
// t = 1 is Laplace, 1/2 Gaussian, 0 uniform.
func momentRatio(t float64) float64 {
	if t <= 0 {
		return 0.75
	}
	return fmath.Exp(float64(2*lgamma(2*t)) - lgamma(t) - lgamma(3*t))
}

// density of the generalised Gaussian of unit variance.
func density(t, x float64) float64 {
	x = math.Abs(x)
	if t <= 0 {
		if x <= math.Sqrt(3) {
			return 1 / (2 * math.Sqrt(3))
		}
		return 0
	}
	a := fmath.Exp((lgamma(t) - lgamma(3*t)) / 2)
	e := 0.0
	if x > 0 {
		e = fmath.Exp(min(700, fmath.Log(x/a)/t))
	}
	return fmath.Exp(-e-lgamma(1+t)) / (2 * a)
}

func shapeText(t float64) string {
	r := momentRatio(t)
	name := "between Laplace and Gaussian"
	switch {
	case t == 1:
		name = "Laplace"
	case t == 0.5:
		name = "Gaussian"
	case t == 0:
		name = "uniform"
	case t < 0.5:
		name = "between Gaussian and uniform"
	}
	return fmt.Sprintf("%s: moment ratio %s, one-bit cosine %s, energy lost %s", name, ascii(r, 4), ascii(math.Sqrt(r), 4),
		ascii(100*(1-r), 1)+" %")
}

// ascii is a number as the script writes it.
func ascii(x float64, n int) string {
	if x-x != 0 {
		return missing
	}
	return strconv.FormatFloat(x, 'f', n, 64)
}

// exact is a number for the script to read.
func exact(x float64) string {
	if x-x != 0 {
		return "0"
	}
	return strconv.FormatFloat(x, 'g', 10, 64)
}

// Geometry that the script reads back from data attributes.
const (
	shapeHeight = 330
	shapeBase   = 232 // of the density
	shapeScale  = 280 // units for a density of 1
	shapePoints = 160
)

func densityPath(t, x0, unit float64) string {
	pts := make([][2]float64, 0, shapePoints+1)
	for i := range shapePoints + 1 {
		x := -4 + 8*float64(i)/shapePoints
		pts = append(pts, [2]float64{x0 + float64(unit*x), shapeBase - float64(shapeScale*density(t, x))})
	}
	return svg.PathData(pts, false)
}

// shapeChart draws probe (a): the density, where one bit puts its numbers, and
// on a scale below the moment ratios of this model's keys.
func shapeChart(v *view, t float64) pair {
	return both(func(w float64, narrow bool) string {
		x0, unit := w/2, (w-20)/8
		d := svg.New(w, shapeHeight, "Density of a generalised Gaussian and its one-bit values", "class", "chart",
			"data-x0", x0, "data-unit", unit, "data-base", shapeBase, "data-scale", shapeScale, "data-points", shapePoints)
		d.Line(10, shapeBase, w-10, shapeBase, "axis")
		for k := -3; k <= 3; k++ {
			px := x0 + float64(unit*float64(k))
			d.Line(px, shapeBase, px, shapeBase+4, "axis")
			d.Text(px, shapeBase+16, "middle", "tick", tickText(float64(k)))
		}
		d.Text(w-10, shapeBase+30, "end", "note", "standard deviations")
		path := densityPath(t, x0, unit)
		d.Leaf("path", "d", path+"Z", "class", "area s-code", "data-part", "area")
		d.Leaf("path", "d", path, "class", "curve s-code", "data-part", "curve")
		m := math.Sqrt(momentRatio(t))
		for _, s := range []struct {
			part string
			at   float64
		}{{"left", x0 - float64(unit*m)}, {"right", x0 + float64(unit*m)}} {
			d.Leaf("line", "x1", s.at, "y1", shapeBase, "x2", s.at, "y2", 40, "class", "stem", "data-part", s.part)
		}
		d.Text(x0, 24, "middle", "note", "one bit puts every number on one of the two stems")
		scale := axis{lo: 0.3, hi: 1, a: 30, b: w - 30}
		const y = 292
		d.Leaf("line", "x1", scale.a, "y1", y, "x2", scale.b, "y2", y, "class", "axis")
		for _, m := range []struct {
			v           float64
			name, short string
		}{{0.5, "Laplace", "Lapl."}, {floorMoment, "Gaussian", "Gauss"}, {0.75, "uniform", "unif."}, {1, "signs", "signs"}} {
			px := scale.at(m.v)
			d.Line(px, y-4, px, y+4, "axis")
			name := m.name
			if narrow {
				name = m.short
			}
			d.Text(px, y+18, "middle", "tick", name)
			d.Text(px, y+31, "middle", "tick", trim(fix(m.v, 3)))
		}
		for i := range v.Layers {
			for _, s := range []struct {
				p     *float64
				class string
			}{{v.Layers[i].MomentRatio.Raw, "s-other"}, {v.Layers[i].MomentRatio.SRHT, "s-srht"},
				{v.Layers[i].MomentRatio.Learned, "s-learned"}} {
				if s.p != nil && *s.p > scale.lo {
					px := scale.at(*s.p)
					d.Line(px, y-10, px, y-3, "rug "+s.class)
				}
			}
		}
		d.Leaf("circle", "cx", scale.at(momentRatio(t)), "cy", y, "r", 6, "class", "mean s-code", "data-part", "marker",
			"data-a", scale.a, "data-b", scale.b, "data-lo", scale.lo, "data-hi", scale.hi)
		return d.String()
	})
}

// planeBeta turns points by an angle in degrees and returns the mean one-bit
// cosine and the pooled moment ratio.
func planeBeta(points [][2]float64, deg float64) (cos, ratio float64) {
	sin, co := fmath.SinCos(deg * (math.Pi / 180))
	var sum, abs, sq float64
	n := 0
	for _, p := range points {
		x, y := float64(co*p[0])-float64(sin*p[1]), float64(sin*p[0])+float64(co*p[1])
		r2 := float64(x*x) + float64(y*y)
		if r2 == 0 {
			continue
		}
		n++
		a := math.Abs(x) + math.Abs(y)
		sum += a / math.Sqrt(2*r2)
		abs += a
		sq += r2
	}
	if n == 0 {
		return 0, 0
	}
	m := abs / float64(2*n)
	return sum / float64(n), m * m / (sq / float64(2*n))
}

// bestTurn returns the angle of the highest cosine, in half degrees of a quarter turn.
func bestTurn(points [][2]float64) float64 {
	best, at := -1.0, 0.0
	for k := range 180 {
		if c, _ := planeBeta(points, float64(k)/2); c > best {
			best, at = c, float64(k)/2
		}
	}
	return at
}

func cloudText(points [][2]float64, deg float64) string {
	cos, ratio := planeBeta(points, deg)
	return fmt.Sprintf("turned by %s°: one-bit cosine %s, moment ratio %s", ascii(deg, 1), ascii(cos, 4), ascii(ratio, 4))
}

const (
	cloudSide   = 300.0
	cloudRadius = 132.0
)

// isotropic is the one-bit cosine of keys in a plane with every direction alike:
// 4/pi / sqrt(2).
const isotropic = 0.9003163161571062

// A turnCurve is the one-bit cosine of points in a plane at every turn.
type turnCurve struct {
	points    [][2]float64
	values    []float64 // by half degrees, 0 to 90
	lo, hi    float64   // of the picture
	deg, best float64   // the turn that is set, and the best
}

func newTurnCurve(points [][2]float64, deg, best float64) *turnCurve {
	t := &turnCurve{points: points, values: make([]float64, 181), deg: deg, best: best}
	for k := range t.values {
		t.values[k], _ = planeBeta(points, float64(k)/2)
	}
	t.lo, t.hi = span(0.16, append([]float64{isotropic}, t.values...)...)
	return t
}

// cloudChart draws probe (b): the keys, and beside them the cosine over all angles.
func cloudChart(c *spec.Cloud, deg, best float64) pair {
	var norms float64
	for _, p := range c.Points {
		norms = max(norms, math.Sqrt(float64(p[0]*p[0])+float64(p[1]*p[1])))
	}
	if norms == 0 {
		norms = 1
	}
	unit := cloudRadius / norms
	t := newTurnCurve(c.Points, deg, best)
	return both(func(w float64, narrow bool) string {
		h, x0, left, top := 320.0, 150.0, 372.0, 0.0
		if narrow {
			h, x0, left, top = 560, w/2, 46, 330
		}
		y0 := 158.0
		d := svg.New(w, h, "Keys of one head in a plane, and their one-bit cosine at every turn", "class", "chart",
			"data-x0", x0, "data-y0", y0, "data-unit", exact(unit))
		drawCloud(d, c.Points, x0, y0, unit, deg)
		x := axis{lo: 0, hi: 90, a: left, b: w - 64}
		y := axis{lo: t.lo, hi: t.hi, a: top + 270, b: top + 34}
		if narrow {
			y.a, y.b = 520, 356
		}
		t.draw(d, x, y)
		return d.String()
	})
}

// drawCloud draws the points around x0, y0, turned, on the diagonals of their signs.
func drawCloud(d *svg.Doc, points [][2]float64, x0, y0, unit, deg float64) {
	const r = cloudRadius + 6
	d.Dot(x0, y0, r, "dial", "")
	for _, s := range []float64{-1, 1} {
		q := float64(r * math.Sqrt(0.5))
		d.Line(x0-q, y0-float64(s*q), x0+q, y0+float64(s*q), "target")
	}
	d.Line(x0-cloudRadius-6, y0, x0+cloudRadius+6, y0, "grid")
	d.Line(x0, y0-cloudRadius-6, x0, y0+cloudRadius+6, "grid")
	d.Open("g", "data-part", "points", "class", "points",
		"transform", fmt.Sprintf("rotate(%s %s %s)", svg.Num(-deg), svg.Num(x0), svg.Num(y0)))
	for _, p := range points {
		d.Leaf("circle", "cx", x0+float64(unit*p[0]), "cy", y0-float64(unit*p[1]), "r", 2.2)
	}
	d.Leaf("line", "x1", x0+cloudRadius-4, "y1", y0, "x2", x0+cloudRadius+12, "y2", y0, "class", "handle")
	d.Close()
	d.Text(x0, y0+cloudRadius+26, "middle", "note", "signs lie on the dashed diagonals")
}

// draw draws the curve with its axes, the turns that have names, and a cursor.
func (t *turnCurve) draw(d *svg.Doc, x, y axis) {
	for _, v := range y.ticks(4) {
		d.Line(x.a, y.at(v), x.b, y.at(v), "grid")
		d.Text(x.a-6, y.at(v)+4, "end", "tick", tickText(v))
	}
	for _, v := range []float64{0, 15, 30, 45, 60, 75, 90} {
		d.Line(x.at(v), y.a, x.at(v), y.a+4, "axis")
		d.Text(x.at(v), y.a+17, "middle", "tick", tickText(v)+"°")
	}
	d.Line(x.a, y.a, x.b, y.a, "axis")
	d.Text(x.a-40, y.b-14, "start", "name", "one-bit cosine in this plane")
	d.Line(x.a, y.at(isotropic), x.b, y.at(isotropic), "floor")
	d.Text(x.b+5, y.at(isotropic)+4, "start", "note", "round 0.900")
	var pts [][2]float64
	for k, v := range t.values {
		pts = append(pts, [2]float64{x.at(float64(k) / 2), y.at(v)})
	}
	d.Path(pts, "curve s-other")
	for _, m := range []struct {
		deg         float64
		name, class string
	}{{45, "SRHT", "s-srht"}, {t.best, "learned", "s-learned"}} {
		v, _ := planeBeta(t.points, m.deg)
		d.Dot(x.at(m.deg), y.at(v), 4.5, "mean "+m.class, "")
		anchor, dx := "middle", 0.0
		if m.deg < 8 {
			anchor, dx = "start", 2
		} else if m.deg > 82 {
			anchor, dx = "end", -2
		}
		dy := -9.0
		if m.name == "SRHT" { // below, to keep the names apart
			dy = 19
		}
		d.Text(x.at(m.deg)+dx, y.at(v)+dy, anchor, "label "+m.class, m.name)
	}
	v, _ := planeBeta(t.points, t.deg)
	d.Leaf("circle", "cx", x.at(t.deg), "cy", y.at(v), "r", 6.5, "class", "cursor", "data-part", "cursor",
		"data-xa", x.a, "data-xb", x.b, "data-ya", y.a, "data-yb", y.b,
		"data-lo", exact(t.lo), "data-hi", exact(t.hi))
}

// stats of coded scores against float ones.
type stats struct {
	shift, rms, r, kl float64
	same              bool
}

// scoreStats: the shift is the mean difference over coded keys, which softmax
// hardly sees; rms is what remains, kl the divergence of the attention weights.
func scoreStats(float, coded []float64, sink int) stats {
	var s stats
	n := 0.0
	var mx, my float64
	for i := sink; i < len(float); i++ {
		s.shift += coded[i] - float[i]
		mx += float[i]
		my += coded[i]
		n++
	}
	if n == 0 {
		return stats{r: 1, same: true}
	}
	s.shift, mx, my = s.shift/n, mx/n, my/n
	var ss, xx, yy, xy float64
	for i := sink; i < len(float); i++ {
		e := coded[i] - float[i] - s.shift
		ss += float64(e * e)
		x, y := float[i]-mx, coded[i]-my
		xx += float64(x * x)
		yy += float64(y * y)
		xy += float64(x * y)
	}
	s.rms = math.Sqrt(ss / n)
	if xx > 0 && yy > 0 {
		s.r = xy / math.Sqrt(float64(xx*yy))
	}
	p, q := softmax(float), softmax(coded)
	top, ctop := 0, 0
	for i := range p {
		if p[i] > 0 && q[i] > 0 {
			s.kl += float64(p[i] * (fmath.Log(p[i]) - fmath.Log(q[i])))
		}
		if p[i] > p[top] {
			top = i
		}
		if q[i] > q[ctop] {
			ctop = i
		}
	}
	s.kl = max(0, s.kl)
	s.same = top == ctop
	return s
}

func softmax(z []float64) []float64 {
	m := math.Inf(-1)
	for _, v := range z {
		m = max(m, v)
	}
	p := make([]float64, len(z))
	var sum float64
	for i, v := range z {
		p[i] = fmath.Exp(v - m)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

func scoreText(s *spec.Scores, i int) string {
	c := s.Codes[i]
	st := scoreStats(s.Float, c.Scores, s.Sink)
	return fmt.Sprintf("%s, %s bits: score error %s, correlation %s, attention KL %s, strongest key %s",
		codeName(c), ascii(c.Bits, 1), ascii(st.rms, 4), ascii(st.r, 4), ascii(st.kl, 4), sameTop(st.same))
}

// scoresChart draws probe (c): coded against float scores, and the attention
// weights of both, float above and coded below.
func scoresChart(s *spec.Scores, k int) pair {
	coded := s.Codes[k].Scores
	st := scoreStats(s.Float, coded, s.Sink)
	lo, hi := span(0.06, s.Float...)
	p, q := softmax(s.Float), softmax(coded)
	most := 0.0
	for i := range p {
		most = max(most, p[i], q[i])
	}
	return both(func(w float64, narrow bool) string {
		h, left, top, wide := 330.0, 392.0, 0.0, w-14
		if narrow {
			h, left, top, wide = 600, 16, 330, w-8
		}
		x := axis{lo: lo, hi: hi, a: 46, b: 316}
		y := axis{lo: lo, hi: hi, a: 290, b: 30}
		if narrow {
			x.b = w - 14
		}
		mid, half := top+160.0, 118.0
		step := (wide - left) / float64(len(s.Float))
		d := svg.New(w, h, "Scores of one query: coded against float, and the attention weights of both", "class", "chart",
			"data-ya", y.a, "data-yb", y.b, "data-lo", exact(lo), "data-hi", exact(hi),
			"data-left", left, "data-step", exact(step), "data-mid", mid, "data-half", half,
			"data-ymin", y.b-16, "data-ymax", y.a+8)
		for _, t := range x.ticks(5) {
			d.Line(x.at(t), y.a, x.at(t), y.b, "grid")
			d.Line(x.a, y.at(t), x.b, y.at(t), "grid")
			d.Text(x.at(t), y.a+17, "middle", "tick", tickText(t))
			d.Text(x.a-6, y.at(t)+4, "end", "tick", tickText(t))
		}
		d.Line(x.at(lo), y.at(lo), x.at(hi), y.at(hi), "target")
		d.Text(4, 14, "start", "name", "coded score (mean shift taken out)")
		d.Text(x.b, y.a+34, "end", "name", "float score")
		d.Open("g", "data-part", "points", "class", "points")
		for i, f := range s.Float {
			d.Leaf("circle", "cx", x.at(f), "cy", max(y.b-16, min(y.a+8, y.at(coded[i]-st.shift))), "r", 2)
		}
		d.Close()
		d.Line(left, mid, wide, mid, "axis")
		d.Text(left, top+14, "start", "name", "attention weight by key (square-root scale)")
		d.Text(wide, mid-half-4, "end", "label s-other", "float")
		d.Text(wide, mid+half+14, "end", "label s-code", "coded")
		d.Leaf("path", "d", bars(p, left, step, mid, -half, most), "class", "weights s-other", "stroke-width",
			max(0.8, step*0.8), "data-part", "float")
		d.Leaf("path", "d", bars(q, left, step, mid, half, most), "class", "weights s-code", "stroke-width",
			max(0.8, step*0.8), "data-part", "weights")
		d.Text(left, mid+half+28, "start", "note", "first key")
		d.Text(wide, mid+half+28, "end", "note", "latest key")
		return d.String()
	})
}

// bars is a path of one vertical stroke for each weight.
func bars(p []float64, left, step, mid, half, most float64) string {
	out := ""
	for i, v := range p {
		out += "M" + svg.Num(left+float64(step*(float64(i)+0.5))) + " " + svg.Num(mid) + "V" +
			svg.Num(mid+float64(half*min(1, math.Sqrt(v/most))))
	}
	return out
}
