package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// WriteLadder renders the records of a ladder as a page of its own.
func WriteLadder(w io.Writer, l *spec.LadderJSON) error {
	v := newLadder("m0", l)
	if v == nil {
		return fmt.Errorf("report: the ladder has no records")
	}
	d, err := dressed()
	if err != nil {
		return err
	}
	return execute(w, "ladder.html", struct {
		*ladderView
		dress
		Title string
	}{v, d, "The replacement ladder of " + v.Source})
}

// A ladderView shows the records of a ladder, context by context.
type ladderView struct {
	ID                string
	Source, Fit, Eval string
	Headline          string
	Verdicts          []string
	Contexts          []ladderContext
}

// A ladderContext is the ladder at one context length.
type ladderContext struct {
	Ctx       int
	FitN, Out int // windows
	Chart     pair
	ChartOf   string
	Rungs     []ladderRow
	Sizes     []string
	Layers    []ladderLayerRow
	Live      []spec.LadderLive
}

type ladderRow struct {
	ID, Method, Question, Status, Class, Reason string
	Max, Gap, Falls, Replay, LogZ, Share        string
}

// A ladderLayerRow has the errors of one layer by size of the state.
type ladderLayerRow struct {
	Layer int
	Cells []ladderCell
	// Finite is the smallest state whose held-out error passes the gate.
	Finite string
}

type ladderCell struct {
	Text, Class string
	Sort        float64
}

// newLadder returns nil where there is nothing to show.
func newLadder(id string, l *spec.LadderJSON) *ladderView {
	if l == nil || len(l.Records) == 0 {
		return nil
	}
	first := &l.Records[0]
	v := &ladderView{ID: id, Source: first.Source.Name, Fit: first.Fit.Name, Eval: first.Eval.Name, Verdicts: l.Verdicts}
	var contexts []int
	for _, r := range l.Records {
		if !slices.Contains(contexts, r.Ctx) {
			contexts = append(contexts, r.Ctx)
		}
	}
	slices.Sort(contexts)
	for _, ctx := range contexts {
		v.Contexts = append(v.Contexts, newLadderContext(l.Records, ctx))
	}
	v.Headline = headline(l)
	return v
}

// headline says of the last rung that ran whether it passed, and where.
func headline(l *spec.LadderJSON) string {
	last := ""
	for _, r := range spec.Ladder() {
		for _, x := range l.Records {
			if x.Rung.ID == r.ID && x.Status != spec.RungBlocked {
				last = r.ID
			}
		}
	}
	for _, v := range l.Verdicts {
		if strings.HasPrefix(v, last+" ") {
			return v
		}
	}
	return "No rung ran"
}

func newLadderContext(records []spec.LadderRecord, ctx int) ladderContext {
	c := ladderContext{Ctx: ctx}
	var steps *spec.LadderRecord // whose layers are drawn
	for i := range records {
		r := &records[i]
		if r.Ctx != ctx {
			continue
		}
		c.FitN, c.Out = r.Fit.Windows, r.Eval.Windows
		c.Rungs = append(c.Rungs, newLadderRow(r))
		c.Live = append(c.Live, r.Live...)
		grows := func(l spec.LadderLayer) bool { return len(l.Steps) > 1 }
		if r.Status != spec.RungBlocked && slices.ContainsFunc(r.Layers, grows) &&
			strings.HasPrefix(r.Rung.ID, "RW1.") && r.Rung.ID != "RW1.8" {
			steps = r // the last of the rungs whose states grow step by step
		}
	}
	if steps == nil {
		return c
	}
	c.ChartOf = steps.Rung.ID + ", " + steps.Rung.Method
	for _, l := range steps.Layers {
		if len(c.Sizes) == 0 {
			for _, s := range l.Steps {
				c.Sizes = append(c.Sizes, tickText(s.Size))
			}
		}
	}
	for _, l := range steps.Layers {
		c.Layers = append(c.Layers, newLadderLayer(&l, len(c.Sizes)))
	}
	c.Chart = ladderChart(steps, records)
	return c
}

func newLadderRow(r *spec.LadderRecord) ladderRow {
	number := func(p *float64, f func(float64) string) string {
		if p == nil {
			return ""
		}
		return f(*p)
	}
	four := func(x float64) string { return fix(x, 4) }
	x := ladderRow{ID: r.Rung.ID, Method: r.Rung.Method, Question: r.Rung.Question, Status: r.Status, Reason: r.Reason,
		Max: number(r.FinalMax, four), Gap: number(r.Gap, four), Replay: number(r.Replay, sig), LogZ: number(r.LogZ, sig),
		Share: number(r.Share, func(x float64) string { return pct(x, 1) })}
	switch r.Status {
	case spec.RungPass:
		x.Class = "pass"
	case spec.RungKill:
		x.Class = "fail"
	}
	layers := 0
	for _, l := range r.Layers {
		if !l.Native {
			layers++
		}
	}
	if layers > 0 && (strings.HasPrefix(r.Rung.ID, "RW1.") || strings.HasPrefix(r.Rung.ID, "RW2")) {
		x.Falls = fmt.Sprintf("%d of %d", r.Monotone, layers)
	}
	return x
}

