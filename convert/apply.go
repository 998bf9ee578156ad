package convert

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// Export writes what a publisher gives away of the artifact in dir to a new folder
// out: the manifest, the sidecars and the fold, without the models. It refuses an
// artifact that does not pass its contract. report may be nil.
func Export(ctx context.Context, dir, out string, report progress.Func, notice func(string)) (*spec.Manifest, error) {
	if err := newOnly(out); err != nil {
		return nil, err
	}
	m, err := contract.ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range m.Artifacts {
		if e.Container == string(checkpoint.GGUF) && e.Model != spec.GGUFModelName &&
			!gguf.IsShard(e.Model, spec.GGUFModelName) {
			return nil, option.Errorf("%s is a release, whose GGUF file has other keys than a conversion writes: export the artifact that it was made from", dir)
		}
		c := &contract.Checker{Progress: report}
		a, err := contract.Open(ctx, dir, e.Container, c)
		if err != nil {
			return nil, err
		}
		if a != nil {
			a.Close()
		}
		if err := c.Failed(); err != nil {
			return nil, fmt.Errorf("%s: the artifact does not pass its contract: %w", dir, err)
		}
	}
	f, err := write.NewFolder(out, notice)
	if err != nil {
		return nil, err
	}
	defer f.Abort()
	for _, n := range append(contract.PublishedFiles(m), spec.ManifestName) {
		if _, err := write.Copy(ctx, dir, f.Path, n); err != nil {
			return nil, err
		}
	}
	// What was copied, not what was meant to be.
	c := &contract.Checker{Progress: report}
	if p, err := contract.OpenPublished(ctx, f.Path, c); err != nil {
		return nil, err
	} else if p == nil {
		return nil, fmt.Errorf("%s: %w", out, c.Failed())
	}
	return m, f.Commit()
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
func Apply(ctx context.Context, o ApplyOptions) (_ *spec.Manifest, _ []spec.Check, err error) {
	if err := newOnly(o.Out); err != nil {
		return nil, nil, err
	}
	checks := &contract.Checker{Progress: o.Progress}
	p, err := contract.OpenPublished(ctx, o.Dir, checks)
	if err != nil {
		return nil, nil, err
	}
	if p == nil {
		return nil, checks.Checks, fmt.Errorf("%s: %w", o.Dir, checks.Failed())
	}
	c, err := checkpoint.OpenAs(o.Base, p.Manifest.Graph)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	view, err := p.CheckBase(ctx, c, checks)
	if err != nil {
		return nil, nil, err
	}
	if view == nil {
		return nil, checks.Checks, checks.Failed()
	}
	m := p.Manifest
	f, err := write.NewFolder(o.Out, o.Notice)
	if err != nil {
		return nil, nil, err
	}
	defer f.Abort()
	defer func() { err = f.Explain(err) }()
	if err := o.writeModels(ctx, m, c, view, f.Path); err != nil {
		return nil, nil, err
	}
	for _, n := range append(contract.PublishedFiles(m), spec.ManifestName) {
		if _, err := write.Copy(ctx, o.Dir, f.Path, n); err != nil {
			return nil, nil, err
		}
	}
	if err := o.checkResult(ctx, m, f.Path, checks); err != nil {
		return nil, checks.Checks, err
	}
	return m, checks.Checks, f.Commit()
}

// writeModels writes the model files that the manifest lists to dir.
func (o *ApplyOptions) writeModels(ctx context.Context, m *spec.Manifest, c *checkpoint.Checkpoint,
	view *checkpoint.Edited, dir string) error {
	ch := &plan.Changes{View: view, Identities: m.Identities, Targets: map[string][]string{}}
	ch.Retarget(c)
	only := map[string]bool{}
	for _, x := range m.Files {
		only[x.Name] = true
	}
	for _, e := range m.Artifacts {
		to, outType := checkpoint.Container(e.Container), e.OutType
		if to == checkpoint.Safetensors {
			outType = "f32" // not used: tensors keep their own types
		}
		p, err := plan.Make(c, to, outType, ch)
		if err != nil {
			return err
		}
		x := write.Job{
			Dir: dir, Source: c, View: view, Plan: p, OutType: outType, Tag: write.Tag{Version: m.Version, Source: m.Source,
				Code: m.Code, Tool: m.Tool},
			Only: only, Sidecar: e.Sidecar,
			Progress: o.Progress.Of("writing " + e.Container + ", MiB"),
		}
		if _, _, err := x.Model(ctx); err != nil {
			return err
		}
	}
	return nil
}

// checkResult opens what was written, and says whose program differs where it is not what the
// publisher made. It adds what it checked to checks.
func (o *ApplyOptions) checkResult(ctx context.Context, m *spec.Manifest, dir string, checks *contract.Checker) error {
	for _, e := range m.Artifacts {
		done := &contract.Checker{Progress: o.Progress}
		a, err := contract.Open(ctx, dir, e.Container, done)
		if err != nil {
			return err
		}
		if a != nil {
			a.Close()
		}
		checks.Checks = append(checks.Checks, done.Checks...)
		if err := done.Failed(); err != nil {
			hint := ""
			if o.Tool != m.Tool {
				hint = fmt.Sprintf(" (the publisher used %s, this is %s)", m.Tool, o.Tool)
			}
			return fmt.Errorf("the result is not the publisher's%s: %w", hint, err)
		}
	}
	return nil
}

// CheckPublished checks published rotations, with base not empty against their
// source too. report may be nil.
func CheckPublished(ctx context.Context, dir, base string, report progress.Func) ([]spec.Check, error) {
	checks := &contract.Checker{Progress: report}
	p, err := contract.OpenPublished(ctx, dir, checks)
	if p == nil || base == "" {
		return checks.Checks, err
	}
	c, err := checkpoint.OpenAs(base, p.Manifest.Graph)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_, err = p.CheckBase(ctx, c, checks)
	return checks.Checks, err
}
