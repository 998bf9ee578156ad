package report

import (
	"html/template"
	"math"
	"strconv"

	"github.com/phaseconv/phaseconv/internal/svg"
	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// A pair is one picture for wide and one for narrow pages; CSS shows one of them.
type pair struct{ Wide, Narrow template.HTML }

// both draws a picture at two widths.
func both(draw func(w float64, narrow bool) string) pair {
	return pair{template.HTML(draw(720, false)), template.HTML(draw(360, true))}
}

// An axis maps values to coordinates.
type axis struct {
	lo, hi float64 // values
	a, b   float64 // coordinates
	log    bool
	whole  bool // values are whole numbers
}

func (x axis) at(v float64) float64 {
	lo, hi := x.lo, x.hi
	if x.log {
		v, lo, hi = fmath.Log(max(v, 1e-300)), fmath.Log(lo), fmath.Log(hi)
	}
	if hi == lo {
		return (x.a + x.b) / 2
	}
	return x.a + float64((v-lo)/(hi-lo)*(x.b-x.a)) // the conversion keeps machines from fusing
}

// ticks returns round values in the axis, about n of them.
func (x axis) ticks(n int) []float64 {
	if x.log {
		return logTicks(x.lo, x.hi, n)
	}
	span := x.hi - x.lo
	if !(span > 1e-300) || math.IsInf(span, 0) {
		return []float64{x.lo}
	}
	step := 1.0
	for step > span/float64(n) {
		step /= 10
	}
	for step*10 <= span/float64(n) {
		step *= 10
	}
	for _, m := range []float64{1, 2, 2.5, 5, 10} {
		if x.whole && step*m != math.Trunc(step*m) {
			continue
		}
		if span/(step*m) <= float64(n)+0.5 {
			step *= m
			break
		}
	}
	var out []float64
	for k := math.Ceil(x.lo/step - 1e-9); float64(k*step) <= x.hi+float64(step*1e-9) && len(out) < 50; k++ {
		out = append(out, float64(k*step)+0) // no negative zero
	}
	return out
}

// logTicks are powers of ten, with 2 and 5 between them when there are few.
func logTicks(lo, hi float64, n int) []float64 {
	var all, fine, tens []float64
	for e := -12; e <= 15; e++ {
		p, _ := strconv.ParseFloat("1e"+strconv.Itoa(e), 64)
		for _, m := range []float64{1, 1.5, 2, 3, 5, 7} {
			if v := m * p; v >= lo*(1-1e-9) && v <= hi*(1+1e-9) {
				fine = append(fine, v)
				if m != 1 && m != 2 && m != 5 {
					continue
				}
				all = append(all, v)
				if m == 1 {
					tens = append(tens, v)
				}
			}
		}
	}
	switch {
	case len(all) < 3 && len(fine) <= n:
		return fine
	case len(all) <= n || len(tens) < 2:
		return all
	}
	return tens
}

// tickText writes a tick's value without needless digits.
func tickText(v float64) string {
	if a := math.Abs(v); a >= 1000 {
		return comma(int64(math.Round(v)))
	}
	s := strconv.FormatFloat(v, 'g', 4, 64)
	f, _ := strconv.ParseFloat(s, 64)
	s = strconv.FormatFloat(f, 'f', -1, 64)
	if len(s) > 0 && s[0] == '-' {
		return "−" + s[1:]
	}
	return s
}

// A chart is a picture with two axes.
type chart struct {
	*svg.Doc
	x, y   axis
	w, h   float64
	narrow bool
}

// Margins around the plotting area.
const (
	marginTop    = 26
	marginBottom = 40
	marginRight  = 14
)

// A plot says what a chart is of.
type plot struct {
	height         float64
	left, right    float64 // margins: room for the labels of y, and for names of lines
	label          string  // for readers of screens
	xTitle, yTitle string
	x, y           axis // of values; newChart sets the coordinates
}

// newChart draws frame, grid and titles.
func newChart(w float64, narrow bool, p plot) *chart {
	h := p.height
	c := &chart{Doc: svg.New(w, h, p.label, "class", "chart"), x: p.x, y: p.y, w: w, h: h, narrow: narrow}
	c.x.a, c.x.b = p.left, w-p.right
	c.y.a, c.y.b = h-marginBottom, marginTop
	nx, ny := 8, 5
	if narrow {
		nx = 4
	}
	for _, v := range c.y.ticks(ny) {
		py := c.y.at(v)
		c.Line(c.x.a, py, c.x.b, py, "grid")
		c.Text(c.x.a-6, py+4, "end", "tick", tickText(v))
	}
	for _, v := range c.x.ticks(nx) {
		px := c.x.at(v)
		c.Line(px, c.y.a, px, c.y.a+4, "axis")
		c.Text(px, c.y.a+17, "middle", "tick", tickText(v))
	}
	c.Line(c.x.a, c.y.a, c.x.b, c.y.a, "axis")
	c.Text(0, 12, "start", "name", p.yTitle)
	c.Text(c.x.b, h-4, "end", "name", p.xTitle)
	return c
}

func (c *chart) px(x, y float64) [2]float64 { return [2]float64{c.x.at(x), c.y.at(y)} }

// whisker draws a vertical error bar of one standard error each way.
func (c *chart) whisker(x, y, err float64, class string) {
	lo := y - err
	if c.y.log {
		lo = max(lo, c.y.lo)
	}
	px := c.x.at(x)
	c.Line(px, c.y.at(max(lo, c.y.lo)), px, c.y.at(min(y+err, c.y.hi)), class)
}

// labels places names beside points so that none covers a point or another name.
type labels struct{ boxes [][4]float64 }

// keep marks a point as taken.
func (l *labels) keep(x, y float64) {
	l.boxes = append(l.boxes, [4]float64{x - 5, y - 5, x + 5, y + 5})
}

// put writes a name at the first free place around a point.
func (l *labels) put(c *chart, x, y float64, name string) {
	wide := 6.6 * float64(len([]rune(name))) // of the page's 12 px type
	for ring := range 12 {
		dy := float64((ring+1)/2) * 9
		if ring%2 == 1 {
			dy = -dy
		}
		for _, right := range []bool{true, false} {
			a := x + 9
			if !right {
				a = x - 9 - wide
			}
			box := [4]float64{a, y + dy - 6, a + wide, y + dy + 6}
			if a < c.x.a || a+wide > c.x.b || box[1] < c.y.b || box[3] > c.y.a || l.hits(box) {
				continue
			}
			l.boxes = append(l.boxes, box)
			if dy < -10 || dy > 10 { // a line leads from the point to its name
				c.Line(x, y, x+(a-x)/2, y+dy, "joint")
			}
			if right {
				c.Text(a, y+dy+4, "start", "label", name)
			} else {
				c.Text(a+wide, y+dy+4, "end", "label", name)
			}
			return
		}
	}
	// Nowhere: the point keeps its title, and the table below has the numbers.
}

func (l *labels) hits(b [4]float64) bool {
	for _, o := range l.boxes {
		if b[0] < o[2] && o[0] < b[2] && b[1] < o[3] && o[1] < b[3] {
			return true
		}
	}
	return false
}

// span returns the range of values, widened by a share of it at both ends.
func span(pad float64, values ...float64) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if v-v == 0 {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	if lo > hi {
		return 0, 1
	}
	d := float64((hi - lo) * pad)
	if d == 0 {
		d = max(math.Abs(hi)*pad, 1e-9)
	}
	return lo - d, hi + d
}
