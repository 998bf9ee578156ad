package spec

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// wrong says what is wrong with a claim. proofs is the text of proofs.md.
func wrong(c Claim, proofs string) (out []string) {
	proof := strings.Contains(proofs, "\n## "+c.Name+"\n")
	tests := 0
	for _, e := range strings.Split(c.Evidence, "; ") {
		file, test, isTest := strings.Cut(e, ": ")
		if file == "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		if isTest {
			tests++
			if !strings.HasPrefix(test, "Test") || !regexp.MustCompile(`(?m)^func `+regexp.QuoteMeta(test)+`\(`).Match(b) {
				out = append(out, file+" has no "+test)
			}
		}
		if strings.HasSuffix(file, "proofs.md") && !proof {
			out = append(out, "proofs.md has no section of that name")
		}
	}
	if proof != strings.Contains(c.Evidence, "spec/proofs.md") {
		out = append(out, "proofs.md and the evidence disagree")
	}
	switch {
	case c.Status == "proved" && proof, c.Status == "refuted" && (proof || tests > 0), c.Status == "tested" && tests > 0,
		c.Status == "open":
	default:
		out = append(out, "status "+c.Status+" without what it takes")
	}
	if c.Name == "" || c.Statement == "" {
		out = append(out, "no name or no statement")
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
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(b), -1) {
		if !seen[m[1]] {
			t.Errorf("proofs.md proves %s, which nobody claims", m[1])
		}
	}
	// The check sees a test that is gone, a file that is gone, and a bare assertion.
	for _, c := range []Claim{
		{"a", "s", "tested", "spec/claims_test.go: TestNowhere"},
		{"a", "s", "tested", "spec/nowhere_test.go: TestClaims"},
		{"a", "s", "proved", "spec/claims_test.go: TestClaims"},
		{"a", "s", "tested", ""},
		{"a", "s", "certain", "spec/claims_test.go: TestClaims"},
	} {
		if len(wrong(c, string(b))) == 0 {
			t.Errorf("%+v passes", c)
		}
	}
}
