package contract

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/stream"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// Published is what a publisher gives away of an artifact: everything but the
// models, which can be made again from their source.
type Published struct {
	Dir      string
	Manifest *spec.Manifest
	Sidecars []*sidecar.Sidecar // as Manifest.Artifacts
	Fold     *sidecar.Fold
}

// PublishedFiles lists the files that a manifest vouches for and that are
// published: the sidecars and the fold.
func PublishedFiles(m *spec.Manifest) []string {
	out := []string{FoldName(m)}
	for _, e := range m.Artifacts {
		out = append(out, e.Sidecar)
	}
	return out
}

// FoldName returns what the fold of an artifact is called.
func FoldName(m *spec.Manifest) string {
	for _, f := range m.Files {
		if f.Name == spec.FormerFoldName {
			return f.Name
		}
	}
	return spec.FoldName
}

// OpenPublished opens published rotations, or a whole artifact as if it were, and
// runs the checks that need no model. It returns nil when one failed, an error only when ctx
// ends.
func OpenPublished(ctx context.Context, dir string, c *Checker) (*Published, error) {
	p := c.openPublished(ctx, dir)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return p, nil
}

func (c *Checker) openPublished(ctx context.Context, dir string) *Published {
	m, err := ReadManifest(dir)
	if !c.Add("manifest", err, manifestDetail(m)) {
		return nil
	}
	p := &Published{Dir: dir, Manifest: m}
	if !c.Add("files", c.checkPublishedFiles(ctx, dir, m), "sidecars and fold have the recorded sizes and digests") {
		return nil
	}
	for _, e := range m.Artifacts {
		s, err := sidecar.Read(ctx, filepath.Join(dir, e.Sidecar))
		if err != nil {
			c.Add("sidecar", err, "")
			return nil
		}
		p.Sidecars = append(p.Sidecars, s)
	}
	c.Add("sidecar", nil, sidecarDetail(p.Sidecars[0]))
	p.Fold, err = sidecar.ReadFold(ctx, filepath.Join(dir, FoldName(m)))
	if !c.Add("fold", err, "the edits of the weights are complete and finite") {
		return nil
	}
	if !c.Add("manifest fits sidecar", p.agree(), "manifest, sidecars and fold tell the same") {
		return nil
	}
	return p
}

func (c *Checker) checkPublishedFiles(ctx context.Context, dir string, m *spec.Manifest) error {
	var files []spec.File
	listed := map[string]spec.File{}
	for _, f := range m.Files {
		listed[f.Name] = f
	}
	if len(m.Artifacts) == 0 {
		return fmt.Errorf("key artifacts is empty")
	}
	for _, n := range PublishedFiles(m) {
		f, ok := listed[n]
		if !ok || n != filepath.Base(n) {
			return fmt.Errorf("key files does not list %q; artifacts of earlier programs have no fold and cannot be made again from their source", n)
		}
		files = append(files, f)
	}
	return c.compareFiles(ctx, dir, files)
}

func (p *Published) agree() error {
	m := p.Manifest
	for i, s := range p.Sidecars {
		if err := compareFacts(sidecarFacts(m, m.Artifacts[i], s), "the sidecar"); err != nil {
			return err
		}
		if err := compareFacts(shapeFacts(m, s), "the sidecar"); err != nil {
			return err
		}
	}
	return compareFacts([]fact{{"source.sha256", m.Source.SHA256, p.Fold.SourceSHA256}}, "the fold")
}

// CheckBase checks that base is what the rotations were made for, and returns it
// with the fold applied, or nil; an error only when ctx ends.
func (p *Published) CheckBase(ctx context.Context, base *checkpoint.Checkpoint, c *Checker) (*checkpoint.Edited,
	error) {
	digest, err := base.Digest(ctx, c.Progress.Of("reading the source, MiB"))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err == nil && digest != p.Manifest.Source.SHA256 {
		err = fmt.Errorf("%s has SHA-256 %s, but the rotations were made for %s (%s): take that very model, not a relative of it",
			base.Path, digest, p.Manifest.Source.SHA256, p.Manifest.Source.Name)
	}
	if !c.Add("source", err, "the base is the model that was converted") {
		return nil, nil
	}
	v, err := p.Fold.Apply(base)
	if !c.Add("fold fits source", err, "the base has all tensors that the fold edits, in these shapes") {
		return nil, nil
	}
	return v, nil
}

// A fact is told by the manifest and by something else.
type fact struct {
	what     string
	got, was any
}

