package measure

import (
	"fmt"
	"math"
	"strings"
)

// SVG draws the roofline of a result: the limits by bandwidth and by peak, and
// where matrix products and scores lie below them. Scores run on one thread, so
// both limits are drawn for one thread and for all.
func (r *Result) SVG() string {
	const (
		width, height            = 900, 560
		left, right, top, bottom = 70, 200, 40, 60
		minX, maxX               = 0.25, 512.0 // operations per byte
	)
	slow1, slow := r.memory(1), r.memory(r.Threads)
	maxY := math.Pow(10, math.Ceil(math.Log10(max(r.Peak, 10))))
	minY := math.Pow(10, math.Floor(math.Log10(max(minX*slow1/2, 1e-3))))
	x := func(v float64) float64 {
		v = min(max(v, minX), maxX)
		return left + (width-left-right)*math.Log(v/minX)/math.Log(maxX/minX)
	}
	y := func(v float64) float64 {
		v = min(max(v, minY), maxY)
		return height - bottom - (height-top-bottom)*math.Log(v/minY)/math.Log(maxY/minY)
	}
	var b strings.Builder
	text := func(px, py float64, anchor, s string) {
		s = escape.Replace(s)
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", px, py, anchor, s)
	}
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, height)
	fmt.Fprintf(&b, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height)
	text(left, 22, "start", fmt.Sprintf("Roofline, %s/%s, %s, %d threads", r.OS, r.Arch, r.Tier, r.Threads))
	for v := minX; v <= maxX; v *= 2 {
		fmt.Fprintf(&b, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#eee\"/>\n", x(v), top, x(v),
			height-bottom)
		text(x(v), height-bottom+16, "middle", fmt.Sprint(v))
	}
	for v := minY; v <= maxY*1.001; v *= 10 {
		fmt.Fprintf(&b, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#eee\"/>\n", left, y(v), width-right,
			y(v))
		text(left-6, y(v)+4, "end", fmt.Sprintf("%g", v))
	}
	text((left+width-right)/2, height-20, "middle", "operations per byte")
	text(8, 22, "start", "GFLOP/s")
	roof := func(bandwidth, peak float64, style string) {
		if bandwidth <= 0 || peak <= 0 {
			return
		}
		fmt.Fprintf(&b, "<polyline fill=\"none\" stroke=\"#444\" %s points=\"%.1f,%.1f %.1f,%.1f %.1f,%.1f\"/>\n",
			style, x(minX), y(minX*bandwidth), x(peak/bandwidth), y(peak), x(maxX), y(peak))
	}
	roof(slow, r.Peak, `stroke-width="2"`)
	roof(slow1, r.Peak1, `stroke-dasharray="5 4"`)
	colours := map[string]string{"F16": "#888", "Q8_0": "#27a", "Q4_0": "#2a7", "1-bit": "#c33"}
	for _, p := range r.Products {
		fmt.Fprintf(&b, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"#fff\" stroke=\"#333\"><title>%s %s, %dx%dx%d: %.0f GFLOP/s, %.0f %% of peak</title></circle>\n",
			x(p.Intensity()), y(p.GFLOPS), escape.Replace(p.Model), escape.Replace(p.Name), p.M, p.N, p.K, p.GFLOPS, 100*p.Share)
	}
	for _, s := range r.Scores {
		fmt.Fprintf(&b, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\"><title>%s, %d keys of %d, %d heads: %.2f ns, %.1fx F16</title></circle>\n",
			x(s.Intensity()), y(s.GFLOPS()), 3+math.Log2(float64(s.Heads)), colours[s.Format], s.Format, s.Keys, s.Dim, s.Heads,
			s.Ns, s.Ratio)
	}
	legend := []struct{ colour, name string }{
		{"#fff", "matrix products"}, {colours["F16"], "F16 keys"}, {colours["Q8_0"], "Q8_0 keys"},
		{colours["Q4_0"], "Q4_0 keys"},
		{colours["1-bit"], "1-bit keys, 1 to 8 heads"},
	}
	for i, l := range legend {
		py := float64(top + 10 + 20*i)
		fmt.Fprintf(&b, "<circle cx=\"%d\" cy=\"%.1f\" r=\"5\" fill=\"%s\" stroke=\"#333\"/>\n", width-right+16, py, l.colour)
		text(width-right+28, py+4, "start", l.name)
	}
	text(width-right+12, float64(top+10+20*len(legend)), "start", "solid: all threads")
	text(width-right+12, float64(top+30+20*len(legend)), "start", "dashed: one thread")
	b.WriteString("</svg>\n")
	return b.String()
}

// escape makes text of XML.
var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;")

// memory returns the bandwidth of the largest buffer, in GB/s.
func (r *Result) memory(threads int) float64 {
	var size int
	var rate float64
	for _, b := range r.Bandwidth {
		if b.Threads == threads && b.Bytes >= size {
			size, rate = b.Bytes, b.GBs
		}
	}
	return rate
}
