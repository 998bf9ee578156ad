package spec

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLadderText: ladder.md has the rungs of the table, word for word.
func TestLadderText(t *testing.T) {
	b, err := os.ReadFile("ladder.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "<!-- rungs -->\n")
	lines := strings.Split(rest, "\n")[2:]
	for i, r := range Ladder() {
		var cells []string
		for _, c := range strings.Split(strings.Trim(lines[i], "|"), "|") {
			cells = append(cells, strings.TrimSpace(c))
		}
		if want := []string{r.ID, r.Parent, r.Question, r.Method, r.Success, r.Kill, r.Opens}; !slices.Equal(cells, want) {
			t.Errorf("ladder.md has\n%q\nthe table has\n%q", cells, want)
		}
	}
	if n := len(Ladder()); strings.HasPrefix(lines[n], "|") {
		t.Errorf("ladder.md has a rung more: %s", lines[n])
	}
}

// TestLadderTable: ids are there once, parents come before, and the texts of the gates name the
// numbers that judges use.
func TestLadderTable(t *testing.T) {
	var seen []string
	for _, r := range Ladder() {
		if slices.Contains(seen, r.ID) {
			t.Errorf("%s is there twice", r.ID)
		}
		if r.Parent != "" && !slices.ContainsFunc(seen, func(s string) bool { return s == r.Parent || strings.HasPrefix(s, r.Parent+".") }) {
			t.Errorf("%s: its parent %s does not come before it", r.ID, r.Parent)
		}
		seen = append(seen, r.ID)
		switch {
		case strings.HasPrefix(r.ID, "RW1."):
			has(t, r.Success, LadderReplay, LadderMax, LadderGap)
			has(t, r.Kill, LadderMaxKill, LadderMonotone)
		case strings.HasPrefix(r.ID, "RW2"):
			has(t, r.Success, LadderWorse, LadderReplay, LadderLogZ)
			has(t, r.Kill, LadderWorseKill, LadderLogZ)
		case strings.HasPrefix(r.ID, "RW3"):
			has(t, r.Success, 100*LadderNLL, LadderLogits)
			has(t, r.Kill, 100*LadderNLLKill, LadderLogitsKill)
		}
	}
}

func has(t *testing.T, text string, numbers ...float64) {
	t.Helper()
	for _, n := range numbers {
		if !strings.Contains(text, fmt.Sprint(n)) && !strings.Contains(text, fmt.Sprintf("%.2f", n)) {
			t.Errorf("%q does not name %g", text, n)
		}
	}
}
