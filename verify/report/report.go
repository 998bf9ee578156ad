// Package report writes report.html: one file without any request to a network,
// the same bytes for the same data on every machine. It shows only what was
// measured; what is missing is named as missing.
package report

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"sync"

	"github.com/phaseconv/phaseconv/spec"
)

//go:embed page.html ladder.html style.css probes.js
var assets embed.FS

// MaxModels bounds how many models one report compares.
const MaxModels = 32

// A Model is what is known about one model. Manifest is nil for a source that
// was only audited; every other part may be missing too.
type Model struct {
	Name     string
	Manifest *spec.Manifest
	Verify   *spec.VerifyJSON
	Audit    *spec.AuditJSON
	Detail   *spec.Detail
	Advise   []spec.AdviseRow
	Rounded  bool // the inputs of products were, for Advise: see spec.AdviseJSON
	FFN      []spec.FFNRow
	Pareto   []spec.ParetoPoint
	Ladder   *spec.LadderJSON // nil where the ladder was not run
	// Quantized holds files of weight types in stock llama.cpp, of the type that FFN weights were changed for.
	Quantized []spec.QuantizedJSON
	// License of the source as its own files state it.
	License License
}

// Write renders models side by side. Claims is the ledger with the theorems behind
// it, nil when there is none.
func Write(w io.Writer, models []Model, claims *spec.ClaimsJSON) error {
	if len(models) == 0 || len(models) > MaxModels {
		return fmt.Errorf("report: %d models; between 1 and %d can be shown", len(models), MaxModels)
	}
	p := &page{Claims: ledger(claims)}
	for i := range models {
		v, err := newView(i, &models[i])
		if err != nil {
			return err
		}
		p.Models = append(p.Models, v)
	}
	p.Title = p.Models[0].Name
	if len(models) > 1 {
		p.Title = fmt.Sprintf("%d models compared", len(models))
	}
	var err error
	if p.dress, err = dressed(); err != nil {
		return err
	}
	return execute(w, "page.html", p)
}

// A dress is what every page carries: its style and its script.
type dress struct {
	CSS template.CSS
	JS  template.JS
}

func dressed() (dress, error) {
	css, err := assets.ReadFile("style.css")
	if err != nil {
		return dress{}, err
	}
	js, err := assets.ReadFile("probes.js")
	return dress{template.CSS(css), template.JS(js)}, err
}

// execute writes the page of a template.
func execute(w io.Writer, name string, data any) error {
	t, err := layout()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		return err
	}
	_, err = w.Write(squeeze(b.Bytes()))
	return err
}

// layout holds the templates of the pages, parsed once.
var layout = sync.OnceValues(func() (*template.Template, error) {
	return template.New("page.html").Funcs(funcs).ParseFS(assets, "page.html", "ladder.html")
})

// squeeze drops the empty lines that template directives leave behind.
func squeeze(b []byte) []byte {
	var out []byte
	for line := range bytes.Lines(b) {
		if len(bytes.TrimSpace(line)) > 0 {
			out = append(out, line...)
		}
	}
	return out
}

// page is the root of the template.
type page struct {
	dress
	Title  string
	Models []*view
	Claims *claimsView
}

// Many says that there is something to compare.
func (p *page) Many() bool { return len(p.Models) > 1 }

// probeData is what the script of a page needs of one model.
type probeData struct {
	Cloud  *spec.Cloud  `json:"cloud,omitempty"`
	Scores *spec.Scores `json:"scores,omitempty"`
}

// jsonScript embeds data for the script; json.Marshal escapes what could end the element.
func jsonScript(id string, v any) (template.HTML, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return template.HTML(`<script type="application/json" id="` + template.HTMLEscapeString(id) + `">` + string(b) +
		`</script>`), nil
}
