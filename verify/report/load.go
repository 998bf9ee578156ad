package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/ladder"
)

// LadderDir is the folder of an artifact that a ladder's records belong in.
const LadderDir = "ladder"

// maxJSON bounds a JSON file of the report, in bytes.
const maxJSON = contract.MaxManifest

// Load reads the models that arguments name: artifact folders, folders of a ladder's records,
// and files of JSON. A manifest, an audit and a report of an audit begin a model; the results of
// verify, advice, a ladder and other parts belong to the model before them, or begin one when
// there is none.
func Load(args []string) ([]Model, error) {
	var models []Model
	for _, arg := range args {
		st, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if st.IsDir() && ladder.Holds(arg) {
			l, err := ladder.Read(arg)
			if err != nil {
				return nil, err
			}
			last(&models, l.Records[0].Source.Name).Ladder = l
			continue
		}
		if st.IsDir() {
			m, err := loadArtifact(arg)
			if err != nil {
				return nil, err
			}
			models = append(models, *m)
			continue
		}
		raw, err := readJSON(arg)
		if err != nil {
			return nil, err
		}
		if models, err = add(models, raw, strings.TrimSuffix(filepath.Base(arg), ".json")); err != nil {
			return nil, fmt.Errorf("%s: %w", arg, err)
		}
	}
	return models, nil
}

func readJSON(path string) ([]byte, error) { return format.ReadFile(path, maxJSON) }

// loadArtifact reads a folder's manifest and, if it is there, its report.json.
func loadArtifact(dir string) (*Model, error) {
	man, err := contract.ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	m := &Model{Name: man.Source.Name, Manifest: man, License: ReadLicense(dir)}
	if rungs := filepath.Join(dir, LadderDir); ladder.Holds(rungs) {
		if m.Ladder, err = ladder.Read(rungs); err != nil {
			return nil, err
		}
	}
	path := filepath.Join(dir, spec.ReportDataName)
	raw, err := readJSON(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parseReport(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m.take(r)
	return m, nil
}

// take adds what a report.json holds.
func (m *Model) take(r *spec.ReportJSON) {
	if r.Verify != nil {
		m.Verify = r.Verify
	}
	if r.Audit != nil {
		m.Audit = r.Audit
	}
	if r.Detail != nil {
		m.Detail = r.Detail
	}
	m.Rounded = m.Rounded || r.RoundedInputs
	m.Advise, m.FFN, m.Pareto = append(m.Advise, r.Advise...), append(m.FFN, r.FFN...), append(m.Pareto, r.Pareto...)
}

func parseReport(raw []byte) (*spec.ReportJSON, error) {
	var r spec.ReportJSON
	if err := jsonx.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	if r.Version != spec.ReportVersion {
		return nil, fmt.Errorf("key report is %d; this program reads version %d", r.Version, spec.ReportVersion)
	}
	return &r, nil
}

// add tells the kinds of JSON apart by their keys.
func add(models []Model, raw []byte, name string) ([]Model, error) {
	var keys map[string]json.RawMessage
	if err := jsonx.Unmarshal(raw, &keys); err != nil {
		return nil, err
	}
	has := func(k string) bool { _, ok := keys[k]; return ok }
	switch {
	case has("report"):
		r, err := parseReport(raw)
		if err != nil {
			return nil, err
		}
		if r.Audit != nil {
			models = append(models, Model{Name: name})
			if r.Name != "" {
				models[len(models)-1].Name = r.Name
			}
		}
		last(&models, name).take(r)
	case has("artifacts"):
		m, err := contract.ParseManifest(raw)
		if err != nil {
			return nil, err
		}
		models = append(models, Model{Name: m.Source.Name, Manifest: m})
	case has("contract"):
		var v spec.VerifyJSON
		if err := jsonx.Unmarshal(raw, &v); err != nil {
			return nil, err
		}
		last(&models, name).Verify = &v
	case has("calibration") && has("layers"):
		var a spec.AuditJSON
		if err := jsonx.Unmarshal(raw, &a); err != nil {
			return nil, err
		}
		models = append(models, Model{Name: name, Audit: &a})
	case has("until") && has("records"):
		var l spec.LadderJSON
		if err := jsonx.Unmarshal(raw, &l); err != nil {
			return nil, err
		}
		if len(l.Records) == 0 {
			return nil, errors.New("key records is empty: no rung ran")
		}
		last(&models, l.Records[0].Source.Name).Ladder = &l
	case has("file_type") && has("quantized"):
		var q spec.QuantizedJSON
		if err := jsonx.Unmarshal(raw, &q); err != nil {
			return nil, err
		}
		if err := addQuantized(models, q); err != nil {
			return nil, err
		}
	case has("rows") && has("choices"):
		var a spec.AdviseJSON
		if err := jsonx.Unmarshal(raw, &a); err != nil {
			return nil, err
		}
		m := last(&models, name)
		m.Advise, m.Rounded = append(m.Advise, named(&a)...), m.Rounded || a.RoundedInputs
	default:
		return nil, fmt.Errorf("not what phaseconv writes or prints: neither a manifest (key artifacts) nor a result of verify (contract), audit (calibration), advise (choices) or ladder (records), nor files measured by scripts/ffn/measure.py (quantized), nor a report.json (report)")
	}
	return models, nil
}

// named gives rows of a result on one text that text's name, so that results on several can be told apart.
func named(a *spec.AdviseJSON) []spec.AdviseRow {
	out := slices.Clone(a.Rows)
	for i := range out {
		if out[i].Text == "" && len(a.Texts) > 0 {
			out[i].Text = a.Texts[0].Name
		}
	}
	return out
}

// addQuantized adds to the last model, which must have been changed for files of this type.
func addQuantized(models []Model, q spec.QuantizedJSON) error {
	if len(models) == 0 || models[len(models)-1].Manifest == nil || models[len(models)-1].Manifest.FFN == nil {
		return errors.New("quantised files belong to an artifact that was made with --ffn; name it before this file")
	}
	m := &models[len(models)-1]
	if want := m.Manifest.FFN.FileType; q.FileType != want {
		return fmt.Errorf("key file_type is %s, and %s was changed for %s", q.FileType, m.Name, want)
	}
	m.Quantized = append(m.Quantized, q)
	return nil
}

// last returns the model that a part belongs to, a new one when there is none.
func last(models *[]Model, name string) *Model {
	if len(*models) == 0 {
		*models = append(*models, Model{Name: name})
	}
	return &(*models)[len(*models)-1]
}
