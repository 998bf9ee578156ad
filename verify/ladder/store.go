package ladder

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
)

const recordSuffix = ".rung.json"

// maxRecord bounds the size of a record that is read: thousands of layers fit.
const maxRecord = 64 << 20

func recordPath(dir, id string, ctx int) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d%s", id, ctx, recordSuffix))
}

// prepareFolder makes the folder of records. One that holds some is taken only to resume.
func prepareFolder(dir string, resume bool) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if Holds(dir) && !resume {
		return option.Errorf("%s holds rungs already; go on with --resume, or name another folder", dir)
	}
	return nil
}

// Holds says whether dir is a folder with records.
func Holds(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return strings.HasSuffix(e.Name(), recordSuffix)
	})
}

func writeRecord(dir string, r *spec.LadderRecord) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(recordPath(dir, r.Rung.ID, r.Ctx), append(b, '\n'))
}

func readRecord(path string) (*spec.LadderRecord, error) {
	b, err := format.ReadFile(path, maxRecord)
	if err != nil {
		return nil, err
	}
	if err := spec.ValidateReport("LadderRecord", b); err != nil {
		return nil, fmt.Errorf("%s: %w; run the rung again", path, err)
	}
	r := &spec.LadderRecord{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Read returns the records of a folder, by context and in the order of the rungs. It fails on
// files that are no records, on folders without any, and on records of several models or texts.
func Read(dir string) (*spec.LadderJSON, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := &spec.LadderJSON{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		r, err := readRecord(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if n := len(out.Records); n > 0 {
			a := out.Records[n-1]
			if a.Source.SHA256 != r.Source.SHA256 || a.Fit.SHA256 != r.Fit.SHA256 || a.Eval.SHA256 != r.Eval.SHA256 {
				return nil, fmt.Errorf("%s and %s-%d are of other models or texts; keep each ladder in a folder of its own",
					e.Name(), a.Rung.ID, a.Ctx)
			}
		}
		out.Records = append(out.Records, *r)
	}
	if len(out.Records) == 0 {
		return nil, fmt.Errorf("%s holds no rungs (*%s); ladder -o writes them", dir, recordSuffix)
	}
	rungs := spec.Ladder()
	place := func(id string) int { return slices.IndexFunc(rungs, func(r spec.Rung) bool { return r.ID == id }) }
	slices.SortStableFunc(out.Records, func(a, b spec.LadderRecord) int {
		if a.Ctx != b.Ctx {
			return a.Ctx - b.Ctx
		}
		return place(a.Rung.ID) - place(b.Rung.ID)
	})
	last := out.Records[len(out.Records)-1]
	for _, r := range out.Records {
		if place(r.Rung.ID) > place(last.Rung.ID) {
			last = r
		}
	}
	out.Tool, out.Until, out.Passed = last.Tool, last.Rung.ID, true
	for _, r := range out.Records {
		if r.Rung.ID == last.Rung.ID && r.Status != spec.RungPass {
			out.Passed = false
		}
	}
	out.Verdicts = Verdicts(out.Records)
	return out, nil
}
