// Package release makes of an artifact a folder that others can find, load and trust: GGUF files
// named by the convention and split for upload, keys that say what the model was made from, a sidecar
// that no loader takes for a model, and a statement of provenance.
package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// Options of Make.
type Options struct {
	// Dir is an artifact, Out the folder to create.
	Dir, Out string
	// Name of GGUF files, without ending; "" or "auto" makes one by the GGUF convention.
	Name string
	// SplitSize is how many bytes of tensors a GGUF file may have; 0 for one file.
	SplitSize int64
	// BaseModel is the id of the source on the hub, such as Org/Name; "" leaves it out.
	BaseModel string
	// QuantizedBy is who publishes it; "" leaves it out.
	QuantizedBy string
	// License is the licence's id on the hub. LicenseName and LicenseLink tell which it is where that is
	// "other". "" leaves each out.
	License, LicenseName, LicenseLink string
	// Imatrix is the source's importance matrix, "" for none.
	Imatrix  string
	Progress progress.Func
	Notice   func(text string)
}

// SidecarName is what the sidecar of a GGUF model is called in a release: programs that look for
// models take every file that ends in .gguf for one.
const SidecarName = "phaseconv.gguf-sidecar"

// check refuses what cannot be done, before anything is read.
func (o *Options) check() error {
	entries, err := os.ReadDir(o.Out)
	switch {
	case o.Out == "" || len(entries) > 0:
		return option.Bad("Out", nil, "name a new folder to create")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case unfit.MatchString(o.Name) || strings.HasPrefix(o.Name, ".") || strings.HasSuffix(o.Name, ".gguf"):
		return option.Bad("Name", o.Name,
			"expected auto, or a plain name without .gguf: letters, digits, dots, hyphens and underscores")
	case strings.HasPrefix(o.Name, "-"):
		return option.Bad("Name", o.Name, "programs take a name that begins with a hyphen for an option")
	case gguf.Whole(o.Name+".gguf") != o.Name+".gguf":
		return option.Bad("Name", o.Name, "loaders take it for a part of a split and look for the others; --split-max-size makes such names")
	case strings.Contains(strings.ToLower(o.Name), "mmproj") || strings.Contains(strings.ToLower(o.Name), "imatrix"):
		return option.Bad("Name", o.Name, "loaders take files of such names for a projector or an importance matrix, "+
			"not for the model")
	case o.SplitSize != 0 && o.SplitSize < 1e6:
		return option.Bad("SplitSize", o.SplitSize, "expected at least 1M")
	}
	return nil
}

// Make writes a release. The artifact is checked before, and the result passes the same checks.
// Files that are the same are copied.
func Make(ctx context.Context, o Options) (_ *spec.Manifest, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	m, err := checked(ctx, o.Dir, o.Progress)
	if err != nil {
		return nil, err
	}
	folder, err := write.NewFolder(o.Out, o.Notice)
	if err != nil {
		return nil, err
	}
	defer folder.Abort()
	defer func() { err = folder.Explain(err) }()
	if m.Files, err = o.files(ctx, m, folder.Path); err != nil {
		return nil, err
	}
	if err := write.Manifest(folder.Path, m); err != nil {
		return nil, err
	}
	// report.json belongs to the artifact; the manifest does not list it.
	if _, err := os.Stat(filepath.Join(o.Dir, spec.ReportDataName)); err == nil {
		if _, err := write.Copy(ctx, o.Dir, folder.Path, spec.ReportDataName); err != nil {
			return nil, err
		}
	}
	statement, err := contract.Provenance(folder.Path, m)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteFile(filepath.Join(folder.Path, spec.ProvenanceName), statement); err != nil {
		return nil, err
	}
	if _, err := checked(ctx, folder.Path, o.Progress); err != nil {
		return nil, fmt.Errorf("the release does not pass its own checks: %w", err)
	}
	return m, folder.Commit()
}

