package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

var update = flag.Bool("update", false, "write the golden files anew")

func render(t testing.TB, claims *spec.ClaimsJSON, models ...Model) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, models, claims); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences(got, string(want)) {
		t.Errorf("%s: %s (look at both, then go test -update)", name, d)
	}
}

// partStarts are where a page or a model card is cut: sections, cards (tiles, facts), charts,
// tables, headings.
var partStarts = regexp.MustCompile(
	`(?m)<(section|header|figure|table|style|script|footer)\b[^>]*>|<dl class="(tiles|facts)">|^#{1,3} .*$`)

// A part of a page is what stands from one start to the next.
type part struct{ name, text string }

// parts cuts a page. A part is named after its section and its number there.
func parts(page string) []part {
	var out []part
	section, n, from, name := "", map[string]int{}, 0, "head"
	for _, m := range partStarts.FindAllStringSubmatchIndex(page, -1) {
		out = append(out, part{name, page[from:m[0]]})
		from = m[0]
		start := page[m[0]:m[1]]
		kind := ""
		switch {
		case m[2] >= 0:
			kind = page[m[2]:m[3]]
		case m[4] >= 0:
			kind = page[m[4]:m[5]]
		}
		switch {
		case strings.HasPrefix(start, "#"):
			name = start
		case kind == "section":
			section, name = start, start
			clear(n)
		default:
			n[kind]++
			name = strings.TrimSpace(fmt.Sprintf("%s %s %d", section, kind, n[kind]))
		}
	}
	return append(out, part{name, page[from:]})
}

// differences names the parts of a page that are not as they should be.
func differences(got, want string) (out []string) {
	if got == want {
		return nil
	}
	have := map[string]string{}
	for _, p := range parts(got) {
		have[p.name] = p.text
	}
	wanted := map[string]bool{}
	for _, p := range parts(want) {
		wanted[p.name] = true
		text, ok := have[p.name]
		i := 0
		for i < len(text) && i < len(p.text) && text[i] == p.text[i] {
			i++
		}
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%s is missing", p.name))
		case text != p.text:
			out = append(out, fmt.Sprintf("%s differs at byte %d of it: %.120q, want %.120q", p.name, i, text[i:], p.text[i:]))
		}
	}
	for _, p := range parts(got) {
		if !wanted[p.name] {
			out = append(out, fmt.Sprintf("%s is new", p.name))
		}
	}
	if out == nil {
		out = []string{"the same parts in another order, or two of one name"}
	}
	return out
}

// TestDifferences: a change is told by the part it is in.
func TestDifferences(t *testing.T) {
	const page = `<p>a</p><section id="x"><figure>1</figure><figure>2</figure><table>3</table></section>`
	for old, x := range map[string]struct{ text, want string }{
		"2":                {"4", `<section id="x"> figure 2 differs at byte 8 of it`},
		"3":                {"<table>5", `<section id="x"> table 2 is new`},
		`<section id="x">`: {"", `<section id="x"> is missing`},
		"a":                {"b", "head differs at byte 3"},
	} {
		if d := strings.Join(differences(strings.Replace(page, old, x.text, 1), page), "; "); !strings.Contains(d, x.want) {
			t.Errorf("%s: %s", old, d)
		}
	}
	if d := differences(page, page); d != nil {
		t.Error(d)
	}
}

func TestGolden(t *testing.T) {
	page := render(t, claims(), fixture(t))
	golden(t, "golden.html", page)
	if render(t, claims(), fixture(t)) != page {
		t.Error("a second page of the same data has other bytes")
	}
}

// TestRoundedInputsSurvive: the caveat about rounded inputs reaches page and card from every set
// of files that a conversion leaves.
func TestRoundedInputsSurvive(t *testing.T) {
	const caveat = "rounded"
	for name, edit := range map[string]func(m *Model){
		"manifest and report.json": func(*Model) {},
		"manifest alone":           func(m *Model) { m.Advise, m.Rounded = nil, false },
	} {
		m := fixture(t)
		edit(&m)
		v, err := newView(0, &m)
		if err != nil {
			t.Fatal(err)
		}
		if !v.Rounded || len(v.Advise) == 0 {
			t.Errorf("%s: rounded %v, %d rows", name, v.Rounded, len(v.Advise))
		}
		if page := render(t, claims(), m); !strings.Contains(page, caveat) {
			t.Errorf("%s: the page does not say %q", name, caveat)
		}
	}
	m := fixture(t)
	m.Rounded, m.Manifest.Fusion.RoundedInputs = false, false
	if v, err := newView(0, &m); err != nil || v.Rounded {
		t.Errorf("float inputs are called rounded: %v", err)
	}
}

func TestGoldenCard(t *testing.T) {
	var b bytes.Buffer
	if err := Card(&b, fixture(t), CardOptions{BaseModel: "Org/Fixture", Name: "Fixture"}); err != nil {
		t.Fatal(err)
	}
	golden(t, "card.md", b.String())
}