func compareFacts(facts []fact, where string) error {
	for _, x := range facts {
		if x.got != x.was {
			return fmt.Errorf("key %s is %v in the manifest, %v in %s", x.what, x.got, x.was, where)
		}
	}
	return nil
}

// shapeFacts are what the manifest says of the model and the sidecar knows too. With groups,
// layers may differ: then the manifest tells what the first has.
func shapeFacts(m *spec.Manifest, s *sidecar.Sidecar) []fact {
	if s.Version() == spec.VersionGroups {
		return []fact{{"model.layers", m.Model.Layers, len(s.Layers)},
			{"model.n_kv_heads", m.Model.KVHeads, s.Layers[0].Heads},
			{"model.head_dim", m.Model.HeadDim, s.Layers[0].KeyDim}}
	}
	return []fact{{"model.layers", m.Model.Layers, len(s.Codes)}, {"model.n_kv_heads", m.Model.KVHeads, len(s.Codes[0])},
		{"model.head_dim", m.Model.HeadDim, s.HeadDim}}
}

// manifestDetail is what the check of a manifest says when it passed; m may be nil.
func manifestDetail(m *spec.Manifest) string {
	if m == nil {
		return ""
	}
	return fmt.Sprintf("version %d, complete", m.Version)
}

// sidecarDetail is the same for a sidecar.
func sidecarDetail(s *sidecar.Sidecar) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("version, basis, shapes and numbers are as version %d demands", s.Version())
}

// digestDetail is the same for the digest of the weights.
func digestDetail(s *sidecar.Sidecar) string {
	what := "query and key tensors"
	if s.Version() == spec.VersionGroups {
		what = "query, key and value tensors"
	}
	return "the " + what + " are those that the sidecar was made for"
}

// sidecarFacts are those that manifest and sidecar both tell.
func sidecarFacts(m *spec.Manifest, e spec.Artifact, s *sidecar.Sidecar) []fact {
	groups := codec.Summarize(s.Groups())
	return []fact{
		{"version", m.Version, s.Version()},
		{"code.parts", m.Code.Parts, groups.Parts},
		{"code.group_dim", m.Code.GroupDim, groups.Dim},
		{"source.sha256", m.Source.SHA256, s.SourceSHA256},
		{"code.kind", m.Code.Kind, string(s.Kind)},
		{"code.anchor", m.Code.Anchor, s.Anchor},
		{"code.sink", m.Code.Sink, s.Sink},
		{"code.recent", m.Code.Recent, s.Recent},
		{"code.exceptions", m.Code.Exceptions, s.Exceptions},
		{"calibration.sha256", m.Calibration.SHA256, s.Calibration.SHA256},
		{"calibration.tokens", m.Calibration.Tokens, s.Calibration.Tokens},
		{"calibration.context", m.Calibration.Context, s.Calibration.Context},
		{"tool", m.Tool, s.Tool},
		{"weights_sha256", e.WeightsSHA256, s.WeightsSHA256},
		{"pair_layout", e.PairLayout, s.Pairs.String()},
	}
}

// compareFiles compares files with what the manifest says of them.
func (c *Checker) compareFiles(ctx context.Context, dir string, files []spec.File) error {
	var m *stream.Meter
	if !c.Fresh {
		var size int64
		for _, f := range files {
			size += f.Bytes
		}
		m = stream.NewMeter(size, c.Progress.Of("checking files, MiB"))
	}
	for _, f := range files {
		if err := checkFile(ctx, dir, f, c.Fresh, m); err != nil {
			return err
		}
	}
	m.Finish()
	return nil
}

// checkFile compares a file with what the manifest says of it; fresh leaves the digest out.
func checkFile(ctx context.Context, dir string, f spec.File, fresh bool, m *stream.Meter) error {
	path := filepath.Join(dir, f.Name)
	h, st, err := format.OpenRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the file is missing; copy the whole folder", path)
	}
	if err != nil {
		return err
	}
	h.Close()
	if st.Size() != f.Bytes {
		return fmt.Errorf("%s: %d bytes, the manifest says %d", path, st.Size(), f.Bytes)
	}
	if fresh {
		return nil
	}
	sum, err := checkpoint.FileDigest(ctx, path, m)
	if err != nil {
		return err
	}
	if sum != f.SHA256 {
		return fmt.Errorf("%s: SHA-256 is %s, the manifest says %s: the file was changed or damaged", path, sum, f.SHA256)
	}
	return nil
}
