//go:build browser

package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScreenshots writes pictures of the pages that REPORT_PAGES names (a list
// of paths; the golden page without it) to the folder REPORT_SHOTS, to be looked
// at, and checks that no page is wider than its window.
func TestScreenshots(t *testing.T) {
	pages := filepath.SplitList(os.Getenv("REPORT_PAGES"))
	if len(pages) == 0 {
		pages = []string{"testdata/golden.html"}
	}
	dir := os.Getenv("REPORT_SHOTS")
	b := openBrowser(t)
	for _, page := range pages {
		abs, err := filepath.Abs(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []int{1200, 800, 400} {
			for _, dark := range []bool{false, true} {
				b.open(abs, w, 900, dark, false)
				if sw := b.number("document.documentElement.scrollWidth"); sw > float64(w) {
					t.Errorf("%s at %d px is %g px wide", page, w, sw)
				}
				if dir == "" {
					continue
				}
				h := min(16000, int(b.number("document.documentElement.scrollHeight")))
				b.open(abs, w, h, dark, false)
				name := strings.TrimSuffix(filepath.Base(filepath.Dir(abs))+"-"+filepath.Base(abs), ".html")
				mode := "light"
				if dark {
					mode = "dark"
				}
				b.screenshot(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, w, mode)))
			}
		}
	}
}
