// Package write makes the files of an artifact: models in both containers, their sidecars and
// the files beside them. Every file is hashed while it is written, and appears whole or not at
// all.
package write

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// A Job is one model to be written into one container.
type Job struct {
	Dir     string // a folder that exists
	Source  *checkpoint.Checkpoint
	View    *checkpoint.Edited // the source's weights with all edits
	Plan    *plan.Plan
	OutType string // element type of re-encoded GGUF matrices, one of plan.OutTypes
	Tag     Tag
	// Sidecar, if set, is what the sidecar of a safetensors model is called: artifacts of
	// former programs have another name for it.
	Sidecar string
	// Only, if not nil, names the files beside a safetensors model that are copied.
	Only map[string]bool
	// Ranges are the largest magnitudes of the source's tensors, see checkpoint.Ranges; nil if
	// they are not known.
	Ranges map[string]float32
	// Progress, if set, is told how many MiB are written.
	Progress func(done, total int)
}

// A Tag is what a model says of where it comes from.
type Tag struct {
	Version int // of the format
	Source  spec.Source
	Code    spec.CodeInfo
	Tool    string
}

// Model writes the model of a job without its sidecar. It returns its entry in the manifest,
// the digest of the weights still to be filled in, and the files with their digests.
func (j *Job) Model(ctx context.Context) (entry spec.Artifact, files []spec.File, err error) {
	w := &writer{c: j.Source, view: j.View, plan: j.Plan, ranges: j.Ranges, report: j.Progress}
	entry = spec.Artifact{Container: string(j.Plan.Container), PairLayout: j.Plan.PairLayout, OutType: j.OutType}
	if j.Plan.Container == checkpoint.GGUF {
		kvs, err := j.metadata()
		if err != nil {
			return entry, nil, err
		}
		entry.Sidecar = spec.GGUFSidecarName
		if files, err = w.gguf(ctx, j.Dir, spec.GGUFModelName, kvs); err == nil {
			entry.Model = files[0].Name
		}
		return entry, files, err
	}
	if files, err = w.safetensors(ctx, j.Dir); err != nil {
		return entry, nil, err
	}
	entry.Model, entry.Sidecar, entry.OutType = files[len(files)-1].Name, j.sidecarName(), "source"
	more, err := j.auxiliary(ctx)
	return entry, append(files, more...), err
}

func (j *Job) sidecarName() string {
	if j.Sidecar != "" {
		return j.Sidecar
	}
	return spec.SafetensorsSidecarName
}

// auxiliary writes config.json with its phaseconv object and copies the tokenizer and the
// other small files.
func (j *Job) auxiliary(ctx context.Context) ([]spec.File, error) {
	info := map[string]any{
		"version": j.Tag.Version,
		"source":  j.Tag.Source,
		"code":    j.Tag.Code,
		"sidecar": j.sidecarName(),
		"tool":    j.Tag.Tool,
	}
	untied := j.View.Stream != nil && j.View.Stream.Untied() != nil
	raw, err := configJSON(j.Source.Path, info, len(j.View.Added) > 0, untied)
	if err != nil {
		return nil, err
	}
	f, err := File(j.Dir, hf.ConfigName, raw)
	if err != nil {
		return nil, err
	}
	files := []spec.File{f}
	names, err := auxiliaryFiles(j.Source.Path)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		as := n
		// README.md is the card of what is written here. Artifacts of earlier programs list it as the
		// source's, and are made again as they were.
		if n == spec.CardName && !j.Only[n] {
			as = spec.SourceCardName
		} else if n == spec.SourceCardName && slices.Contains(names, spec.CardName) {
			continue // the source was converted too; its own card is kept
		}
		if j.Only != nil && !j.Only[as] {
			continue
		}
		if f, err = CopyAs(ctx, filepath.Join(j.Source.Path, n), j.Dir, as); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// metadata builds the keys of the GGUF model.
func (j *Job) metadata() ([]gguf.KV, error) {
	tag := j.Tag.keys()
	if f := j.Source.File(); f != nil {
		return copyWithTag(f, tag), nil
	}
	v, err := j.Source.Vocab()
	if err != nil {
		return nil, err
	}
	// The name that the manifest has, whatever the folder is called where published
	// rotations are applied.
	return ggufKVs(j.Source, v, j.Tag.Source.Name, j.OutType, tag)
}

// Open opens a model that was written into dir.
// g is nil, or what the source was opened by.
func Open(dir string, e spec.Artifact, g *spec.Graph) (*checkpoint.Checkpoint, error) {
	if e.Container == string(checkpoint.GGUF) {
		dir = filepath.Join(dir, e.Model)
	}
	c, err := checkpoint.OpenAs(dir, g)
	if err != nil {
		return nil, fmt.Errorf("the file just written does not open: %w", err)
	}
	return c, nil
}

// Sidecar writes the sidecar of a model that was written into dir, and describes it. s is in
// any pair layout.
func Sidecar(ctx context.Context, dir string, e spec.Artifact, p *plan.Plan, s *sidecar.Sidecar) (spec.File, error) {
	s, err := s.To(ctx, p.Pairs)
	if err != nil {
		return spec.File{}, err
	}
	path := filepath.Join(dir, e.Sidecar)
	if p.Container == checkpoint.GGUF {
		err = s.WriteGGUF(path)
	} else {
		err = s.WriteSafetensors(path)
	}
	if err != nil {
		return spec.File{}, err
	}
	return Describe(ctx, dir, e.Sidecar)
}

// Manifest writes the manifest of an artifact.
func Manifest(dir string, m *spec.Manifest) error {
	b, err := contract.MarshalManifest(m)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, spec.ManifestName), b)
}
