package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/phaseconv/phaseconv/internal/svg"
	"github.com/phaseconv/phaseconv/spec"
)

// collapse is the angle above which the method's source calls a layer fragmented, in degrees.
const collapse = 44

// floorAngle is that of Gaussian keys, arccos sqrt(2/pi), in degrees.
const floorAngle = 37.07

// stripChart shows every head's cosine, code by code, with the mean of each.
func stripChart(layers []spec.Layer) pair {
	var values []float64
	type row struct {
		title string
		x     []float64
	}
	var rows []row
	for _, c := range columns {
		r := row{title: c.title}
		for i := range layers {
			if p := c.get(&layers[i].Cos1bit); p != nil {
				r.x = append(r.x, *p)
			}
		}
		if len(r.x) > 0 {
			rows = append(rows, r)
			values = append(values, r.x...)
		}
	}
	if len(rows) == 0 {
		return pair{}
	}
	lo, hi := span(0.04, append(values, floorCos)...)
	return both(func(w float64, narrow bool) string {
		const pitch = 30
		h := float64(len(rows))*pitch + 62
		d := svg.New(w, h, fmt.Sprintf("Cosine of keys and their one-bit images, %d heads, by code", len(layers)), "class",
			"chart")
		x := axis{lo: lo, hi: min(hi, 1), a: 78, b: w - 52}
		base := h - 36
		nx := 8
		if narrow {
			nx = 4
		}
		for _, t := range x.ticks(nx) {
			d.Line(x.at(t), 22, x.at(t), base, "grid")
			d.Text(x.at(t), base+16, "middle", "tick", tickText(t))
		}
		d.Line(x.at(floorCos), 16, x.at(floorCos), base, "floor")
		d.Text(x.at(floorCos), 11, "middle", "note", "Gaussian 0.798")
		for i, r := range rows {
			y := 22 + pitch*(float64(i)+0.5)
			class := "s-other"
			switch r.title {
			case "Code":
				class = "s-code"
			case "Learned":
				class = "s-learned"
			case "SRHT":
				class = "s-srht"
			}
			d.Text(70, y+4, "end", "row", r.title)
			var mean float64
			for _, v := range r.x {
				d.Line(x.at(v), y-7, x.at(v), y+7, "rug "+class)
				mean += v / float64(len(r.x))
			}
			d.Dot(x.at(mean), y, 5, "mean "+class, fmt.Sprintf("%s: mean %s", r.title, fix(mean, 4)))
			d.Text(w-4, y+4, "end", "row", fix(mean, 3))
		}
		d.Text(w-4, h-4, "end", "name", "cosine, held out; a tick is a head, a dot the mean")
		return d.String()
	})
}

// at returns the value of a curve at a step: that of the last point up to it.
func at(curve [][2]float64, step float64) float64 {
	v := curve[0][1]
	for _, p := range curve {
		if p[0] > step {
			break
		}
		v = p[1]
	}
	return v
}

// A fitSeries is what heads do under one code, step by step of their fits.
type fitSeries struct {
	code  string
	mean  [][2]float64        // step, and the mean of heads
	band  [][2]float64        // outline of the middle 80 % of heads
	first map[float64]float64 // threshold, and the first step at which the mean reaches it
	held  float64             // mean of heads on held-out keys, 0 where it cannot be compared
}

// newFitSeries sums up the curves of a code's heads.
func newFitSeries(code string, curves [][][2]float64, layers []spec.Layer) fitSeries {
	s := fitSeries{code: code, first: map[float64]float64{}}
	// The steps at which any head has a point, of its own code.
	steps := map[float64]bool{}
	for _, c := range curves {
		for _, p := range c {
			steps[p[0]] = true
		}
	}
	var top, bottom [][2]float64
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		var x []float64
		for _, c := range curves {
			x = append(x, at(c, step))
		}
		sort.Float64s(x)
		var mean float64
		for _, v := range x {
			mean += v / float64(len(x))
		}
		s.mean = append(s.mean, [2]float64{step, mean})
		bottom = append(bottom, [2]float64{step, x[len(x)/10]})
		top = append(top, [2]float64{step, x[len(x)-1-len(x)/10]})
		for _, t := range thresholds {
			if _, ok := s.first[t]; !ok && mean >= t {
				s.first[t] = step
			}
		}
	}
	slices.Reverse(bottom)
	s.band = append(top, bottom...)
	if code == "learned" { // a frame's curve is in the metric of its fit and cannot be compared
		s.held, _ = meanOf(layers, func(c *spec.Columns) *float64 { return c.Learned })
	}
	return s
}