// TestHostileNames: a name is neither a line, nor a tag, nor a link of a card, nor a command in it.
func TestHostileNames(t *testing.T) {
	const evil = "a\"b: [x](http://evil)\r\nlicense: mit\n---\n```\n# <img src=x onerror=alert(1)>\u2028"
	m := fixture(t)
	m.Name, m.Manifest.Source.Name, m.Manifest.Calibration.Name, m.Manifest.Model.Family = evil, evil, evil, evil
	m.Manifest.Artifacts[0].Model = "m'; touch `x` .gguf"
	m.Manifest.Measured.Text.Name = evil
	m.Manifest.Measured.Contract = []spec.Check{{Check: "files", Detail: evil}}
	var b bytes.Buffer
	if err := Card(&b, m, CardOptions{Name: evil, QuantizedBy: evil}); err != nil {
		t.Fatal(err)
	}
	body, _, _ := strings.Cut(b.String(), "```bibtex")
	front, body, _ := strings.Cut(strings.TrimPrefix(body, "---\n"), "\n---\n")
	if n := strings.Count(front, "\n"); n != 7 {
		t.Errorf("the front matter has %d line ends lines:\n%s", n, front)
	}
	card := regexp.MustCompile("(?m)`[^`\n]+`|^\\|.*$").ReplaceAllString(body, "")
	for _, bad := range []string{"\nlicense: mit", "[x](", "\r", "\u2028", "\n# \\", "\n```\n#"} {
		if strings.Contains(card, bad) {
			t.Errorf("%q is in the card:\n%s", bad, card)
		}
	}
	if n := strings.Count(card, "<img") - strings.Count(card, `\<img`); n != 0 {
		t.Errorf("%d tags in the card:\n%s", n, card)
	}
	if !strings.Contains(b.String(), `llama-cli -m 'm'\''; touch  x  .gguf'`) {
		t.Errorf("a file name is a command:\n%s", b.String())
	}
}

// void elements have no end tag.
var void = map[string]bool{"meta": true, "input": true, "br": true, "wbr": true, "link": true, "img": true}

// wellFormed checks that elements nest, that ids are unique and references to
// them resolve, that nothing is loaded from elsewhere, and that each picture is
// XML. It returns the text outside of scripts and styles.
func wellFormed(t *testing.T, page string) string {
	t.Helper()
	z := html.NewTokenizer(strings.NewReader(page))
	var open []string
	ids, refs := map[string]bool{}, map[string]string{}
	var text strings.Builder
	for {
		tt := z.Next()
		if tt == html.ErrorToken {
			if !errors.Is(z.Err(), io.EOF) {
				t.Fatal(z.Err())
			}
			break
		}
		tok := z.Token()
		switch tt {
		case html.TextToken:
			if n := len(open); n == 0 || open[n-1] != "script" && open[n-1] != "style" {
				text.WriteString(tok.Data)
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			for _, a := range tok.Attr {
				switch a.Key {
				case "id":
					if ids[a.Val] {
						t.Errorf("id %q twice", a.Val)
					}
					ids[a.Val] = true
				case "for":
					refs[a.Val] = "for"
				case "href":
					if id, ok := strings.CutPrefix(a.Val, "#"); ok {
						refs[id] = "href"
					} else if tok.Data != "a" {
						t.Errorf("<%s> loads %q", tok.Data, a.Val)
					}
				case "src", "srcset", "poster", "data", "action":
					t.Errorf("<%s> has %s=%q", tok.Data, a.Key, a.Val)
				}
				if strings.HasPrefix(a.Key, "on") {
					t.Errorf("<%s> has a handler %s", tok.Data, a.Key)
				}
			}
			if tt == html.StartTagToken && !void[tok.Data] {
				open = append(open, tok.Data)
			}
		case html.EndTagToken:
			if n := len(open); n == 0 || open[n-1] != tok.Data {
				t.Fatalf("</%s> ends %v", tok.Data, open)
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("still open at the end: %v", open)
	}
	for id, what := range refs {
		if !ids[id] {
			t.Errorf("%s points at %q, which is not there", what, id)
		}
	}
	for _, bad := range []string{"@import", "url(", "fetch(", "XMLHttpRequest", "ZgotmplZ", "NaN", "Infinity",
		"<no value>", "%!"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page contains %s", bad)
		}
	}
	for _, pic := range regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(page, -1) {
		d := xml.NewDecoder(strings.NewReader(pic))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in %.200s", err, pic)
			}
		}
	}
	return text.String()
}