func newLadderLayer(l *spec.LadderLayer, sizes int) ladderLayerRow {
	x := ladderLayerRow{Layer: l.Layer}
	for _, s := range l.Steps {
		cell := ladderCell{Text: fix(s.HeldOut, 3), Sort: s.HeldOut}
		switch {
		case s.HeldOut <= spec.LadderMax:
			cell.Class = "up2"
			if x.Finite == "" {
				x.Finite = fmt.Sprintf("%s, %s of the cache", size(int64(s.Bytes)), pct(s.Share, 1))
			}
		case s.HeldOut > spec.LadderMaxKill:
			cell.Class = "down2"
		}
		x.Cells = append(x.Cells, cell)
	}
	for len(x.Cells) < sizes {
		x.Cells = append(x.Cells, ladderCell{Sort: math.MaxFloat64})
	}
	switch {
	case l.Native:
		x.Finite = "its own window: finite as it is"
	case x.Finite == "":
		x.Finite = "none of these"
	}
	return x
}

// ladderChart draws a layer's held-out error against its state's share of the cache, gates as
// lines, and the largest error of every other rung of that context as a point.
func ladderChart(r *spec.LadderRecord, records []spec.LadderRecord) pair {
	type curve struct {
		name string
		pts  [][2]float64
	}
	var curves []curve
	xs, ys := []float64{}, []float64{spec.LadderMax, spec.LadderMaxKill}
	add := func(x, y float64) bool {
		if !(x > 0 && y > 0) || math.IsInf(x, 0) || math.IsInf(y, 0) {
			return false
		}
		xs, ys = append(xs, x), append(ys, y)
		return true
	}
	for _, l := range r.Layers {
		c := curve{name: fmt.Sprintf("layer %d", l.Layer)}
		for _, s := range l.Steps {
			if add(100*s.Share, s.HeldOut) {
				c.pts = append(c.pts, [2]float64{100 * s.Share, s.HeldOut})
			}
		}
		if len(c.pts) > 0 {
			curves = append(curves, c)
		}
	}
	type point struct {
		name string
		x, y float64
	}
	var others []point
	for _, o := range records {
		if o.Ctx == r.Ctx && o.Rung.ID != r.Rung.ID && o.Share != nil && o.FinalMax != nil && add(100**o.Share, *o.FinalMax) {
			others = append(others, point{o.Rung.ID, 100 * *o.Share, *o.FinalMax})
		}
	}
	if len(curves) == 0 {
		return pair{}
	}
	// The names of curves stand in the order of their ends, worst first.
	slices.SortStableFunc(curves, func(a, b curve) int {
		return cmp.Compare(b.pts[len(b.pts)-1][1], a.pts[len(a.pts)-1][1])
	})
	xlo, xhi := span(0, xs...)
	ylo, yhi := span(0, ys...)
	return both(func(w float64, narrow bool) string {
		c := newChart(w, narrow, plot{height: 360, left: 50, right: 84,
			label:  fmt.Sprintf("Held-out error of attention against the size of the state, %d tokens", r.Ctx),
			xTitle: "state, % of the F16 cache", yTitle: "relative L2 error, held out",
			x: axis{lo: xlo / 1.15, hi: xhi * 1.15, log: true}, y: axis{lo: ylo / 1.3, hi: yhi * 1.3, log: true}})
		c.level(spec.LadderMax, "floor", "pass 0.10")
		c.level(spec.LadderMaxKill, "threshold strong", "kill 0.14")
		var names labels
		for i, x := range curves {
			class := fmt.Sprintf("t%d", i%6)
			if len(curves) > 6 {
				class = "thin t4"
			}
			var pts [][2]float64
			for _, p := range x.pts {
				q := c.px(p[0], p[1])
				pts = append(pts, q)
				c.Dot(q[0], q[1], 2.5, "mean "+strings.TrimPrefix(class, "thin "),
					fmt.Sprintf("%s: error %s with %s %% of the cache", x.name, fix(p[1], 4), fix(p[0], 1)))
				names.keep(q[0], q[1])
			}
			c.Path(pts, "curve "+class)
		}
		for _, p := range others {
			q := c.px(p.x, p.y)
			c.Dot(q[0], q[1], 4.5, "hollow",
				fmt.Sprintf("%s: largest error %s with %s %% of the cache", p.name, fix(p.y, 4), fix(p.x, 1)))
			names.keep(q[0], q[1])
		}
		for i, x := range curves {
			if len(curves) > 6 && i != 0 && i != len(curves)-1 {
				continue // with many layers only the worst and the best are named
			}
			q := c.px(x.pts[len(x.pts)-1][0], x.pts[len(x.pts)-1][1])
			names.put(c, q[0], q[1], x.name)
		}
		for _, p := range others {
			q := c.px(p.x, p.y)
			names.put(c, q[0], q[1], p.name)
		}
		return c.String()
	})
}

// layerNames lists layers, or counts them where they are many.
func layerNames(layers []int) string {
	if len(layers) > 6 {
		return fmt.Sprintf("%d layers", len(layers))
	}
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(layers), "[]"), " ", ", ")
}

// signed writes a share as a percentage with its sign.
func signed(x float64) string {
	if x >= 0 {
		return "+" + pct(x, 2)
	}
	return pct(x, 2)
}
