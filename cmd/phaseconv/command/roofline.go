package command

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/internal/svg"
	"github.com/phaseconv/phaseconv/kernels/measure"
)

// roofline draws a result of bench: the limits by bandwidth and by peak, and where matrix
// products and scores lie below them. Scores run on one thread, so both limits are drawn for
// one thread and for all.
func roofline(r *measure.Result) string {
	const (
		width, height            = 900.0, 560.0
		left, right, top, bottom = 70.0, 200.0, 40.0, 60.0
		minX, maxX               = 0.25, 512.0 // operations per byte
	)
	slow1, slow := r.Memory(1), r.Memory(r.Threads)
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
	title := fmt.Sprintf("Roofline, %s/%s, %s, %d threads", r.OS, r.Arch, r.Tier, r.Threads)
	// A file of its own has no style sheet: colours are attributes.
	d := svg.New(width, height, title, "xmlns", "http://www.w3.org/2000/svg", "font-family", "sans-serif", "font-size",
		"12")
	d.Leaf("rect", "width", width, "height", height, "fill", "#fff")
	d.Text(left, 22, "start", "", title)
	line := func(x1, y1, x2, y2 float64) {
		d.Leaf("line", "x1", x1, "y1", y1, "x2", x2, "y2", y2, "stroke", "#eee")
	}
	for v := minX; v <= maxX; v *= 2 {
		line(x(v), top, x(v), height-bottom)
		d.Text(x(v), height-bottom+16, "middle", "", fmt.Sprint(v))
	}
	for v := minY; v <= maxY*1.001; v *= 10 {
		line(left, y(v), width-right, y(v))
		d.Text(left-6, y(v)+4, "end", "", fmt.Sprintf("%g", v))
	}
	d.Text((left+width-right)/2, height-20, "middle", "", "operations per byte")
	d.Text(8, 22, "start", "", "GFLOP/s")
	roof := func(bandwidth, peak float64, style ...any) {
		if bandwidth > 0 && peak > 0 {
			points := [][2]float64{{x(minX), y(minX * bandwidth)}, {x(peak / bandwidth), y(peak)}, {x(maxX), y(peak)}}
			d.Path(points, "roof", append([]any{"fill", "none", "stroke", "#444"}, style...)...)
		}
	}
	roof(slow, r.Peak, "stroke-width", "2")
	roof(slow1, r.Peak1, "stroke-dasharray", "5 4")
	dot := func(x, y, radius float64, title string, style ...any) {
		d.Open("circle", append([]any{"cx", x, "cy", y, "r", radius}, style...)...)
		if title != "" {
			d.Title(title)
		}
		d.Close()
	}
	for _, p := range r.Products {
		dot(x(p.Intensity()), y(p.GFLOPS), 4, fmt.Sprintf("%s %s, %dx%dx%d: %.0f GFLOP/s, %.0f %% of peak", p.Model, p.Name,
			p.M, p.N, p.K, p.GFLOPS, 100*p.Share),
			"fill", "#fff", "stroke", "#333")
	}
	colours := map[string]string{"F16": "#888", "Q8_0": "#27a", "Q4_0": "#2a7", "1-bit": "#c33"}
	for _, s := range r.Scores {
		dot(x(s.Intensity()), y(s.GFLOPS()), 3+math.Log2(float64(s.Heads)),
			fmt.Sprintf("%s, %d keys of %d, %d heads: %.2f ns, %.1fx F16", s.Format, s.Keys, s.Dim, s.Heads, s.Ns, s.Ratio),
			"fill", colours[s.Format])
	}
	legend := []struct{ colour, name string }{
		{"#fff", "matrix products"}, {colours["F16"], "F16 keys"}, {colours["Q8_0"], "Q8_0 keys"},
		{colours["Q4_0"], "Q4_0 keys"},
		{colours["1-bit"], "1-bit keys, 1 to 8 heads"},
	}
	for i, l := range legend {
		py := top + 10 + 20*float64(i)
		dot(width-right+16, py, 5, "", "fill", l.colour, "stroke", "#333")
		d.Text(width-right+28, py+4, "start", "", l.name)
	}
	below := top + 10 + 20*float64(len(legend))
	d.Text(width-right+12, below, "start", "", "solid: all threads")
	d.Text(width-right+12, below+20, "start", "", "dashed: one thread")
	return d.String() + "\n"
}