func TestWellFormed(t *testing.T) {
	text := wellFormed(t, render(t, claims(), fixture(t)))
	// Names come from files and must arrive as text.
	for _, want := range []string{"fixture <b>&", "Scores stay <the same>.", "'fixture & co'", "apache-2.0", "1,234,567"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for n := 2; n <= 9; n++ {
		if !strings.Contains(text, string(rune('0'+n))+" ") {
			t.Errorf("section %d is missing", n)
		}
	}
	if strings.Contains(text, "Not measured") {
		t.Error("the fixture has everything, yet something was not measured")
	}
	m := fixture(t)
	wellFormed(t, render(t, nil, m, m, Model{Name: "empty"}))
}

// TestWhole: the page of a whole cache in joint codes says nothing of heads that have no code of their own.
func TestWhole(t *testing.T) {
	m := fixture(t)
	text := render(t, nil, m)
	if !strings.Contains(text, "moment ratios of this model") || !strings.Contains(text, "more coded keys.") {
		t.Error("the page of codes of keys has lost its words")
	}
	m.Manifest.Measured.Layers = nil
	b := m.Manifest.Measured.Bytes
	b.Parts, b.KVF16, b.KVCode = "kv", 2*b.KF16, b.KCode
	for _, not := range []string{"moment ratios of this model", "more coded keys.", "the keys of one layer", "1-bit keys"} {
		if text := render(t, nil, m); strings.Contains(text, not) {
			i := strings.Index(text, not)
			t.Errorf("the page says %q: %s", not, text[max(0, i-80):i])
		}
	}
	m.Manifest.Layers, m.Manifest.Graph = nil, &spec.Graph{}
	m.FFN = nil
	m.Detail.Groups = []spec.GroupRow{
		{Part: "k", Heads: []int{0, 1, 2}, Dims: 192, Signs: 576, Tokens: 508, Cos1bit: 0.9, EnergyLeft: 0.2},
		{Part: "v", Heads: []int{0, 2}, Dims: 128, Signs: 576, Tokens: 508, Cos1bit: 0.8125, EnergyLeft: 0.375},
		{Layer: 1, Part: "k", Dims: 192, Signs: 576, Given: true, Tokens: 508, Cos1bit: 0.95, EnergyLeft: 0.1},
	}
	text = render(t, nil, m)
	for _, want := range []string{"0 to 2", "0 2", "the layer below", "508 tokens", ">0.925<", ">0.150<", ">0.375<",
		"FFN weights were not measured: the table of families lacks"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table of groups does not say %q", want)
		}
	}
}