// meanOf returns the mean cosine over the heads that have one, and false if none has.
func meanOf(layers []spec.Layer, get func(*spec.Columns) *float64) (mean float64, ok bool) {
	n := 0
	for i := range layers {
		if p := get(&layers[i].Cos1bit); p != nil {
			mean += *p
			n++
		}
	}
	if n == 0 {
		return 0, false
	}
	return mean / float64(n), true
}

// draw puts the series on the chart of fits.
func (s *fitSeries) draw(c *chart) {
	class := "s-code"
	if s.code == "learned" {
		class = "s-learned"
	}
	var band, mean [][2]float64
	for _, p := range s.band {
		band = append(band, c.px(p[0], p[1]))
	}
	for _, p := range s.mean {
		mean = append(mean, c.px(p[0], p[1]))
	}
	c.Leaf("path", "d", svg.PathData(band, true), "class", "band "+class)
	c.Path(mean, "curve "+class)
	end := mean[len(mean)-1]
	name := s.code
	if s.code == "frame" {
		name += ", in the metric of the fit"
	}
	if end[0] < (c.x.a+c.x.b)/2 {
		c.Text(end[0]+8, end[1]+4, "start", "label "+class, name)
	} else {
		c.Text(end[0]-2, end[1]-8, "end", "label "+class, name)
	}
	for _, t := range thresholds {
		if step, ok := s.first[t]; ok {
			c.Dot(c.x.at(step), c.y.at(at(s.mean, step)), 4, "cross "+class,
				fmt.Sprintf("%s: mean of heads crosses %s at step %s", s.code, fix(t, 2), tickText(step)))
		}
	}
	if s.held > 0 {
		py := c.y.at(s.held)
		x := end[0]
		c.Path([][2]float64{{x - 7, py}, {x, py - 5}, {x + 7, py}, {x, py + 5}, {x - 7, py}}, "held "+class)
	}
}

// level draws a horizontal line with a note at its right end.
func (c *chart) level(y float64, class, note string) {
	py := c.y.at(y)
	c.Line(c.x.a, py, c.x.b, py, class)
	c.Text(c.x.b+5, py+4, "start", "note", note)
}

// convergeChart shows mean and the range of the middle 80 % of heads by step.
func convergeChart(codes []string, byCode map[string][][][2]float64, layers []spec.Layer) pair {
	last, least, most := 1.0, floorCos, 0.93
	var all []fitSeries
	for _, code := range codes {
		for _, c := range byCode[code] {
			last = max(last, c[len(c)-1][0])
		}
		s := newFitSeries(code, byCode[code], layers)
		for _, p := range s.band {
			least, most = min(least, p[1]), max(most, p[1])
		}
		all = append(all, s)
	}
	srht, known := meanOf(layers, func(c *spec.Columns) *float64 { return c.SRHT })
	if known {
		least = min(least, srht)
	}
	lo, hi := span(0.05, least, most)
	return both(func(w float64, narrow bool) string {
		right := 96.0
		if narrow {
			right = 62
		}
		c := newChart(w, narrow, plot{height: 320, left: 44, right: right,
			label:  "Cosine on the fitted keys by step of the fit",
			xTitle: "step", yTitle: "cosine on fitted keys",
			x: axis{lo: 0, hi: last, whole: true}, y: axis{lo: lo, hi: min(1, hi)}})
		for _, t := range thresholds {
			c.level(t, "threshold", fix(t, 2))
		}
		if known {
			c.level(srht, "floor", "SRHT "+fix(srht, 3))
		}
		for i := range all {
			all[i].draw(c)
		}
		return c.String()
	})
}

