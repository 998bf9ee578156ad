package spec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// names says what is wrong with "file: Func" or "file: Test", a place in this repository.
func names(place string) string {
	file, name, ok := strings.Cut(place, ": ")
	if !ok {
		return place + " names no function"
	}
	b, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		return err.Error()
	}
	if !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + regexp.QuoteMeta(name) + `\(`).Match(b) {
		return file + " has no " + name
	}
	return ""
}

// wrong says what is wrong with a claim. proofs is the text of proofs.md.
func wrong(c Claim, proofs string) (out []string) {
	bad := func(s string) {
		if s != "" {
			out = append(out, s)
		}
	}
	proof := strings.Contains(proofs, "\n## "+c.Name+"\n")
	tests := 0
	for _, e := range strings.Split(c.Evidence, "; ") {
		switch file, test, isTest := strings.Cut(e, ": "); {
		case isTest:
			if tests++; !strings.HasPrefix(test, "Test") {
				bad(test + " is no test")
			}
			bad(names(e))
		case file != "":
			if _, err := os.Stat(filepath.Join("..", file)); err != nil {
				bad(err.Error())
			}
			if strings.HasSuffix(file, "proofs.md") && !proof {
				bad("proofs.md has no section of that name")
			}
		}
	}
	for _, n := range c.Needs {
		if n.What == "" {
			bad("it needs nothing in words")
		}
		bad(names(n.Code))
		bad(names(n.Test))
		if !strings.Contains(n.Test, "_test.go: Test") {
			bad(n.Test + " is no test")
		}
	}
	if proof != strings.Contains(c.Evidence, "spec/proofs.md") {
		bad("proofs.md and the evidence disagree")
	}
	switch n := len(c.Theorems); {
	case c.Status == "proved" && n > 0, c.Status == "argued" && proof, c.Status == "refuted" && (n > 0 || tests > 0),
		c.Status == "tested" && tests > 0, c.Status == "open":
	default:
		bad("status " + c.Status + " without what it takes")
	}
	if n := len(c.Theorems); n == 0 && (c.Outside != "" || len(c.Needs) > 0) {
		bad("it names no theorem, but what is outside of one")
	}
	if c.Name == "" || c.Statement == "" {
		bad("no name or no statement")
	}
	return out
}

// TestClaims: what a claim names as its evidence exists.
func TestClaims(t *testing.T) {
	list, err := Claims()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("proofs.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range list {
		for _, w := range wrong(c, string(b)) {
			t.Errorf("%s: %s", c.Name, w)
		}
		if seen[c.Name] {
			t.Errorf("%s occurs twice", c.Name)
		}
		seen[c.Name] = true
	}
	p, err := Proved()
	if err != nil {
		t.Fatal(err)
	}
	claimed := map[string]bool{}
	for _, c := range list {
		for _, n := range c.Theorems {
			claimed[n] = true
		}
	}
	for _, x := range p.Theorems {
		if !claimed[x.Name] {
			t.Errorf("no claim names %s; a helper is a Lemma", x.Name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(b), -1) {
		if !seen[m[1]] {
			t.Errorf("proofs.md proves %s, which nobody claims", m[1])
		}
	}
	// The check sees a test that is gone, a file that is gone, a bare assertion, and a
	// hypothesis that nothing checks.
	const here = "spec/claims_test.go: TestClaims"
	needs := func(code, test string) Claim {
		return Claim{Name: "a", Statement: "s", Status: "proved", Theorems: []string{"A.b"}, Needs: []Need{{"x", code, test}}}
	}
	for _, c := range []Claim{
		{Name: "a", Statement: "s", Status: "tested", Evidence: "spec/claims_test.go: TestNowhere"},
		{Name: "a", Statement: "s", Status: "tested", Evidence: "spec/nowhere_test.go: TestClaims"},
		{Name: "a", Statement: "s", Status: "tested", Evidence: "spec/claims_test.go: names"},
		{Name: "a", Statement: "s", Status: "proved", Evidence: here},
		{Name: "a", Statement: "s", Status: "argued", Evidence: here},
		{Name: "a", Statement: "s", Status: "tested"},
		{Name: "a", Statement: "s", Status: "refuted"},
		{Name: "a", Statement: "s", Status: "certain", Evidence: here},
		{Name: "a", Statement: "s", Status: "tested", Evidence: here, Outside: "all"},
		needs("spec/claims.go: nowhere", here),
		needs("spec/claims.go: Claims", "spec/claims.go: Claims"),
	} {
		if len(wrong(c, string(b))) == 0 {
			t.Errorf("%+v passes", c)
		}
	}
	if w := wrong(needs("spec/claims.go: Claims", here), ""); w != nil {
		t.Errorf("a good claim: %q", w)
	}
}

// TestStatus: the ledger cannot call a claim proved by itself.
func TestStatus(t *testing.T) {
	p := &Proofs{Theorems: []Theorem{{Name: "Rope.rope_commutant"}}}
	one := []string{"Rope.rope_commutant"}
	for _, c := range []struct {
		own      string
		theorems []string
		want     string // "" for an error
	}{
		{"", one, "proved"}, {"refuted", one, "refuted"}, {"refuted", nil, "refuted"},
		{"tested", nil, "tested"}, {"argued", nil, "argued"}, {"open", nil, "open"},
		{"proved", nil, ""}, {"proved", one, ""}, {"", nil, ""}, {"", []string{"Rope.nowhere"}, ""},
		{"", append(one, "Rope.nowhere"), ""},
		{"tested", one, ""}, {"open", one, ""}, {"refuted", []string{"Rope.nowhere"}, ""}, {"certain", nil, ""},
	} {
		raw, err := json.Marshal([]Claim{{Name: "a", Statement: "s", Status: c.own, Theorems: c.theorems}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseClaims(raw, p)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%+v is %s", c, got[0].Status)
		case c.want != "" && (err != nil || got[0].Status != c.want):
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
	for _, raw := range []string{
		`[{"name": "a"}]`, `[{"statement": "a", "status": "open"}]`,
		`[{"name": "a", "statement": "s", "status": "open", "proof": "x"}]`, `{}`,
	} {
		if c, err := parseClaims([]byte(raw), p); err == nil {
			t.Errorf("%s gives %+v", raw, c)
		}
	}
}
