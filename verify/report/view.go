package report

import (
	"fmt"
	"html/template"
	"sort"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// A view is a model made ready for the template.
type view struct {
	Model
	ID       string // prefix of element ids
	Contract []spec.Check
	PPL      *spec.PPLJSON
	KLD      *spec.KLDJSON
	Bytes    *spec.BytesJSON
	Function *spec.FunctionJSON
	Layers   []spec.Layer
	Text     spec.Text
	Calib    spec.Text
	Code     string

	Verdict  verdict
	Facts    []fact
	Beta     *betaView
	Groups   *groupsView
	Converge *convergeView
	FFNView  *ffnView
	Weights  *weightsView
	Quality  *qualityView
	Stock    *stockView
	Runtime  []fact
	Rungs    *ladderView
	Probes   *probesView
	BibTeX   string
	Data     template.HTML
	// Engine computed the numbers, nil for the own pass.
	Engine *spec.EngineIdentity
}

type fact struct{ Name, Value string }

// newView gathers the parts of one model, whichever file they came from.
func newView(i int, m *Model) (*view, error) {
	v := &view{Model: *m, ID: "m" + strconv.Itoa(i)}
	if a := m.Audit; a != nil {
		v.PPL, v.KLD, v.Bytes, v.Layers, v.Text, v.Calib = a.PPL, a.KLD, a.Bytes, a.Layers, a.Text, a.Calibration
		v.Engine = a.Engine
	}
	if m.Manifest != nil {
		v.Layers, v.Calib, v.Code = m.Manifest.Layers, m.Manifest.Calibration, m.Manifest.Code.Kind
		if m.Verify == nil {
			v.verify(m.Manifest.Measured)
		}
		if f := m.Manifest.Fusion; f != nil && len(v.Advise) == 0 {
			v.Advise, v.Rounded = f.Measured, f.RoundedInputs // what the conversion measured of the types it was made for
		}
	}
	v.verify(m.Verify)
	v.Advise = settled(v.Advise, v.Text.Name)
	if v.PPL != nil {
		v.Code = v.PPL.Code
	}
	if v.Whole() {
		v.Code = "joint"
	}
	if v.Code == "" && len(v.Layers) > 0 {
		v.Code = v.Layers[0].Code
	}
	if v.Name == "" {
		v.Name = "This model"
		if m.Manifest != nil {
			v.Name = m.Manifest.Source.Name
		}
	}
	v.Verdict = newVerdict(v)
	v.Facts = facts(v)
	v.Beta = newBeta(v)
	v.Groups = newGroups(v)
	v.Converge = newConverge(v)
	v.FFNView = newFFN(v)
	v.Weights = newWeights(v)
	v.Quality = newQuality(v)
	v.Stock = newStock(v)
	v.Runtime = runtimeFacts(v)
	v.Rungs = newLadder(v.ID, m.Ladder)
	v.BibTeX = bibtex(v)
	d := probeData{}
	if m.Detail != nil {
		d.Cloud, d.Scores = m.Detail.Cloud, m.Detail.Scores
		if !soundScores(d.Scores) {
			d.Scores = nil
		}
		if d.Cloud != nil && len(d.Cloud.Points) == 0 {
			d.Cloud = nil
		}
	}
	v.Probes = newProbes(v, d)
	var err error
	v.Data, err = jsonScript("data-"+v.ID, d)
	return v, err
}

// verify takes over what a verification measured.
func (v *view) verify(r *spec.VerifyJSON) {
	if r == nil {
		return
	}
	v.Contract, v.Function = r.Contract, r.Function
	if r.PPL != nil {
		v.PPL, v.KLD, v.Engine = r.PPL, r.KLD, r.Engine
	}
	if r.Bytes != nil {
		v.Bytes = r.Bytes
	}
	if r.Text != nil {
		v.Text = *r.Text
	}
	// The audit of a conversion has columns that later ones cannot measure.
	if len(v.Layers) == 0 {
		v.Layers = r.Layers
	}
	if s := r.Stock; s != nil && s.KLD != nil && r.Text != nil {
		v.Rounded = v.Rounded || s.RoundedInputs
		v.Advise = append(v.Advise[:len(v.Advise):len(v.Advise)], spec.AdviseRow{KType: s.KType, VType: s.VType,
			Ctx: r.Text.Context, Converted: true,
			BytesPerToken: float64(s.BytesPerToken), PPLRatio: s.PPLRatio, KLD: s.KLD.Mean, KLDErr: s.KLD.MeanErr,
			SameTop: s.KLD.SameTop})
	}
}

// soundScores: data of a file may contradict itself; the script relies on this.
func soundScores(s *spec.Scores) bool {
	if s == nil || len(s.Float) < 2 || len(s.Codes) == 0 || s.Sink < 0 {
		return false
	}
	for _, c := range s.Codes {
		if len(c.Scores) != len(s.Float) {
			return false
		}
	}
	return true
}

// Passed counts the contract's checks.
func (v *view) Passed() string {
	n := 0
	for _, c := range v.Contract {
		if c.OK {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(v.Contract))
}

// Ratio and the others feed the comparison of several models.
func (v *view) Ratio() string {
	if v.PPL == nil {
		return missing
	}
	return fix(v.PPL.Ratio, 3)
}

// MeanKLD is the divergence, for the comparison.
func (v *view) MeanKLD() string {
	if v.KLD == nil {
		return missing
	}
	return sig(v.KLD.Mean)
}

// Top is the share of equal predictions, for the comparison.
func (v *view) Top() string {
	if v.KLD == nil {
		return missing
	}
	return pct(v.KLD.SameTop, 1)
}

// Shape is the model's size in words, for the comparison.
func (v *view) Shape() string {
	if v.Manifest == nil {
		return missing
	}
	m := v.Manifest.Model
	return fmt.Sprintf("%s %d×%d×%d", m.Family, m.Layers, m.KVHeads, m.HeadDim)
}

// Whole says whether the codes are joint. Bytes are then those of the whole cache, whatever it is
// that the codes hold of it.
func (v *view) Whole() bool {
	b := v.Bytes
	// Files of earlier programs do not name parts, and hold keys and values.
	return b != nil && b.KVCode > 0 && (b.Parts != "" || b.KVCode == b.KCode)
}

// coded names what joint codes hold, and left what stays F16 beside it, "" for nothing.
func (v *view) coded() (coded, left string) {
	switch v.Bytes.Parts {
	case "k":
		return "keys", "F16 values"
	case "v":
		return "values", "F16 keys"
	}
	return "keys and values", ""
}

// Coded says what is coded, and how.
func (v *view) Coded() string {
	switch {
	case v.Bytes == nil:
		return missing
	case v.Whole():
		return "keys and values, " + v.Code
	}
	return "keys, " + v.Code
}

// wholeBytes is what keys and values of a sequence take with this file, the tokens that stay F16
// included. Files of earlier programs do not say what values take: as much as keys, then.
func (v *view) wholeBytes(ctx int) (coded, f16 float64) {
	b := v.Bytes
	all, one := 2*b.KF16, b.KCode+b.KF16
	if b.KVF16 > 0 {
		all, one = b.KVF16, b.KVCode
	}
	exact := 0
	if p := v.PPL; p != nil && v.Whole() {
		exact = min(ctx, p.Sink+p.Recent)
	}
	return float64(exact)*float64(all) + float64(ctx-exact)*float64(one), float64(ctx) * float64(all)
}

// KeyBytes and KeyF16 are bytes per token, for the comparison.
func (v *view) KeyBytes() string {
	if v.Bytes == nil {
		return missing
	}
	return comma(v.Bytes.KCode)
}

// KeyF16 is what F16 keys take.
func (v *view) KeyF16() string {
	if v.Bytes == nil {
		return missing
	}
	return comma(v.Bytes.KF16)
}

func facts(v *view) []fact {
	var out []fact
	add := func(name, format string, args ...any) { out = append(out, fact{name, fmt.Sprintf(format, args...)}) }
	if m := v.Manifest; m != nil {
		x := m.Model
		add("Model", "%s, %d layers, %d KV heads of %d", x.Family, x.Layers, x.KVHeads, x.HeadDim)
		if x.Experts > 0 {
			out[0].Value += fmt.Sprintf(", %d experts", x.Experts)
		}
	}
	if p := v.PPL; p != nil {
		bits := ""
		if v.Bytes != nil {
			bits = fmt.Sprintf(", %s bits a number with its scale",
				trim(fix(16*float64(v.Bytes.KCode)/float64(v.Bytes.KF16), 3)))
		}
		add("Code", "%s%s", v.Code, bits)
		add("Policy", "anchor %d, sink %d, recent %d", p.Anchor, p.Sink, p.Recent)
		add("Measured on", "%s, %s of %d tokens", v.Text.Name, windows(p), p.Ctx)
	}
	if id := v.Engine; id != nil {
		add("Computed by", "llama.cpp %s (ggml %s) on %s", id.Release, id.GGML, strings.Join(id.Devices, ", "))
	}
	if v.Calib.Tokens > 0 {
		add("Fitted to", "%s, %s tokens", v.Calib.Name, comma(v.Calib.Tokens))
	}
	if len(v.Contract) > 0 {
		add("Contract", "%s checks passed", v.Passed())
	}
	return out
}

// columns of the audit, in the order of the table.
var columns = []struct {
	name, title string
	get         func(c *spec.Columns) *float64
}{
	{"raw", "Raw", func(c *spec.Columns) *float64 { return c.Raw }},
	{"cen", "Centred", func(c *spec.Columns) *float64 { return c.Cen }},
	{"srht", "SRHT", func(c *spec.Columns) *float64 { return c.SRHT }},
	{"random", "Random", func(c *spec.Columns) *float64 { return c.Random }},
	{"learned", "Learned", func(c *spec.Columns) *float64 { return c.Learned }},
	{"code", "Code", func(c *spec.Columns) *float64 { return c.Code }},
}

// Floors of Gaussian keys in both units.
const (
	floorCos    = 0.7978845608028654 // sqrt(2/pi)
	floorMoment = 0.6366197723675814 // 2/pi
)

type betaView struct {
	Heads  int
	Tables []betaTable
	Strip  pair
	PPL    string
	PerDim string
}

type betaTable struct {
	Key, Title, Note string
	Heads            []string
	Rows             []betaRow
	Mean             []betaCell
}

type betaRow struct {
	Layer, Head int
	Cells       []betaCell
}

type betaCell struct{ Text, Class, Sort string }

func newBeta(v *view) *betaView {
	if len(v.Layers) == 0 {
		return nil
	}
	b := &betaView{Heads: len(v.Layers), Strip: stripChart(v.Layers)}
	if v.PPL != nil {
		b.PPL = fmt.Sprintf("Perplexity %s with float keys, %s with coded keys.", fix(v.PPL.Float, 2), fix(v.PPL.OneBit, 2))
	}
	if t := v.Layers[0]; t.Tokens > 0 {
		b.PerDim = fmt.Sprintf("Fitted to %s keys a head, %s for each dimension.", comma(t.Tokens), fix(t.TokensPerDim, 0))
	}
	b.Tables = append(b.Tables,
		betaUnit("cos", "Cosine, held out", "cos1bit: mean cosine of a key and its one-bit image. Gaussian keys give 0.798.",
			v.Layers, floorCos, 0.025,
			func(l *spec.Layer) *spec.Columns { return &l.Cos1bit }),
		betaUnit("moment", "Moment ratio, held out",
			"(E|x|)² / E[x²] over all numbers. Gaussian keys give 0.637. Codes that are not orthonormal have none.", v.Layers,
			floorMoment, 0.04,
			func(l *spec.Layer) *spec.Columns { return &l.MomentRatio }))
	train := false
	for i := range v.Layers {
		train = train || v.Layers[i].Train != nil
	}
	if train {
		b.Tables = append(b.Tables, betaUnit("train", "Cosine, fitted text",
			"The same cosine on the keys that the codes were fitted to: nearly always better, and no evidence.", v.Layers,
			floorCos, 0.025,
			func(l *spec.Layer) *spec.Columns { return l.Train }))
	}
	return b
}

func betaUnit(key, title, note string, layers []spec.Layer, floor, step float64,
	unit func(*spec.Layer) *spec.Columns) betaTable {
	t := betaTable{Key: key, Title: title, Note: note}
	for _, c := range columns {
		if c.name == "code" {
			t.Heads = append(t.Heads, "Δ")
		}
		t.Heads = append(t.Heads, c.title)
	}
	sums, counts := make([]float64, len(t.Heads)), make([]int, len(t.Heads))
	cell := func(i int, x *float64, lift bool) betaCell {
		if x == nil {
			return betaCell{Text: missing, Sort: "-1"}
		}
		if i >= 0 {
			sums[i] += *x
			counts[i]++
		}
		c := betaCell{Text: fix(*x, 3), Sort: strconv.FormatFloat(*x, 'f', 5, 64)}
		if lift {
			c.Class = liftClass(*x-floor, step)
		}
		return c
	}
	for k := range layers {
		l := &layers[k]
		cols := unit(l)
		if cols == nil {
			cols = &spec.Columns{}
		}
		row := betaRow{Layer: l.Layer, Head: l.Head}
		i := 0
		for _, c := range columns {
			if c.name == "code" {
				row.Cells = append(row.Cells, cell(i, gain(cols), false))
				i++
			}
			row.Cells = append(row.Cells, cell(i, c.get(cols), true))
			i++
		}
		t.Rows = append(t.Rows, row)
	}
	for i := range sums {
		var x *float64
		if counts[i] > 0 {
			m := sums[i] / float64(counts[i])
			x = &m
		}
		t.Mean = append(t.Mean, cell(-1, x, t.Heads[i] != "Δ"))
	}
	return t
}

// gain is learned minus SRHT.
func gain(c *spec.Columns) *float64 {
	if c.Learned == nil || c.SRHT == nil {
		return nil
	}
	d := *c.Learned - *c.SRHT
	return &d
}

// liftClass names the colour of a lift over the floor: up1 ... up5, down1 ... down5.
func liftClass(lift, step float64) string {
	n := int(max(-9, min(9, lift/step)))
	switch {
	case n > 0:
		return "up" + strconv.Itoa(min(n, 5))
	case n < 0:
		return "down" + strconv.Itoa(min(-n, 5))
	}
	return ""
}

// thresholds of the convergence dashboard.
var thresholds = []float64{0.85, 0.90, 0.92}

type convergeView struct {
	Chart     pair
	Held      pair
	HeldNote  string
	Crossings []crossing
	Heads     int
}

type crossing struct {
	Code, Threshold, Heads, Step string
}

func newConverge(v *view) *convergeView {
	c := &convergeView{}
	if v.Manifest != nil && len(v.Manifest.Curves) > 0 {
		byCode := map[string][][][2]float64{}
		var codes []string
		for _, x := range v.Manifest.Curves {
			if len(x.Points) == 0 {
				continue
			}
			if byCode[x.Code] == nil {
				codes = append(codes, x.Code)
			}
			byCode[x.Code] = append(byCode[x.Code], x.Points)
		}
		sort.Strings(codes)
		for _, code := range codes {
			c.Heads = max(c.Heads, len(byCode[code]))
			for _, t := range thresholds {
				var steps []int
				for _, curve := range byCode[code] {
					for _, p := range curve {
						if p[1] >= t {
							steps = append(steps, int(p[0]))
							break
						}
					}
				}
				x := crossing{Code: code, Threshold: fix(t, 2), Heads: fmt.Sprintf("%d of %d", len(steps), len(byCode[code])),
					Step: missing}
				if len(steps) > 0 {
					sort.Ints(steps)
					x.Step = strconv.Itoa(steps[len(steps)/2])
				}
				c.Crossings = append(c.Crossings, x)
			}
		}
		if len(codes) > 0 {
			c.Chart = convergeChart(codes, byCode, v.Layers)
		}
	}
	if v.Detail != nil && v.Detail.Convergence != nil && len(v.Detail.Convergence.Points) > 1 {
		h := v.Detail.Convergence
		c.Held = heldChart(h)
		last := h.Points[len(h.Points)-1]
		c.HeldNote = fmt.Sprintf("Layer %d, KV head %d, %s keys fitted (%s for each dimension), %s held out: after %d steps %s on the fitted keys, %s on the held-out ones; SRHT %s.",
			h.Layer, h.Head, comma(h.Keys), fix(h.TokensPerDim, 0), comma(h.HeldOut), int(last[0]), fix(last[1], 3),
			fix(last[2], 3), fix(h.SRHT, 3))
	}
	if c.Chart.Wide == "" && c.Held.Wide == "" {
		return nil
	}
	return c
}

type ffnView struct {
	Chart pair
	Rows  []ffnRow
}

type ffnRow struct {
	Matrix, Scope, Rotation string
	Count                   int
	Cos, Moment, Bits       string
}

// newFFN averages the audit of FFN matrices over layers and experts.
func newFFN(v *view) *ffnView {
	if len(v.FFN) == 0 {
		return nil
	}
	type key struct{ matrix, scope, rotation string }
	type sum struct {
		n                 int
		cos, moment, bits float64
	}
	at := map[key]*sum{}
	var keys []key
	for _, r := range v.FFN {
		k := key{r.Matrix, "dense or whole bank", r.Rotation}
		if r.Expert >= 0 {
			k.scope = "per expert"
		}
		if at[k] == nil {
			at[k] = &sum{}
			keys = append(keys, k)
		}
		s := at[k]
		s.n++
		s.cos += r.Cos1bit
		s.moment += r.MomentRatio
		s.bits += r.EffectiveBits
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		if a.matrix != b.matrix {
			return a.matrix < b.matrix
		}
		if a.scope != b.scope {
			return a.scope < b.scope
		}
		return a.rotation < b.rotation
	})
	out := &ffnView{Chart: ffnChart(v.FFN)}
	for _, k := range keys {
		s := at[k]
		n := float64(s.n)
		out.Rows = append(out.Rows, ffnRow{k.matrix, k.scope, k.rotation, s.n, fix(s.cos/n, 3), fix(s.moment/n, 3),
			fix(s.bits/n, 2)})
	}
	return out
}

type qualityView struct {
	Pareto    pair
	Points    []qualityPoint
	Angles    pair
	AngleNote string
	ByLayer   pair
	Worst     string
	Positions pair
	Contexts  []spec.ContextRow
	Detail    *spec.Detail
}

// A qualityPoint is one row of the Pareto table: keys only, values float.
type qualityPoint struct {
	Name       string
	Label      string // short, for the picture
	Bytes      float64
	Bits       string
	KLD        float64
	Ratio, Top string
	Kind       string // own, code, stock (with this file) or published
}

func newQuality(v *view) *qualityView {
	q := &qualityView{Detail: v.Detail}
	q.Points = points(v)
	if len(q.Points) > 1 {
		q.Pareto = lossChart(q.Points, "Loss against size of the keys", "bytes of keys per token", float64(v.Bytes.KF16))
	}
	d := v.Detail
	if d == nil {
		return q
	}
	if len(d.Angles) > 0 {
		q.Angles = anglesChart(d)
		n, layers := 0, byLayer(d.Angles)
		for _, l := range layers {
			if l.raw > collapse {
				n++
			}
		}
		q.AngleNote = fmt.Sprintf("%d of %d layers lie above the 44° line as they stand.", n, len(layers))
	}
	if len(d.Layers) > 0 {
		q.ByLayer = layersChart(d.Layers)
		worst := d.Layers[0]
		var sum float64
		for _, l := range d.Layers {
			sum += l.KLD
			if l.KLD > worst.KLD {
				worst = l
			}
		}
		q.Worst = fmt.Sprintf("Layer %d costs most, %s nats; all layers one by one sum to %s.", worst.Layer, sig(worst.KLD),
			sig(sum))
	}
	if len(d.Positions) > 0 {
		q.Positions = positionsChart(d.Positions)
	}
	q.Contexts = d.Contexts
	return q
}

// points lists what was measured of this model, smallest first.
func points(v *view) []qualityPoint {
	var out []qualityPoint
	if v.Whole() {
		return nil // the picture of whole caches has them
	}
	if v.Bytes != nil && v.KLD != nil && v.PPL != nil {
		out = append(out, qualityPoint{v.Code + " (this file)", v.Code + " (this file)", float64(v.Bytes.KCode), "",
			v.KLD.Mean, fix(v.PPL.Ratio, 3), pct(v.KLD.SameTop, 1), "own"})
	}
	add := func(name, label, kind string, p spec.ParetoPoint) {
		out = append(out, qualityPoint{name, label, p.BytesPerToken, "", p.KLD, fix(p.PPLRatio, 3), pct(p.SameTop, 1), kind})
	}
	for _, p := range v.Pareto {
		name := p.Code + " " + trim(fix(p.Bits, 2)) + " bit"
		add(name, name, "code", p)
	}
	if v.Detail != nil {
		for _, p := range v.Detail.Codes {
			if p.Code != v.Code || p.Bits != v.Detail.Bits {
				add(p.Code, p.Code, "code", p)
			}
		}
	}
	if v.Bytes != nil {
		rows := worstText(v.Advise)
		if v.PPL != nil {
			rows = sameContext(rows, v.PPL.Ctx)
		}
		for _, r := range rows {
			// With F16 values the rest of the bytes is keys.
			if k := r.BytesPerToken - float64(v.Bytes.KF16); !coded(r.VType) && coded(r.KType) && k > 0 {
				name, kind := r.KType+", as published", "published"
				if r.Converted {
					name, kind = r.KType+", this file", "stock"
				}
				add(name, r.KType, kind, spec.ParetoPoint{BytesPerToken: k, PPLRatio: r.PPLRatio, KLD: r.KLD, SameTop: r.SameTop})
			}
		}
		for i := range out {
			out[i].Bits = fix(16*out[i].Bytes/float64(v.Bytes.KF16), 2)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Bytes < out[j].Bytes })
	return out
}

// runtimeFacts counts the work of a decode step at a context of 4,096, where the
// shape of the model is known.
func runtimeFacts(v *view) []fact {
	if v.Manifest == nil || v.Bytes == nil {
		return nil
	}
	const n = 4096
	if v.Whole() {
		coded, f16 := v.wholeBytes(n)
		beside := ""
		if _, left := v.coded(); left != "" {
			beside = "; " + left
		}
		out := []fact{
			{"Stored per token", fmt.Sprintf("%s bytes in all layers: signs, and one 16-bit scale for each group of heads%s",
				comma(v.Bytes.KVCode), beside)},
			{"Read per decoded token", fmt.Sprintf("%s bytes of keys and values instead of %s", comma(int64(coded)), comma(int64(f16)))},
			{"Sidecar", fmt.Sprintf("%s, once per model", size(v.Bytes.Sidecar))},
		}
		if c := v.Manifest.Code; c.Sink+c.Recent > 0 {
			out = append(out, fact{"Tokens that stay F16", fmt.Sprintf("first %d, last %d", c.Sink, c.Recent)})
		}
		return out
	}
	m, c := v.Manifest.Model, v.Manifest.Code
	d := int64(m.HeadDim)
	b := int64(float64(d)*c.Bits + 0.5)
	blocks := int64(1)
	if c.Anchor > 0 {
		blocks = (n + int64(c.Anchor) - 1) / int64(c.Anchor)
	}
	stored := fmt.Sprintf("%d signs and one 16-bit scale for each KV head", b)
	if c.Alloc != "" && c.Alloc != "uniform" {
		stored = fmt.Sprintf("%d signs on average and one 16-bit scale for each KV head; signs were allotted by %s", b,
			c.Alloc)
	}
	if c.Exceptions > 0 {
		stored += fmt.Sprintf(", and %d single numbers of 24 bits", c.Exceptions)
	}
	out := []fact{
		{"Stored per key", stored},
		{"F16 keys, per query head", fmt.Sprintf("%s multiply-adds for %s keys, %s bytes read for each KV head", comma(d*n),
			comma(n), comma(2*d*n))},
		{"Coded keys, per query head",
			fmt.Sprintf("%s multiply-adds to turn the query (%s %s of %d × %d), then %s signed additions for %s keys, %s bytes read",
				comma(blocks*d*b), comma(blocks), plural(blocks, "product", "products"), d, b, comma(b*n), comma(n),
				comma((4*((b+31)/32)+2+3*int64(c.Exceptions))*n))},
		{"Sidecar", fmt.Sprintf("%s, once per model", size(v.Bytes.Sidecar))},
	}
	if c.Sink+c.Recent > 0 {
		out = append(out, fact{"Keys that stay F16", fmt.Sprintf("first %d, last %d", c.Sink, c.Recent)})
	}
	return out
}

// windows counts what was measured.
func windows(p *spec.PPLJSON) string {
	return fmt.Sprintf("%d %s", p.Chunks, plural(int64(p.Chunks), "window", "windows"))
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// bibtex is how to cite the artifact: the tool and the source, nothing invented.
func bibtex(v *view) string {
	if v.Manifest == nil {
		return ""
	}
	return fmt.Sprintf(`@software{phaseconv,
  title   = {phaseconv: KV caches that survive very few bits},
  version = {%s},
  note    = {Artifact of %s, source SHA-256 %s}
}`, trimTool(v.Manifest.Tool), bibEscape(v.Manifest.Source.Name), v.Manifest.Source.SHA256)
}

func trimTool(tool string) string {
	if len(tool) > 10 && tool[:10] == "phaseconv " {
		return bibEscape(tool[10:])
	}
	return bibEscape(tool)
}

// bibEscape keeps a name from ending its field.
func bibEscape(s string) string {
	out := []rune{}
	for _, r := range s {
		switch r {
		case '{', '}', '\\', '%', '`', '\n', '\r':
			continue
		case '_', '&', '#', '$':
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}