// heldChart shows one head's plain iteration on fitted and held-out keys.
func heldChart(h *spec.Convergence) pair {
	values := []float64{h.SRHT, 0.85}
	for _, p := range h.Points {
		values = append(values, p[1], p[2])
	}
	lo, hi := span(0.06, values...)
	return both(func(w float64, narrow bool) string {
		right := 96.0
		if narrow {
			right = 62
		}
		c := newChart(w, narrow, plot{height: 260, left: 44, right: right,
			label:  "One head: cosine on fitted and on held-out keys by step",
			xTitle: "step", yTitle: "cosine",
			x: axis{lo: h.Points[0][0], hi: h.Points[len(h.Points)-1][0], whole: true}, y: axis{lo: lo, hi: min(1, hi)}})
		for _, t := range thresholds {
			if t < hi {
				c.level(t, "threshold", fix(t, 2))
			}
		}
		c.level(h.SRHT, "floor", "SRHT "+fix(h.SRHT, 3))
		for i, s := range []struct{ name, class string }{{"fitted", "dashed s-learned"}, {"held out", "s-learned"}} {
			var pts [][2]float64
			for _, p := range h.Points {
				pts = append(pts, c.px(p[0], p[1+i]))
			}
			c.Path(pts, "curve "+s.class)
			end := pts[len(pts)-1]
			dy := -7.0
			if i == 1 {
				dy = 16
			}
			c.Text(end[0]-2, end[1]+dy, "end", "label s-learned", s.name)
		}
		return c.String()
	})
}

