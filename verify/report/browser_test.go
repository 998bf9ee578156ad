//go:build browser

package report

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// center returns the middle of an element, in page coordinates, after scrolling to it.
func (b *browser) box(selector string) (x, y, w, h float64) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`document.querySelector(%q).scrollIntoView({block: "center", behavior: "instant"})`, selector))
	s := b.text(`(() => { const r = document.querySelector(%q).getBoundingClientRect(); return [r.x, r.y, r.width, r.height].join(" ") })()`, selector)
	if _, err := fmt.Sscan(s, &x, &y, &w, &h); err != nil {
		b.t.Fatal(err)
	}
	return x, y, w, h
}

func (b *browser) set(selector string, value float64) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.value = %g; e.dispatchEvent(new Event("input")) })()`, selector, value))
}

func probe(name string) string { return `[data-probe="` + name + `"]` }

// TestProbes turns every probe through its states in a real browser and compares
// what the page says with what Go computes.
func TestProbes(t *testing.T) {
	path, err := filepath.Abs("testdata/golden.html")
	if err != nil {
		t.Fatal(err)
	}
	m := fixture(t)
	d := m.Detail
	b := openBrowser(t)
	b.open(path, 1200, 900, false, false)

	out := func(name string) string { return b.text(`document.querySelector(%q).value`, probe(name)+" output") }
	check := func(name, state, want string) {
		t.Helper()
		if got := out(name); got != want {
			t.Errorf("%s at %s says %q, Go %q", name, state, got, want)
		}
	}
	check("shape", "start", shapeText(0.5))
	for v := range 101 {
		b.set(probe("shape")+" input", float64(v))
		check("shape", fmt.Sprint(v), shapeText(1-float64(v)/100))
	}
	for deg := 0.0; deg <= 90; deg += 4.5 {
		b.set(probe("cloud")+" input", deg)
		check("cloud", fmt.Sprint(deg), cloudText(d.Cloud.Points, deg))
	}
	for i := range d.Scores.Codes {
		b.set(probe("scores")+" input", float64(i))
		check("scores", fmt.Sprint(i), scoreText(d.Scores, i))
	}

	// The curve that the script draws is the one that Go drew.
	b.set(probe("shape")+" input", 50)
	got := b.text(`document.querySelector(%q).getAttribute("d")`, probe("shape")+` .wide [data-part="curve"]`)
	samePath(t, got, densityPath(0.5, 360, 87.5))

	// Drag: to the left means more Laplace; the dial turns with the hand.
	x, y, w, h := b.box(probe("shape") + " .wide svg")
	b.mouse([2]float64{x + w/2, y + h/2}, [2]float64{x + w/2 - 40, y + h/2}, [2]float64{x + w/2 - w/8, y + h/2})
	v := b.number(`+document.querySelector(%q).value`, probe("shape")+" input")
	if v < 15 || v > 40 {
		t.Errorf("the shape was dragged by an eighth of the picture, from 50 to %g", v)
	}
	check("shape", "drag", shapeText(1-v/100))

	b.set(probe("cloud")+" input", 10)
	x, y, w, _ = b.box(probe("cloud") + " .wide svg")
	unit := w / 720
	turn := func(deg float64) [2]float64 {
		s, c := math.Sincos(deg * math.Pi / 180)
		return [2]float64{x + unit*(150+100*c), y + unit*(158-100*s)}
	}
	b.mouse(turn(0), turn(10), turn(20), turn(30))
	v = b.number(`+document.querySelector(%q).value`, probe("cloud")+" input")
	if math.Abs(v-40) > 1 {
		t.Errorf("the cloud was turned by 30 degrees from 10 to %g", v)
	}
	check("cloud", "drag", cloudText(d.Cloud.Points, v))
	b.mouse([2]float64{x + unit*514, y + unit*150}, [2]float64{x + unit*372, y + unit*150})
	check("cloud", "drag on the curve", cloudText(d.Cloud.Points, 0))

	// Keyboard: the slider takes the focus and the arrows.
	b.eval(fmt.Sprintf(`document.querySelector(%q).focus()`, probe("scores")+" input"))
	b.key("Home", 36)
	check("scores", "Home", scoreText(d.Scores, 0))
	b.key("ArrowRight", 39)
	check("scores", "ArrowRight", scoreText(d.Scores, 1))
	b.key("End", 35)
	check("scores", "End", scoreText(d.Scores, len(d.Scores.Codes)-1))

	// Touch.
	b.open(path, 800, 900, false, true)
	x, y, w, h = b.box(probe("shape") + " .wide svg")
	b.touch([2]float64{x + w/2, y + h/2}, [2]float64{x + w/2 + 10, y + h/2}, [2]float64{x + w/2 + w/8, y + h/2})
	v = b.number(`+document.querySelector(%q).value`, probe("shape")+" input")
	if v < 60 || v > 85 {
		t.Errorf("the shape was moved by a finger from 50 to %g", v)
	}
	check("shape", "touch", shapeText(1-v/100))
}

// samePath compares two d attributes number by number: the engines' exponentials
// may differ in the last digit, which rounding to 0.01 can show.
func samePath(t *testing.T, got, want string) {
	t.Helper()
	num := func(s string) []float64 {
		var out []float64
		for _, f := range strings.FieldsFunc(s, func(r rune) bool {
			return r == 'M' || r == 'L' || r == ' ' || r == 'Z' ||
				r == 'V'
		}) {
			x, err := strconv.ParseFloat(f, 64)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, x)
		}
		return out
	}
	g, w := num(got), num(want)
	if len(g) != len(w) {
		t.Fatalf("paths of %d and %d numbers", len(g), len(w))
	}
	for i := range g {
		if math.Abs(g[i]-w[i]) > 0.011 {
			t.Fatalf("number %d of the path is %g, Go has %g", i, g[i], w[i])
		}
	}
}

// TestNarrow: below 500 px the probes are pictures; above they are not.
func TestNarrow(t *testing.T) {
	path, err := filepath.Abs("testdata/golden.html")
	if err != nil {
		t.Fatal(err)
	}
	b := openBrowser(t)
	for _, x := range []struct {
		w    int
		live bool
	}{{1200, true}, {501, true}, {499, false}, {360, false}} {
		b.open(path, x.w, 800, false, false)
		shown := func(sel string) bool {
			return b.number(`document.querySelector(%q).getBoundingClientRect().height`, sel) > 0
		}
		for _, sel := range []string{" .wide svg", " .controls", " output"} {
			if shown(probe("shape")+sel) != x.live {
				t.Errorf("at %d px %s is shown: %v", x.w, sel, !x.live)
			}
		}
		if shown(probe("shape")+" .narrow svg") == x.live {
			t.Errorf("at %d px the still picture is shown: %v", x.w, x.live)
		}
	}
}

// TestTables: headings sort, tabs change, and numbers stay in their rows.
func TestTables(t *testing.T) {
	path, err := filepath.Abs("testdata/golden.html")
	if err != nil {
		t.Fatal(err)
	}
	b := openBrowser(t)
	b.open(path, 1200, 900, false, false)
	column := func() string {
		return b.text(`[...document.querySelectorAll("#m0-beta .tab-cos tbody tr")].map(r => r.cells[2].textContent).join(" ")`)
	}
	before := strings.Fields(column())
	b.eval(`document.querySelectorAll("#m0-beta .tab-cos thead button")[2].click()`)
	after := strings.Fields(column())
	for i := 1; i < len(after); i++ {
		if after[i] > after[i-1] {
			t.Errorf("sorted downwards: %v", after)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d rows became %d", len(before), len(after))
	}
	if s := b.text(`document.querySelectorAll("#m0-beta .tab-cos thead th")[2].getAttribute("aria-sort")`); s != "descending" {
		t.Errorf("aria-sort is %q", s)
	}
	b.eval(`document.getElementById("m0-moment").click()`)
	if h := b.number(`document.querySelector("#m0-beta .tab-moment").getBoundingClientRect().height`); h == 0 {
		t.Error("the second tab is not shown")
	}
	if h := b.number(`document.querySelector("#m0-beta .tab-cos").getBoundingClientRect().height`); h != 0 {
		t.Error("the first tab is still shown")
	}
	// Print shows all tables and no controls.
	b.call("Emulation.setEmulatedMedia", map[string]any{"media": "print"}, nil)
	if h := b.number(`document.querySelector("#m0-beta .tab-cos").getBoundingClientRect().height`); h == 0 {
		t.Error("print leaves a table out")
	}
	if h := b.number(`document.querySelector(".controls").getBoundingClientRect().height`); h != 0 {
		t.Error("print shows sliders")
	}
	if dir := os.Getenv("REPORT_SHOTS"); dir != "" {
		b.screenshot(filepath.Join(dir, "print.png"))
	}
}