// files writes what the manifest of a release lists: GGUF models and sidecars under their new names,
// which m's artifacts get too, the other files as they are, and the importance matrix.
func (o *Options) files(ctx context.Context, m *spec.Manifest, dir string) (files []spec.File, err error) {
	// First, as a wrong one is no reason to write a model.
	var matrix []spec.File
	if o.Imatrix != "" {
		f, err := o.imatrix(ctx, m, dir)
		if err != nil {
			return nil, err
		}
		matrix = append(matrix, f)
	}
	renamed := map[string]bool{}
	for i := range m.Artifacts {
		e := &m.Artifacts[i]
		if e.Container != string(checkpoint.GGUF) {
			continue
		}
		renamed[e.Model], renamed[e.Sidecar] = true, true
		whole := gguf.Whole(e.Model) // of a release that is split, the release's name
		for _, f := range m.Files {
			if gguf.IsShard(f.Name, whole) {
				renamed[f.Name] = true
			}
		}
		more, err := o.gguf(ctx, m, e, dir)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	for _, f := range m.Files {
		if renamed[f.Name] {
			continue
		}
		name := f.Name
		if name == spec.CardName { // the source's, in artifacts of earlier programs
			name = spec.SourceCardName
		}
		g, err := write.CopyAs(ctx, filepath.Join(o.Dir, f.Name), dir, name)
		if err != nil {
			return nil, err
		}
		files = append(files, g)
	}
	return append(files, matrix...), nil
}

// checked opens every container of an artifact and returns its manifest.
func checked(ctx context.Context, dir string, report progress.Func) (*spec.Manifest, error) {
	m, err := contract.ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range m.Artifacts {
		checks := &contract.Checker{Progress: report}
		a, err := contract.Open(ctx, dir, e.Container, checks)
		if err != nil {
			return nil, err
		}
		if a != nil {
			a.Close()
		}
		if err := checks.Failed(); err != nil {
			return nil, fmt.Errorf("%s does not pass its contract: %w", dir, err)
		}
	}
	return m, nil
}

// gguf writes the GGUF files of an artifact's entry under their new names, which it puts into the
// entry, and the sidecar.
func (o *Options) gguf(ctx context.Context, m *spec.Manifest, e *spec.Artifact, dir string) ([]spec.File, error) {
	f, err := gguf.Open(filepath.Join(o.Dir, e.Model))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name := o.Name
	if name == "" || name == "auto" {
		name = Name(f, m)
	}
	kvs := o.keys(f, m)
	parts := split(f, o.SplitSize)
	tick := o.Progress.Of("writing gguf, tensors")
	var out []spec.File
	done := 0
	for i, tensors := range parts {
		path, these := filepath.Join(dir, name+".gguf"), kvs
		if len(parts) > 1 {
			path = gguf.ShardPath(filepath.Join(dir, name), i, len(parts))
			if i > 0 {
				these = nil
			}
			these = append(append([]gguf.KV{}, these...), gguf.SplitKeys(i, len(parts), len(f.Tensors))...)
		}
		file, err := copyTensors(ctx, path, these, f, tensors, nil, func() {
			if done++; tick != nil {
				tick(done, len(f.Tensors))
			}
		})
		if err != nil {
			return nil, err
		}
		out = append(out, file)
	}
	s, err := write.CopyAs(ctx, filepath.Join(o.Dir, e.Sidecar), dir, SidecarName)
	e.Model, e.Sidecar = out[0].Name, SidecarName
	return append(out, s), err
}

// split cuts the tensors into files of at most size bytes, in their order; a tensor that is larger
// has a file of its own.
func split(f *gguf.File, size int64) [][]*gguf.Tensor {
	var out [][]*gguf.Tensor
	var bytes int64
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if len(out) == 0 || size > 0 && bytes > 0 && bytes+t.Size > size {
			out, bytes = append(out, nil), 0
		}
		out[len(out)-1] = append(out[len(out)-1], t)
		bytes += t.Size
	}
	return out
}

// copyTensors writes a GGUF file with tensors of f, those in changed with other data of the same size.
func copyTensors(ctx context.Context, path string, kvs []gguf.KV, f *gguf.File, tensors []*gguf.Tensor,
	changed map[string][]byte, tick func()) (spec.File, error) {
	var specs []gguf.TensorSpec
	for _, t := range tensors {
		specs = append(specs, t.Spec())
	}
	out, err := gguf.Create(path, kvs, specs)
	if err != nil {
		return spec.File{}, err
	}
	defer out.Abort()
	for _, t := range tensors {
		if ctx.Err() != nil {
			return spec.File{}, context.Cause(ctx)
		}
		if data, ok := changed[t.Name]; ok {
			err = out.WriteTensor(t.Name, func(w io.Writer) error { _, err := w.Write(data); return err })
		} else {
			err = out.CopyTensor(f, t)
		}
		if err != nil {
			return spec.File{}, err
		}
		tick()
	}
	if err := out.Commit(); err != nil {
		return spec.File{}, err
	}
	sum, err := out.SHA256()
	return spec.File{Name: filepath.Base(path), Bytes: out.Size(), SHA256: sum}, err
}