// ffnChart shows the mean cosine by layer, a line for each matrix, scope and rotation.
func ffnChart(rows []spec.FFNRow) pair {
	type key struct {
		name  string
		layer int
	}
	sums, counts := map[key]float64{}, map[key]int{}
	var names []string
	seen := map[string]bool{}
	layers := 1
	values := []float64{floorCos}
	for _, r := range rows {
		if r.Layer < 0 || r.Layer >= spec.MaxLayers {
			continue
		}
		name := r.Matrix + ", " + r.Rotation
		if r.Expert >= 0 {
			name += ", experts"
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
		k := key{name, r.Layer}
		sums[k] += r.Cos1bit
		counts[k]++
		layers = max(layers, r.Layer)
		values = append(values, r.Cos1bit)
	}
	sort.Strings(names)
	lo, hi := span(0.06, values...)
	return both(func(w float64, narrow bool) string {
		right := 150.0
		if narrow {
			right = 104
		}
		c := newChart(w, narrow, plot{height: 280, left: 44, right: right,
			label:  "FFN: one-bit cosine by layer",
			xTitle: "layer", yTitle: "cosine",
			x: axis{lo: 0, hi: float64(layers), whole: true}, y: axis{lo: lo, hi: min(1, hi)}})
		py := c.y.at(floorCos)
		c.Line(c.x.a, py, c.x.b, py, "floor")
		next := math.Inf(-1)
		for i, name := range names {
			var pts [][2]float64
			for l := range layers + 1 {
				if k := (key{name, l}); counts[k] > 0 {
					pts = append(pts, c.px(float64(l), sums[k]/float64(counts[k])))
				}
			}
			class := fmt.Sprintf("t%d", i%6)
			c.Path(pts, "curve "+class)
			next = max(next+14, marginTop+4)
			c.Text(c.x.b+6, next, "start", "label "+class, name)
		}
		return c.String()
	})
}

// lossChart puts loss against bytes, both on log axes; f16 are those of F16, 0 if unknown.
func lossChart(points []qualityPoint, title, bytes string, f16 float64) pair {
	var xs, ys []float64
	for _, p := range points {
		if p.KLD > 0 && p.Bytes > 0 {
			xs, ys = append(xs, p.Bytes), append(ys, p.KLD)
		}
	}
	if len(xs) < 2 {
		return pair{}
	}
	xlo, xhi := span(0, xs...)
	ylo, yhi := span(0, ys...)
	xlo, xhi, ylo, yhi = xlo/1.5, max(xhi, f16)*1.15, max(ylo/1.6, 1e-12), yhi*1.8
	twice := map[string]bool{}
	for _, p := range points {
		twice[p.Label] = twice[p.Label] || p.Kind == "stock"
	}
	return both(func(w float64, narrow bool) string {
		c := newChart(w, narrow, plot{height: 340, left: 54, right: marginRight,
			label: title, xTitle: bytes, yTitle: "KL divergence, nats per token",
			x: axis{lo: xlo, hi: xhi, log: true}, y: axis{lo: ylo, hi: yhi, log: true}})
		if f16 > 0 {
			c.Line(c.x.at(f16), c.y.a, c.x.at(f16), c.y.b, "target")
			c.Text(c.x.at(f16)-5, c.y.b+10, "end", "note", "F16")
		}
		order := append([]qualityPoint(nil), points...)
		sort.SliceStable(order, func(i, j int) bool { return order[i].KLD > order[j].KLD })
		published := map[string]qualityPoint{}
		for _, p := range order {
			if p.Kind == "published" && p.KLD > 0 {
				published[p.Label] = p
			}
		}
		var names labels
		for _, p := range order {
			if !(p.KLD > 0 && p.Bytes > 0) {
				continue
			}
			x, y := c.x.at(p.Bytes), c.y.at(p.KLD)
			names.keep(x, y)
			class, r := "hollow", 4.5
			switch p.Kind {
			case "own":
				class, r = "mean s-code", 6
			case "stock":
				class = "mean s-stock"
				if q, ok := published[p.Label]; ok {
					c.Line(x, y, c.x.at(q.Bytes), c.y.at(q.KLD), "joint")
				}
			case "published":
				class = "hollow s-stock"
			}
			c.Dot(x, y, r, class, fmt.Sprintf("%s: %s bytes, KLD %s, perplexity ratio %s", p.Name,
				comma(int64(math.Round(p.Bytes))), sig(p.KLD), p.Ratio))
		}
		for _, p := range order {
			if !(p.KLD > 0 && p.Bytes > 0) {
				continue
			}
			if p.Kind == "published" && twice[p.Label] {
				continue // the other point of the type carries the name
			}
			names.put(c, c.x.at(p.Bytes), c.y.at(p.KLD), p.Label)
		}
		return c.String()
	})
}

type layerAngle struct{ raw, srht, code float64 }

// byLayer averages the angles of a layer's heads.
func byLayer(rows []spec.AngleRow) []layerAngle {
	var out []layerAngle
	var n []float64
	for _, r := range rows {
		if r.Layer < 0 || r.Layer >= spec.MaxLayers {
			continue
		}
		for len(out) <= r.Layer {
			out, n = append(out, layerAngle{}), append(n, 0)
		}
		x := &out[r.Layer]
		x.raw, x.srht, x.code = x.raw+r.Raw, x.srht+r.SRHT, x.code+r.Code
		n[r.Layer]++
	}
	for i := range out {
		if n[i] > 0 {
			out[i].raw, out[i].srht, out[i].code = out[i].raw/n[i], out[i].srht/n[i], out[i].code/n[i]
		}
	}
	return out
}

// anglesChart is the angle spectrum: keys as they stand, turned, and coded.
func anglesChart(d *spec.Detail) pair {
	layers := byLayer(d.Angles)
	values := []float64{collapse, floorAngle}
	for _, l := range layers {
		values = append(values, l.raw, l.srht, l.code)
	}
	lo, hi := span(0.06, values...)
	return both(func(w float64, narrow bool) string {
		right := 98.0
		c := newChart(w, narrow, plot{height: 280, left: 44, right: right,
			label:  "Angle between keys and their one-bit images by layer",
			xTitle: "layer", yTitle: "degrees",
			x: axis{lo: 0, hi: float64(max(1, len(layers)-1)), whole: true}, y: axis{lo: lo, hi: hi}})
		for _, r := range []struct {
			y           float64
			class, name string
		}{{collapse, "threshold strong", "44°"}, {floorAngle, "floor", "Gaussian 37.1°"}} {
			c.level(r.y, r.class, r.name)
		}
		var ends []float64
		for _, s := range []struct {
			name, class string
			get         func(layerAngle) float64
		}{
			{"raw", "s-other", func(l layerAngle) float64 { return l.raw }},
			{"SRHT", "s-srht", func(l layerAngle) float64 { return l.srht }},
			{d.Code, "s-code", func(l layerAngle) float64 { return l.code }},
		} {
			var pts [][2]float64
			for i, l := range layers {
				pts = append(pts, c.px(float64(i), s.get(l)))
			}
			c.Path(pts, "curve thin "+s.class)
			for i, p := range pts {
				c.Dot(p[0], p[1], 3, "mean "+s.class, fmt.Sprintf("layer %d, %s: %s°", i, s.name, fix(s.get(layers[i]), 1)))
			}
			y := pts[len(pts)-1][1] + 4
			for _, e := range append(ends, c.y.at(collapse)+4, c.y.at(floorAngle)+4) {
				if math.Abs(y-e) < 13 { // keep names apart
					y = e + 13
				}
			}
			ends = append(ends, y)
			c.Text(c.x.b+5, y, "start", "label "+s.class, s.name)
		}
		return c.String()
	})
}

// layersChart shows what each layer's coded keys cost alone.
func layersChart(rows []spec.LayerKLD) pair {
	most := 0.0
	for _, r := range rows {
		most = max(most, r.KLD+r.KLDErr)
	}
	return both(func(w float64, narrow bool) string {
		c := newChart(w, narrow, plot{height: 240, left: 54, right: marginRight,
			label:  "KL divergence when one layer alone is coded",
			xTitle: "layer", yTitle: "nats per token, one layer coded",
			x: axis{lo: -0.6, hi: float64(len(rows)) - 0.4, whole: true}, y: axis{lo: 0, hi: max(most*1.05, 1e-9)}})
		width := min(18, (c.x.b-c.x.a)/float64(len(rows))*0.62)
		for i, r := range rows {
			x, y := c.x.at(float64(i)), c.y.at(max(0, r.KLD))
			c.Open("rect", "x", x-width/2, "y", y, "width", width, "height", max(0, c.y.a-y), "class", "bar s-code")
			c.Title(fmt.Sprintf("layer %d: %s ± %s", r.Layer, sig(r.KLD), sig(r.KLDErr)))
			c.Close()
			c.whisker(float64(i), r.KLD, r.KLDErr, "whisker")
		}
		return c.String()
	})
}

// positionsChart shows the error by position in the window.
func positionsChart(rows []spec.PositionBand) pair {
	most := 0.0
	for _, r := range rows {
		most = max(most, r.KLD+r.KLDErr)
	}
	return both(func(w float64, narrow bool) string {
		c := newChart(w, narrow, plot{height: 240, left: 54, right: marginRight,
			label:  "KL divergence by position in the context",
			xTitle: "position in the window (log scale)", yTitle: "nats per token",
			x: axis{lo: 1, hi: float64(rows[len(rows)-1].To), log: true}, y: axis{lo: 0, hi: max(most*1.08, 1e-9)}})
		for _, r := range rows {
			a, b, y := c.x.at(float64(max(1, r.From))), c.x.at(float64(r.To)), c.y.at(max(0, r.KLD))
			c.Line(a+2, y, b-2, y, "step s-code")
			mid := (a + b) / 2
			c.Line(mid, c.y.at(max(0, r.KLD-r.KLDErr)), mid, c.y.at(r.KLD+r.KLDErr), "whisker")
			c.Open("rect", "x", a, "y", y, "width", max(0, b-a), "height", max(0, c.y.a-y), "class", "area s-code")
			c.Title(fmt.Sprintf("positions %d to %d: %s ± %s on %d tokens", r.From, r.To-1, sig(r.KLD), sig(r.KLDErr), r.Tokens))
			c.Close()
		}
		return c.String()
	})
}