// TestMissing: a model of which nothing is known gives a page that says so and
// shows no number in its place.
func TestMissing(t *testing.T) {
	text := wellFormed(t, render(t, nil, Model{Name: "empty"}))
	for _, want := range []string{"has not been measured yet", "Not measured in this run", "not part of this run",
		"No sample of keys was kept"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if err := Write(io.Discard, nil, nil); err == nil {
		t.Error("a page about no model")
	}
	if err := Write(io.Discard, make([]Model, MaxModels+1), nil); err == nil {
		t.Error("a page about too many models")
	}
	if err := Card(io.Discard, Model{}, CardOptions{}); err == nil {
		t.Error("a card without a manifest")
	}
	m := fixture(t)
	m.Manifest.Measured, m.Detail, m.Advise = nil, nil, nil
	var b bytes.Buffer
	if err := Card(&b, m, CardOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := b.String(); !strings.Contains(s, "Nothing was measured.") || strings.Contains(s, "KL divergence") ||
		strings.Contains(s, "base_model") {
		t.Errorf("a card of something that was not measured:\n%s", s)
	}
}

// TestHostile: data that contradicts itself gives a page or an error, never a panic.
func TestHostile(t *testing.T) {
	m := fixture(t)
	m.Detail.Scores.Codes[0].Scores = m.Detail.Scores.Codes[0].Scores[:3]
	wellFormed(t, render(t, nil, m))
	m = fixture(t)
	m.Detail.Angles[0].Layer, m.Detail.Angles[1].Layer = -5, 1<<40
	m.FFN[0].Layer = 1 << 40
	m.Detail.Layers[0].KLD = 1e300
	m.Detail.Positions[0].To = -1
	m.Detail.Cloud.Points[0] = [2]float64{1e300, -1e300}
	m.Detail.Scores.Sink = 1000
	m.Manifest.Curves[0].Points = nil
	*m.Manifest.Layers[0].Cos1bit.Raw = 1e300
	m.Manifest.Measured.Bytes.KF16 = 0
	m.Manifest.Code.Bits, m.Manifest.Code.Anchor = -1, -7
	wellFormed(t, render(t, nil, m))
}

// TestCachePoints: which pairs, at which context, of which size the picture of whole caches shows.
func TestCachePoints(t *testing.T) {
	row := func(k, v string, ctx int, kld float64, converted bool, cache int64) spec.AdviseRow {
		return spec.AdviseRow{KType: k, VType: v, Ctx: ctx, Converted: converted, BytesPerToken: 100, KLD: kld,
			PPLRatio: 1, CacheBytes: cache}
	}
	v := &view{Code: "frame", Bytes: &spec.BytesJSON{KF16: 64, KCode: 8}, KLD: &spec.KLDJSON{Mean: 0.25},
		PPL: &spec.PPLJSON{Ctx: 512}}
	v.Advise = []spec.AdviseRow{
		row("f16", "f16", 512, 1e-13, false, 1000), row("f16", "f16", 512, 1e-3, true, 1000),
		row("q8_0", "q8_0", 512, 0.01, false, 500), row("q4_0", "q4_0", 512, 0.1, true, 0),
		row("q4_0", "q4_0", 8192, 0.2, false, 4000),
	}
	points, ctx, f16 := cachePoints(v)
	if ctx != 512 || f16 != 1000 || len(points) != 4 {
		t.Fatalf("context %d, F16 %v, %+v", ctx, f16, points)
	}
	for i, want := range []struct {
		label, kind string
		bytes       float64
	}{{"f16/f16", "stock", 1000}, {"q8_0/q8_0", "published", 500}, {"q4_0/q4_0", "stock", 100 * 512}, {"frame/f16", "own", (64 + 8) * 512}} {
		if p := points[i]; p.Label != want.label || p.Kind != want.kind || p.Bytes != want.bytes {
			t.Errorf("point %d: %+v, want %+v", i, p, want)
		}
	}
	// Of several texts the worst.
	for i := range v.Advise {
		v.Advise[i].Text = "a"
	}
	v.Advise = append(v.Advise, row("q8_0", "q8_0", 512, 0.02, false, 500), row("q4_0", "q4_0", 512, 0.05, true, 0))
	v.Advise[5].Text, v.Advise[6].Text = "b", "b"
	if points, _, _ = cachePoints(v); len(points) != 4 || points[1].KLD != 0.02 || points[2].KLD != 0.1 {
		t.Errorf("several texts: %+v", points)
	}
	// Without our own measurement: the longest context.
	v.PPL = nil
	if points, ctx, f16 = cachePoints(v); ctx != 8192 || f16 != 0 || len(points) != 1 || points[0].Bytes != 4000 {
		t.Errorf("context %d, F16 %v, %+v", ctx, f16, points)
	}
	if points, _, _ = cachePoints(&view{}); len(points) != 0 {
		t.Errorf("of nothing: %+v", points)
	}
}

// TestRuntimes: cache types name the runtime that has them.
func TestRuntimes(t *testing.T) {
	row := func(k, v string) spec.AdviseRow { return spec.AdviseRow{KType: k, VType: v} }
	mlx := &spec.Fusion{KType: "mlx4", VType: "mlx4"}
	for want, got := range map[string][]string{
		"llama.cpp": {runtimes(nil, nil), runtimes([]spec.AdviseRow{row("f16", "f16"), row("q4_0", "f16")}, nil)},
		"mlx-lm":    {runtimes([]spec.AdviseRow{row("f16", "f16")}, mlx), runtimes([]spec.AdviseRow{row("mlx8", "mlx8")}, nil)},
		"llama.cpp and mlx-lm": {runtimes([]spec.AdviseRow{row("f16", "q8_0")}, mlx),
			runtimes([]spec.AdviseRow{row("mlx4", "mlx4")}, &spec.Fusion{KType: "q4_0", VType: "f16"})},
	} {
		for i, name := range got {
			if name != want {
				t.Errorf("%s, case %d: %s", want, i, name)
			}
		}
	}
}

// TestSettled: results of advise on several texts are told apart, and stand instead of what the conversion
// measured of the same.
func TestSettled(t *testing.T) {
	row := func(k string, kld float64) spec.AdviseRow {
		return spec.AdviseRow{KType: k, VType: "q4_0", Ctx: 512, KLD: kld}
	}
	result := func(text string, rows ...spec.AdviseRow) []spec.AdviseRow {
		return named(&spec.AdviseJSON{Rows: rows, Texts: []spec.Text{{Name: text}}})
	}
	rows := slices.Concat([]spec.AdviseRow{row("q4_0", 1)},
		result("test.txt", row("q4_0", 2), row("q8_0", 3)), result("chat", row("q4_0", 4)))
	got := settled(rows, "test.txt")
	for i, want := range []struct {
		text string
		kld  float64
	}{{"test.txt", 2}, {"test.txt", 3}, {"chat", 4}} {
		if len(got) != 3 || got[i].Text != want.text || got[i].KLD != want.kld {
			t.Fatalf("%+v", got)
		}
	}
	if rows[0].KLD != 1 || worstText(got)[0].KLD != 4 {
		t.Errorf("%+v, %+v", rows, worstText(got))
	}
}

func FuzzJSON(f *testing.F) {
	m := fixture(f)
	for _, v := range []any{
		spec.ReportJSON{Version: spec.ReportVersion, Detail: m.Detail, Advise: m.Advise, FFN: m.FFN}, m.Manifest,
		m.Manifest.Measured,
		spec.AuditJSON{Layers: m.Manifest.Layers[:1], PPL: m.Manifest.Measured.PPL, KLD: m.Manifest.Measured.KLD,
			Bytes: m.Manifest.Measured.Bytes},
		spec.AdviseJSON{Rows: m.Advise, Choices: []spec.AdviseChoice{}},
	} {
		b, err := json.Marshal(v)
		if m, ok := v.(*spec.Manifest); ok {
			b, err = contract.MarshalManifest(m)
		}
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		raw = bytes.Clone(raw)
		_ = spec.SealManifest(raw) // so that what is behind the digest is reached
		models, err := add([]Model{{Name: "x"}}, raw, "y")
		if err == nil {
			_ = Write(io.Discard, models, nil)
		}
	})
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, v any) string {
		b, err := json.Marshal(v)
		if m, ok := v.(*spec.Manifest); ok {
			b, err = contract.MarshalManifest(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	m := fixture(t)
	art := filepath.Dir(write("art/"+spec.ManifestName, m.Manifest))
	write("art/"+spec.ReportDataName, spec.ReportJSON{Version: spec.ReportVersion, Detail: m.Detail})
	advise := write("advise.json", spec.AdviseJSON{Rows: m.Advise, Choices: []spec.AdviseChoice{}})
	audit := write("some-model.json", spec.AuditJSON{Layers: m.Manifest.Layers})
	ver := write("verify.json", m.Manifest.Measured)
	got, err := Load([]string{art, advise, audit, ver})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Detail == nil || len(got[0].Advise) != len(m.Advise) || got[1].Name != "some-model" ||
		got[1].Audit == nil || got[1].Verify == nil {
		t.Fatalf("loaded %d models: %+v", len(got), got)
	}
	wellFormed(t, render(t, nil, got...))
	for name, v := range map[string]any{
		"other.json": map[string]int{"a": 1}, "version.json": map[string]int{"report": 99},
		"manifest.json": map[string]any{"artifacts": nil, "version": 99},
		"list.json":     []int{1}, "kind.json": map[string]any{"contract": 7},
	} {
		path := write(name, v)
		if _, err := Load([]string{path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	// Members count under their own name only.
	other := write("case.json", map[string]any{"calibration": map[string]any{}, "layers": []any{}, "Layers": 7,
		"CALIBRATION": []int{1}})
	if got, err := Load([]string{other}); err != nil || len(got) != 1 || got[0].Audit == nil {
		t.Errorf("names in another case: %+v, %v", got, err)
	}
	if _, err := Load([]string{filepath.Join(dir, "none")}); err == nil {
		t.Error("a file that is not there was loaded")
	}
	if _, err := Load([]string{dir}); err == nil {
		t.Error("a folder without a manifest was loaded")
	}
}

// TestLicense: the forms that cards on the hub state licences in.
func TestLicense(t *testing.T) {
	card := func(front string) string { return "---\n" + front + "\n---\n# x\nlicense: wrong\n" }
	long := strings.Repeat("  ### Conditions\n  license: wrong\n  - wrong\n", 5000)
	for _, x := range []struct {
		file, text string
		want       License
	}{
		{"README.md", card("license: apache-2.0\ntags:\n- a"), License{IDs: []string{"apache-2.0"}}},
		{"README.md", "---\r\nlicense: \"mit\"\r\n---\r\n", License{IDs: []string{"mit"}}},
		{"README.md", "\ufeff---\nlicense: MIT # as usual\n---\n", License{IDs: []string{"mit"}}},
		{"README.md", card("license: other\nlicense_name: my-research\nlicense_link: LICENSE"),
			License{IDs: []string{"other"}, Name: "my-research", Link: "LICENSE"}},
		{"README.md", card("license_name: 'my licence: 2'\nlicense_link: http://example.org/#x\nlicense: other"),
			License{IDs: []string{"other"}, Name: "my licence: 2", Link: "http://example.org/#x"}},
		{"README.md", card("license_name: mnpl\nlicense_link: LICENSE.md"), License{IDs: []string{"other"}, Name: "mnpl",
			Link: "LICENSE.md"}},
		{"README.md", card("license: other"), License{IDs: []string{"other"}}},
		{"README.md", card("license: llama3.1"), License{IDs: []string{"llama3.1"}}},
		{"README.md", card("license: my-own-licence"), License{IDs: []string{"other"}, Name: "my-own-licence"}},
		{"README.md", card("license: [apache-2.0, 'mit']"), License{IDs: []string{"apache-2.0", "mit"}}},
		{"README.md", card("license:\n- mit\n- apache-2.0\nlanguage:\n- en"), License{IDs: []string{"apache-2.0", "mit"}}},
		{"README.md", card("language:\n- en\nlicense: # which\n  - \"gemma\"\nlibrary_name: transformers"),
			License{IDs: []string{"gemma"}}},
		{"README.md", card("license: null\nextra_gated_heading: Ask\nlicense_name: ~"), License{Gated: true}},
		{"README.md", card("extra_gated_prompt: >-\n" + long +
			"extra_gated_fields:\n  license: text\n  I agree: checkbox\nlicense: gemma"),
			License{IDs: []string{"gemma"}, Gated: true}},
		{"README.md", card("model-index:\n- name: x\n  license: wrong\nlicense: mit"), License{IDs: []string{"mit"}}},
		{"README.md", "# no front matter\nlicense: mit\n", License{}},
		{"README.md", "---\nlicense: mit\n", License{}},
		{"LICENSE", "   Apache License\n   Version 2.0, January 2004\n", License{IDs: []string{"apache-2.0"}}},
		{"LICENSE", "Anything else", License{File: "LICENSE"}},
		{"other.txt", "MIT License", License{}},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, x.file), []byte(x.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := ReadLicense(dir); !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s %.200q: licence %+v, want %+v", x.file, x.text, got, x.want)
		}
	}
	if s := (License{File: "LICENSE"}).String(); s != "see LICENSE" {
		t.Errorf("a licence in a file reads %q", s)
	}
}

// TestCardLicense: what the card says is what the source's card says, in forms that
// the hub takes.
func TestCardLicense(t *testing.T) {
	for _, x := range []struct {
		license License
		want    string
	}{
		{ParseLicense("mit"), "license: \"mit\"\n"},
		{ParseLicense("mit", "apache-2.0"), "license:\n- \"apache-2.0\"\n- \"mit\"\n"},
		{License{IDs: []string{"other"}, Name: "my-research", Link: "LICENSE"},
			"license: \"other\"\nlicense_name: \"my-research\"\nlicense_link: \"LICENSE\"\n"},
		{ParseLicense("My Own"), "license: \"other\"\nlicense_name: \"My Own\"\n"},
		{License{File: "LICENSE", Gated: true}, ""},
	} {
		m := fixture(t)
		m.License = x.license
		m.Manifest.Notes = []string{"A token\nis left out."}
		var b bytes.Buffer
		if err := Card(&b, m, CardOptions{}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "\n- read so: A token is left out.\n") {
			t.Error("the card does not have the notes")
		}
		front, _, _ := strings.Cut(strings.TrimPrefix(b.String(), "---\n"), "pipeline_tag")
		if front != x.want {
			t.Errorf("%+v: front matter %q, want %q", x.license, front, x.want)
		}
		if strings.Contains(b.String(), "gated access") != x.license.Gated {
			t.Errorf("%+v: the card does not say that the source is gated, or says so of another", x.license)
		}
	}
}

// TestClaims: the page names the theorems of a claim with their axioms, who accepted them,
// and what is outside; a ledger without theorems says nothing of a prover.
func TestClaims(t *testing.T) {
	page := render(t, claims(), fixture(t))
	for _, want := range []string{
		"1 proved, 1 argued, 1 open", "Prover 1.0 and checker accepted", "3 in all, 2 of them without",
		"theorem <code>A.one</code></span>", "theorem <code>A.two</code>, axioms choice, classic</span>",
		"Outside the proof: &lt;much&gt;.", "Needs: a &amp; b (<code>x/<wbr>y.go: F</code>)",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	bare := claims()
	bare.Claims = bare.Claims[1:]
	if strings.Contains(render(t, bare, fixture(t)), "Prover 1.0") {
		t.Error("a prover is named that proved none of the claims")
	}
	ledger, err := spec.ClaimsReport()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range ledger.Claims {
		if statusClass(c.Status) != c.Status {
			t.Errorf("claim %s has status %q", c.Name, c.Status)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, x := range []struct {
		name   string
		change func(m *Model)
		want   string
	}{
		{"better but larger", func(*Model) {},
			"Better choice unless memory forbids it: q4_0 keys of a stock runtime, with this file at context 512, cost a KLD of 0.0300"},
		{"better and smaller", func(m *Model) { m.Advise[4].BytesPerToken = 280 },
			"Smaller and more faithful, so use it instead."},
		{"none better", func(m *Model) { m.Manifest.Measured.KLD.Mean = 1e-4 },
			"No stock K cache type measured here is more faithful"},
		{"not measured", func(m *Model) { m.Advise, m.Manifest.Fusion = nil, nil }, "Stock K cache types were not measured"},
		{"only coded values", func(m *Model) {
			for i := range m.Advise {
				m.Advise[i].VType = "q8_0"
			}
		}, "Stock K cache types were not measured"},
		{"other context", func(m *Model) { m.Advise[4].Ctx = 4096 }, "q8_0 keys of a stock runtime"},
		{"failed", func(m *Model) {
			m.Manifest.Measured.Contract[1] = spec.Check{Check: "files", Detail: "damaged"}
		}, "Not verified. files: damaged."},
		{"free", func(m *Model) {
			m.Manifest.Measured.PPL.Ratio, m.Manifest.Measured.PPL.RatioErr, m.Manifest.Measured.KLD.Mean = 1.01, 0.01, 0.001
		}, "no change in perplexity beyond the error"},
		{"hidden", func(m *Model) { m.Manifest.Measured.PPL.Ratio, m.Manifest.Measured.PPL.RatioErr = 1.01, 0.01 },
			"at a KLD of 0.123 nats, a cost that perplexity on this text does not resolve"},
		{"heavy", func(m *Model) { m.Manifest.Measured.PPL.Ratio = 2.63 }, "at 2.63 times the perplexity"},
		{"more", func(*Model) {}, "in 2 bits a number at 15 % more perplexity"},
		{"less", func(m *Model) { m.Manifest.Measured.PPL.Ratio, m.Manifest.Measured.PPL.RatioErr = 0.9, 0.01 },
			"at 10 % less perplexity"},
		{"broken", func(m *Model) { m.Manifest.Measured.PPL.Ratio = math.Inf(1) }, "no longer predicts text"},
	} {
		m := fixture(t)
		x.change(&m)
		v, err := newView(0, &m)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.Verdict.Headline + "\n" + v.Verdict.Advice + "\n" + v.Verdict.Alarm; !strings.Contains(got, x.want) {
			t.Errorf("%s: %s\nwant %q", x.name, got, x.want)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, x := range []struct{ got, want string }{
		{sig(0), "0"}, {sig(1234.5), "1,235"}, {sig(123.4), "123"}, {sig(12.34), "12.3"}, {sig(1.234), "1.23"},
		{sig(0.1234), "0.123"},
		{sig(0.01234), "0.0123"}, {sig(2.16e-8), "2.2×10⁻⁸"}, {sig(-3.1e-5), "−3.1×10⁻⁵"}, {sig(math.NaN()), missing},
		{fix(-0.5, 2), "−0.50"}, {comma(1234567), "1,234,567"}, {comma(-1234), "−1,234"}, {comma(999), "999"},
		{pm(0.368, 0.0144), "0.014"},
		{pm(0.368, 0.0000144), "1.4×10⁻⁵"}, {pm(2e-7, 1e-8), "1.0×10⁻⁸"}, {size(1536), "1.5 KiB"}, {size(12), "12 B"},
		{shellJoin([]string{"a", "b c", "it's", ""}), `a 'b c' 'it'\''s' ''`}, {trim("1.250"), "1.25"}, {trim("100"), "100"},
		{bibEscape("a_b{c}%\\"), `a\_bc`},
	} {
		if x.got != x.want {
			t.Errorf("got %q, want %q", x.got, x.want)
		}
	}
}

// TestShape compares the one-bit numbers of the generalised Gaussian with the
// standard library and with integrals of the density.
func TestShape(t *testing.T) {
	for x := 0.01; x < 40; x *= 1.3 {
		want, _ := math.Lgamma(x)
		if got := lgamma(x); math.Abs(got-want) > 1e-12*(1+math.Abs(want)) {
			t.Errorf("lgamma(%g) = %.15g, want %.15g", x, got, want)
		}
	}
	for _, s := range []struct{ t, want float64 }{{1, 0.5}, {0.5, 2 / math.Pi}, {0, 0.75}, {1e-6, 0.75}} {
		if got := momentRatio(s.t); math.Abs(got-s.want) > 1e-9 {
			t.Errorf("moment ratio at %g is %.12g, want %.12g", s.t, got, s.want)
		}
	}
	for _, shape := range []float64{1, 0.8, 0.5, 0.3, 0.15} {
		const step = 1e-3
		var mass, abs, sq float64
		for x := -60 + step/2; x < 60; x += step {
			p := density(shape, x) * step
			mass += p
			abs += p * math.Abs(x)
			sq += p * x * x
		}
		// The midpoint rule errs by about the square of the step at the Laplace cusp.
		for _, c := range []struct {
			name      string
			got, want float64
		}{{"mass", mass, 1}, {"variance", sq, 1}, {"moment ratio", abs * abs, momentRatio(shape)}} {
			if math.Abs(c.got-c.want) > 1e-5 {
				t.Errorf("shape %g: %s is %.8g, want %.8g", shape, c.name, c.got, c.want)
			}
		}
	}
}

func TestPlane(t *testing.T) {
	axes := [][2]float64{{1, 0}, {0, 2}, {-3, 0}}
	if c, _ := planeBeta(axes, 45); math.Abs(c-1) > 1e-12 {
		t.Errorf("keys on the axes, turned to the diagonals: cosine %g, want 1", c)
	}
	if c, _ := planeBeta(axes, 0); math.Abs(c-math.Sqrt(0.5)) > 1e-12 {
		t.Errorf("keys on the axes: cosine %g, want %g", c, math.Sqrt(0.5))
	}
	if b := bestTurn(axes); b != 45 {
		t.Errorf("best turn %g, want 45", b)
	}
	// Every turn of points all around is alike: 4/pi / sqrt 2.
	var ring [][2]float64
	for k := range 720 {
		ring = append(ring, [2]float64{math.Cos(float64(k) * math.Pi / 360), math.Sin(float64(k) * math.Pi / 360)})
	}
	c, r := planeBeta(ring, 17)
	// 720 points miss the integral by about the square of their distance.
	if math.Abs(c-0.9003163) > 1e-4 || math.Abs(r-8/(math.Pi*math.Pi)) > 1e-4 {
		t.Errorf("ring: cosine %g, moment ratio %g", c, r)
	}
	if c, r := planeBeta([][2]float64{{0, 0}}, 5); c != 0 || r != 0 {
		t.Errorf("no key: %g, %g", c, r)
	}
}

func TestScoreStats(t *testing.T) {
	f := []float64{9, 1, -1, 0.5, 2}
	coded := []float64{9, 1.5, -0.5, 1, 2.5}
	s := scoreStats(f, coded, 1)
	if s.shift != 0.5 || s.rms > 1e-15 || math.Abs(s.r-1) > 1e-15 || !s.same {
		t.Errorf("a shift alone: %+v", s)
	}
	p, q := softmax(f), softmax(coded)
	var kl float64
	for i := range p {
		kl += p[i] * math.Log(p[i]/q[i])
	}
	if math.Abs(s.kl-kl) > 1e-12 {
		t.Errorf("KL %g, want %g", s.kl, kl)
	}
	if s := scoreStats(f, []float64{9, 1, -1, 0.5, 20}, 1); s.same || s.kl < 1 {
		t.Errorf("another key on top: %+v", s)
	}
	if s := scoreStats(f, f, 99); s.kl != 0 {
		t.Errorf("nothing coded: %+v", s)
	}
}

// TestWeights: section 4 and the card tell what was changed for a weight type, before and after.
func TestWeights(t *testing.T) {
	m := invented()
	m.Manifest.FFN = &spec.FFNFold{Weights: "q3_k", FileType: "Q3_K_M", Mode: "auto", FitWindows: 16,
		Text:   spec.Text{Name: "fit.txt", Tokens: 4096, Context: 512, Windows: 8},
		Tried:  []spec.FFNTry{{Name: "as they are", Bits: 3.9, KLD: 0.5, KLDErr: 0.01}, {Name: "norms <scaled>", Bits: 3.9, KLD: 0.31}},
		Chosen: "norms <scaled>",
		Measured: []spec.FFNTry{{Name: "source", Bits: 3.9, KLD: 0.52, PPLRatio: 1.2},
			{Name: "converted", Bits: 3.9, KLD: 0.33, PPLRatio: 1.1}}}
	stock := func(fileType string) []byte {
		raw, err := json.Marshal(spec.QuantizedJSON{FileType: fileType, Runtime: "b<1>", Text: spec.Text{Name: "held.txt", Context: 512,
			Windows: 6}, Quantized: []spec.FFNTry{{Name: "unchanged", Bits: 4.5, KLD: 0.54}, {Name: "converted", Bits: 4.5, KLD: 0.35}}})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	if _, err := add([]Model{m}, stock("Q4_0"), "x"); err == nil || !strings.Contains(err.Error(), "changed for Q3_K_M") {
		t.Errorf("files of another type: %v", err)
	}
	if _, err := add([]Model{{Name: "m"}}, stock("Q3_K_M"), "x"); err == nil || !strings.Contains(err.Error(), "--ffn") {
		t.Errorf("files of a model that was not changed: %v", err)
	}
	models, err := add([]Model{m}, stock("Q3_K_M"), "x")
	if err != nil {
		t.Fatal(err)
	}
	m = models[0]
	var page, card bytes.Buffer
	if err := Write(&page, []Model{m}, nil); err != nil {
		t.Fatal(err)
	}
	if err := Card(&card, m, CardOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Changed for Q3_K_M", "norms &lt;scaled&gt; (chosen)", "<th scope=\"row\">converted</th><td>3.900</td><td>0.33",
		"<th scope=\"row\">converted</th><td>4.500</td><td>0.35", "stock llama.cpp (b&lt;1&gt;), 6 windows of 512 tokens of held.txt"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, want := range []string{"chosen for Q3_K_M weights, among 2 changes", "| converted | 3.900 | 0.33",
		"6 windows of 512 tokens of held.txt", "| converted | 4.500 | 0.35"} {
		if !strings.Contains(card.String(), want) {
			t.Errorf("the card lacks %q", want)
		}
	}
}
