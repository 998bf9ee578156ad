package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// Export writes what a publisher gives away of the artifact in dir to a new folder
// out: the manifest, the sidecars and the fold, without the models. It refuses an
// artifact that does not pass its contract.
func Export(dir, out string, notice func(string)) (*spec.Manifest, error) {
	if err := newOnly(out); err != nil {
		return nil, err
	}
	m, err := contract.ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range m.Artifacts {
		c := &contract.Checker{}
		if a := contract.Open(dir, e.Container, c); a != nil {
			a.Close()
		}
		if !c.OK() {
			return nil, fmt.Errorf("%s: the artifact does not pass its contract: %s", dir, failed(c))
		}
	}
	f, err := newFolder(out, notice)
	if err != nil {
		return nil, err
	}
	defer f.abort()
	for _, n := range append(contract.PublishedFiles(m), spec.ManifestName) {
		if err := copyFile(filepath.Join(dir, n), filepath.Join(f.path, n)); err != nil {
			return nil, err
		}
	}
	// What was copied, not what was meant to be.
	c := &contract.Checker{}
	if contract.OpenPublished(f.path, c) == nil {
		return nil, fmt.Errorf("%s: %s", out, failed(c))
	}
	return m, f.commit()
}

// newOnly refuses a folder that is there and not empty.
func newOnly(out string) error {
	if entries, err := os.ReadDir(out); err == nil {
		if len(entries) > 0 {
			return usage("%s exists and is not empty; name a new folder", out)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return usage("%s: %v", out, err)
	}
	return nil
}

// ApplyOptions of Apply.
type ApplyOptions struct {
	// Dir holds published rotations, Base is the model that they were made for.
	Dir, Base, Out string
	// Tool is this program; it matters only for the message when results differ.
	Tool     string
	Progress progress.Func
	Notice   func(text string)
}

// Apply makes an artifact from published rotations and their base model: the same
// files, byte for byte, as the publisher's conversion made. It refuses another
// base, and a result that differs in any byte. The checks that it made come back.
func Apply(ctx context.Context, o ApplyOptions) (*spec.Manifest, []spec.Check, error) {
	if err := newOnly(o.Out); err != nil {
		return nil, nil, err
	}
	checks := &contract.Checker{}
	p := contract.OpenPublished(o.Dir, checks)
	if p == nil {
		return nil, checks.Checks, fmt.Errorf("%s: %s", o.Dir, failed(checks))
	}
	c, err := checkpoint.Open(o.Base)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	view := p.CheckBase(c, checks)
	if view == nil {
		return nil, checks.Checks, errors.New(failed(checks))
	}
	m := p.Manifest
	ch := &changes{view: view, identities: m.Identities, targets: map[string][]string{}}
	for name, e := range view.Edits {
		ch.targets[name] = e.By
	}
	f, err := newFolder(o.Out, o.Notice)
	if err != nil {
		return nil, nil, err
	}
	defer f.abort()
	opt := Options{Progress: o.Progress, companions: map[string]bool{}}
	for _, x := range m.Files {
		opt.companions[x.Name] = true
	}
	for _, e := range m.Artifacts {
		opt.OutType = e.OutType
		if e.Container == string(checkpoint.Safetensors) {
			opt.OutType = "f32" // not used: tensors keep their own types
		}
		plan, err := makePlan(c, checkpoint.Container(e.Container), opt.OutType, ch)
		if err != nil {
			return nil, nil, err
		}
		if _, _, err := writeModel(ctx, f.path, c, opt, plan, view, m); err != nil {
			return nil, nil, err
		}
	}
	for _, n := range append(contract.PublishedFiles(m), spec.ManifestName) {
		if err := copyFile(filepath.Join(o.Dir, n), filepath.Join(f.path, n)); err != nil {
			return nil, nil, err
		}
	}
	for _, e := range m.Artifacts {
		done := &contract.Checker{}
		if a := contract.Open(f.path, e.Container, done); a != nil {
			a.Close()
		}
		checks.Checks = append(checks.Checks, done.Checks...)
		if !done.OK() {
			hint := ""
			if o.Tool != m.Tool {
				hint = fmt.Sprintf(" (the publisher used %s, this is %s)", m.Tool, o.Tool)
			}
			return nil, checks.Checks, fmt.Errorf("the result is not the publisher's%s: %s", hint, failed(done))
		}
	}
	return m, checks.Checks, f.commit()
}

// CheckPublished checks published rotations, with base not empty against their
// source too.
func CheckPublished(dir, base string) ([]spec.Check, error) {
	checks := &contract.Checker{}
	p := contract.OpenPublished(dir, checks)
	if p == nil || base == "" {
		return checks.Checks, nil
	}
	c, err := checkpoint.Open(base)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	p.CheckBase(c, checks)
	return checks.Checks, nil
}
