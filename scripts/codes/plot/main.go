// Command plot draws the rows that pareto measured, bytes per key against KL
// divergence, both logarithmic, as an SVG that stands by itself.
//
//	plot -o pareto.svg -title TEXT points.tsv
package main

import (
	"cmp"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/internal/svg"
)

// style makes the picture independent of a page.
const style = `<style>
text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}.grid{stroke:#e3e3e3}.axis{stroke:#666}
.line{fill:none;stroke-width:2}.s0{stroke:#1f5d9c;fill:#1f5d9c}.s1{stroke:#b3541e;fill:#b3541e}.s2{stroke:#5e7d2d;fill:#5e7d2d}
.s3{stroke:#7a4b94;fill:#7a4b94}.s4{stroke:#777;fill:#777}.s5{stroke:#a8201a;fill:#a8201a}path.line{fill:none}
svg{background:#fff}.err{stroke-width:1;opacity:.6}
</style>`

type row struct {
	name             string
	series           int
	bytes, kld, err_ float64
}

// Series of the legend; points of the first four are joined.
var series = []string{"frame, signs by sensitivity", "frame, uniform", "frame, by angle", "frame of 1 bit with exceptions", "orthogonal codes of 1 bit", "stock llama.cpp, rotation on"}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func read(path string) ([]row, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []row
	for i, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		f := strings.Split(line, "\t")
		if i == 0 || len(f) < 14 || strings.HasSuffix(f[4], "g") || f[5] != "1" {
			continue // the header, and variants that are not for use
		}
		num := func(s string) float64 {
			v, e := strconv.ParseFloat(s, 64)
			if e != nil && err == nil {
				err = fmt.Errorf("%s: line %d: %w", path, i+1, e)
			}
			return v
		}
		r := row{name: f[1], bytes: num(f[6]), kld: num(f[9]), err_: num(f[10])}
		switch {
		case f[3] == "-":
			r.series = 5
		case f[1] != "frame":
			r.series = 4
		case f[4] != "0" && f[3] == "uniform":
			r.series, r.name = 3, f[4]
		case f[4] != "0":
			r.series, r.name = 3, f[4]+" ("+f[3]+")"
		default:
			r.series, r.name = map[string]int{"sensitivity": 0, "uniform": 1, "angle": 2}[f[3]], f[2]
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b row) int { return cmp.Or(cmp.Compare(a.series, b.series), cmp.Compare(a.bytes, b.bytes)) })
	return out, err
}

func run() error {
	out := flag.String("o", "", "SVG file")
	title := flag.String("title", "", "title")
	flag.Parse()
	rows, err := read(flag.Arg(0))
	if err != nil || len(rows) == 0 {
		return cmp.Or(err, fmt.Errorf("no rows"))
	}
	const w, h, left, right, top, bottom = 860.0, 520.0, 70.0, 20.0, 46.0, 56.0
	x0, x1, y0, y1 := math.Inf(1), 0.0, math.Inf(1), 0.0
	for _, r := range rows {
		x0, x1 = min(x0, r.bytes), max(x1, r.bytes)
		y0, y1 = min(y0, r.kld), max(y1, r.kld)
	}
	x0, x1, y0, y1 = x0/1.15, x1*1.15, y0/1.5, y1*1.5
	px := func(v float64) float64 { return left + (w-left-right)*math.Log(v/x0)/math.Log(x1/x0) }
	py := func(v float64) float64 { return h - bottom - (h-top-bottom)*math.Log(v/y0)/math.Log(y1/y0) }
	d := svg.New(w, h, *title, "xmlns", "http://www.w3.org/2000/svg", "width", w, "height", h)
	d.Text(left, 22, "start", "title", *title)
	for _, v := range []float64{4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 288} {
		if v > x0 && v < x1 {
			d.Line(px(v), top, px(v), h-bottom, "grid")
			d.Text(px(v), h-bottom+18, "middle", "tick", strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	for e := -6; e < 3; e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow10(e); v > y0 && v < y1 {
				d.Line(left, py(v), w-right, py(v), "grid")
				d.Text(left-8, py(v)+4, "end", "tick", strconv.FormatFloat(v, 'g', 4, 64))
			}
		}
	}
	d.Line(left, h-bottom, w-right, h-bottom, "axis")
	d.Line(left, top, left, h-bottom, "axis")
	d.Text((left+w-right)/2, h-14, "middle", "label", "bytes per key of one head, scales and coordinates included")
	d.Text(left, top-8, "start", "label", "KL divergence, nats per token")
	joined := map[int][][2]float64{}
	for _, r := range rows {
		if r.series < 3 || r.series == 3 && !strings.Contains(r.name, "(") {
			joined[r.series] = append(joined[r.series], [2]float64{px(r.bytes), py(r.kld)})
		}
	}
	for s := range series {
		d.Path(joined[s], fmt.Sprintf("line s%d", s))
	}
	for _, r := range rows {
		class := fmt.Sprintf("s%d", r.series)
		d.Line(px(r.bytes), py(r.kld+r.err_), px(r.bytes), py(max(r.kld-r.err_, y0)), "err "+class)
		d.Dot(px(r.bytes), py(r.kld), 4, class, fmt.Sprintf("%s: %g bytes, KLD %g", r.name, r.bytes, r.kld))
		switch r.series { // labels of bits left below, right above, or beside
		case 0:
			d.Text(px(r.bytes)-7, py(r.kld)+14, "end", "name", r.name)
		case 1, 2:
		case 3:
			above := -6.0
			if strings.Contains(r.name, "(") {
				above = 16
			}
			d.Text(px(r.bytes)+7, py(r.kld)+above, "start", "name", r.name)
		default:
			d.Text(px(r.bytes)+7, py(r.kld)-6, "start", "name", r.name)
		}
	}
	y := h - bottom - 14.0 // few points are small and good
	for i := len(series) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.series == i }) {
			continue
		}
		d.Dot(left+16, y-4, 4, fmt.Sprintf("s%d", i), "")
		d.Text(left+28, y, "start", "name", series[i])
		y -= 18
	}
	text := d.String()
	at := strings.Index(text, ">") + 1
	return os.WriteFile(*out, []byte(text[:at]+style+text[at:]+"\n"), 0o666)
}
