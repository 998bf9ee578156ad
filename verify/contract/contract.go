// Package contract opens artifacts and checks that everything in them belongs
// together. It fails closed: what cannot be checked is not used.
package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// MaxManifest bounds phaseconv.json in bytes.
const MaxManifest = 256 << 20

// An Artifact is one container of an opened artifact folder.
type Artifact struct {
	Dir      string
	Manifest *spec.Manifest
	Entry    spec.Artifact
	Model    *checkpoint.Checkpoint
	Sidecar  *sidecar.Sidecar
}

// Close closes the model.
func (a *Artifact) Close() error {
	if a.Model == nil {
		return nil
	}
	return a.Model.Close()
}

// ReadManifest reads dir/phaseconv.json.
func ReadManifest(dir string) (*spec.Manifest, error) {
	path := filepath.Join(dir, spec.ManifestName)
	raw, err := format.ReadFile(path, MaxManifest)
	if _, gone := os.Stat(dir); errors.Is(gone, fs.ErrNotExist) {
		return nil, gone
	}
	if s, e := os.Stat(dir); e == nil && !s.IsDir() {
		return nil, fmt.Errorf("%s: not a folder; name the artifact's folder", dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: not a phaseconv artifact: %s is missing (a conversion writes it last)", dir,
			spec.ManifestName)
	}
	if err != nil {
		return nil, err
	}
	m, err := ParseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// MarshalManifest returns the bytes of a manifest, its own digest computed and
// filled in.
func MarshalManifest(m *spec.Manifest) ([]byte, error) {
	m.SHA256 = strings.Repeat("0", 64) // room for the digest
	// Lists that must be there are, even with nothing in them: a conversion that no
	// command line started has none.
	if m.Command == nil {
		m.Command = []string{}
	}
	if m.Identities == nil {
		m.Identities = []spec.Identity{}
	}
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	if err := spec.SealManifest(b); err != nil {
		return nil, err
	}
	m.SHA256, _, err = spec.ManifestDigest(b)
	return b, err
}

// ParseManifest reads the bytes of a manifest. Unknown fields are refused, because
// they would belong to another version, and so is all else that
// manifest.schema.json does not allow, and a digest that does not fit.
func ParseManifest(raw []byte) (*spec.Manifest, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := jsonx.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("not a valid manifest: %w", err)
	}
	if head.Version != spec.Version && head.Version != spec.VersionGroups {
		return nil, fmt.Errorf("key version is %d; this program reads versions %d and %d", head.Version, spec.Version,
			spec.VersionGroups)
	}
	var m spec.Manifest
	if err := jsonx.UnmarshalStrict(raw, &m); err != nil {
		return nil, fmt.Errorf("not a valid manifest: %w", err)
	}
	// What the decoder lets through: members that are missing, counts below zero,
	// values that nothing else looks at.
	if err := spec.ValidateManifest(raw); err != nil {
		return nil, fmt.Errorf("not a valid manifest: %w", err)
	}
	if err := spec.CheckManifest(raw); err != nil {
		return nil, err
	}
	if groups := m.Version == spec.VersionGroups; groups != (m.Code.Parts != "") || groups != (m.Code.GroupDim != 0) {
		return nil, fmt.Errorf("keys code.parts and code.group_dim are those of version %d and must be there; "+
			"the manifest is of version %d", spec.VersionGroups, m.Version)
	}
	for _, f := range m.Files {
		if f.Name != filepath.Base(f.Name) || f.Name == "." || f.Name == ".." {
			return nil, fmt.Errorf("key files: %q is not a plain file name", f.Name)
		}
	}
	return &m, nil
}

// Checker collects the results of checks.
type Checker struct {
	Checks []spec.Check
	// Fresh says that this process has just written the artifact, and took the digests of
	// files and weights while it did: they are not computed again.
	Fresh bool
	// Progress, if set, is told how much has been read.
	Progress progress.Func
}

// Add records a check; err nil means that it passed.
func (c *Checker) Add(name string, err error, detail string) bool {
	if err != nil {
		detail = err.Error()
	}
	c.Checks = append(c.Checks, spec.Check{Check: name, OK: err == nil, Detail: detail})
	return err == nil
}

// OK says whether all checks passed.
func (c *Checker) OK() bool { return c.Failed() == nil }

// Failed returns the first check that did not pass, as an error; nil if all did.
func (c *Checker) Failed() error {
	for _, x := range c.Checks {
		if !x.OK {
			return fmt.Errorf("%s: %s", x.Check, x.Detail)
		}
	}
	return nil
}

// Open opens the artifact in dir and runs the checks that need no text. prefer
// names the container to use when there are two ("" takes the first). A nil
// Artifact comes back when a check failed so badly that nothing can be measured, an error only
// when ctx ends.
func Open(ctx context.Context, dir, prefer string, c *Checker) (*Artifact, error) {
	a := c.open(ctx, dir, prefer)
	if ctx.Err() != nil {
		if a != nil {
			a.Close()
		}
		return nil, context.Cause(ctx)
	}
	return a, nil
}

func (c *Checker) open(ctx context.Context, dir, prefer string) *Artifact {
	m, err := ReadManifest(dir)
	if !c.Add("manifest", err, manifestDetail(m)) {
		return nil
	}
	c.Add("files", c.checkFiles(ctx, dir, m), fmt.Sprintf("%d files have the recorded sizes and digests", len(m.Files)))
	if there, err := checkProvenance(dir, m); there {
		c.Add("provenance", err, spec.ProvenanceName+" tells the same as the manifest")
	}
	c.Add("no other files", checkExtra(dir, m), "nothing else is there that a loader would read")
	entry, err := choose(m, prefer)
	if !c.Add("container", err, entry.Container) {
		return nil
	}
	a := &Artifact{Dir: dir, Manifest: m, Entry: entry}
	path := filepath.Join(dir, entry.Model)
	if entry.Container == string(checkpoint.Safetensors) {
		path = dir
	}
	a.Model, err = checkpoint.OpenAs(path, m.Graph)
	if !c.Add("model", err, "the model opens and has the tensors of its family") {
		return nil
	}
	a.Sidecar, err = sidecar.Read(ctx, filepath.Join(dir, entry.Sidecar))
	if !c.Add("sidecar", err, sidecarDetail(a.Sidecar)) {
		a.Close()
		return nil
	}
	if !c.Add("sidecar fits model", checkFit(a), "layers, KV heads, head_dim, pair layout and RoPE agree") {
		a.Close()
		return nil
	}
	sum := entry.WeightsSHA256
	if !c.Fresh {
		sum, err = a.Model.AttentionDigest(ctx, a.Sidecar.Version() == spec.VersionGroups,
			c.Progress.Of("checking query and key tensors, MiB"))
	}
	if err == nil && sum != a.Sidecar.WeightsSHA256 {
		err = fmt.Errorf("key %s is %s, but the model's attention tensors have %s: the sidecar belongs to other weights",
			spec.KeyWeightsSHA256, a.Sidecar.WeightsSHA256, sum)
	}
	if !c.Add("weights digest", err, digestDetail(a.Sidecar)) {
		a.Close()
		return nil
	}
	c.Add("manifest fits sidecar", checkManifest(a), "manifest and sidecar tell the same")
	c.Add("model marker", checkMarker(a), "the model names its format version and source")
	return a
}

// choose picks the container to verify.
func choose(m *spec.Manifest, prefer string) (spec.Artifact, error) {
	for _, e := range m.Artifacts {
		if prefer != "" && e.Container != prefer {
			continue
		}
		for _, n := range []string{e.Model, e.Sidecar} {
			if n == "" || n != filepath.Base(n) {
				return e, fmt.Errorf("key artifacts: %q is not a plain file name", n)
			}
		}
		return e, nil
	}
	return spec.Artifact{}, fmt.Errorf("key artifacts: no container %q", prefer)
}

func (c *Checker) checkFiles(ctx context.Context, dir string, m *spec.Manifest) error {
	if len(m.Files) == 0 {
		return fmt.Errorf("key files is empty")
	}
	listed := map[string]bool{}
	for _, f := range m.Files {
		listed[f.Name] = true
	}
	for _, e := range m.Artifacts {
		for _, n := range []string{e.Model, e.Sidecar} {
			if !listed[n] {
				return fmt.Errorf("key files does not list %q, which key artifacts names", n)
			}
		}
	}
	return c.compareFiles(ctx, dir, m.Files)
}

// harmless says whether a file that the manifest does not list may lie in an
// artifact: no loader reads hidden files, documents and pages.
func harmless(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".md", ".html", ".log", ".png", ".svg":
		return true
	}
	return strings.HasPrefix(name, ".")
}

// checkExtra refuses what nobody vouches for. Loaders look for files by name: an
// index, an adapter, a chat template or a second tokenizer that appears beside a
// model changes what it computes, though every recorded digest still agrees.
func checkExtra(dir string, m *spec.Manifest) error {
	known := map[string]bool{spec.ManifestName: true, spec.ReportDataName: true, spec.ProvenanceName: true,
		spec.SignatureName: true}
	for _, f := range m.Files {
		known[f.Name] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n := e.Name(); !known[n] && !harmless(n) {
			return fmt.Errorf("%s: the manifest does not list it, and a loader may read it; move it out of the folder",
				filepath.Join(dir, n))
		}
	}
	return nil
}

func checkFit(a *Artifact) error {
	cfg, s := a.Model.Config, a.Sidecar
	if err := checkShapes(cfg, s); err != nil {
		return err
	}
	if s.Pairs != cfg.Pairs {
		return fmt.Errorf("key %s is %s, the model's keys are %s", spec.KeyPairLayout, s.Pairs, cfg.Pairs)
	}
	text, err := sidecar.RopeText(cfg.Ropes())
	if err != nil {
		return err
	}
	if text != s.Rope {
		return fmt.Errorf("key %s is %s, the model has %s", spec.KeyRope, s.Rope, text)
	}
	return nil
}

// checkShapes compares the layers of a sidecar with those of the model.
func checkShapes(cfg *family.Config, s *sidecar.Sidecar) error {
	if s.Version() == spec.VersionGroups {
		if len(s.Layers) != len(cfg.Layers) {
			return fmt.Errorf("key %s has %d layers, the model has %d", spec.KeyGroups, len(s.Layers), len(cfg.Layers))
		}
		for l, y := range s.Layers {
			want := cfg.Layers[l].HeadShape
			if got := [3]int{y.Heads, y.KeyDim, y.ValueDim}; got != [3]int{want.KVHeads, want.HeadDim, want.ValueDim} {
				return fmt.Errorf("key %s: layer %d has heads, head_dim and value_dim %v, the model has %d KV heads of %d and %d",
					spec.KeyGroups, l, got, want.KVHeads, want.HeadDim, want.ValueDim)
			}
			if o := cfg.Layers[l].Owner; o != l && len(y.Groups) > 0 {
				return fmt.Errorf("key %s: layer %d has groups, but reads the keys and values of layer %d", spec.KeyGroups, l, o)
			}
		}
		return nil
	}
	shape, err := cfg.Uniform()
	if err != nil {
		return err
	}
	for _, x := range []struct {
		key       string
		got, want int
	}{
		{spec.KeyLayers, len(s.Codes), len(cfg.Layers)},
		{spec.KeyHeads, len(s.Codes[0]), shape.KVHeads},
		{spec.KeyHeadDim, s.HeadDim, shape.HeadDim},
	} {
		if x.got != x.want {
			return fmt.Errorf("key %s is %d, the model has %d", x.key, x.got, x.want)
		}
	}
	return nil
}

func checkManifest(a *Artifact) error {
	m, s, cfg := a.Manifest, a.Sidecar, a.Model.Config
	shape := cfg.Layers[0].HeadShape
	if err := checkFamily(m, a.Model); err != nil {
		return err
	}
	// --bits is checked to be a whole number of signs to six digits.
	if bits := s.Bits(); !(math.Abs(m.Code.Bits-bits) < 1e-5) {
		return fmt.Errorf("key code.bits is %g in the manifest, %g in the artifact", m.Code.Bits, bits)
	}
	return compareFacts(append(sidecarFacts(m, a.Entry, s),
		fact{"model.layers", m.Model.Layers, len(cfg.Layers)},
		fact{"model.n_heads", m.Model.Heads, shape.Heads},
		fact{"model.n_kv_heads", m.Model.KVHeads, shape.KVHeads},
		fact{"model.head_dim", m.Model.HeadDim, shape.HeadDim},
		fact{"model.hidden_size", m.Model.Hidden, cfg.Hidden},
		fact{"model.vocab_size", m.Model.Vocab, cfg.Vocab},
		fact{"model.context_length", m.Model.Context, cfg.Context},
		fact{"model.experts", m.Model.Experts, cfg.Experts()},
	), "the artifact")
}

// checkFamily compares the family in the manifest with the model's.
func checkFamily(m *spec.Manifest, c *checkpoint.Checkpoint) error {
	is := c.Config.Family
	if m.Graph != nil {
		if m.Model.Family != is.Name {
			return fmt.Errorf("key model.family is %s in the manifest, the graph is one of %s", m.Model.Family, is.Name)
		}
		return nil
	}
	fam, err := family.ByModelType(m.Model.Family, "")
	if err != nil {
		return fmt.Errorf("key model.family in the manifest: %w", err)
	}
	// Families that share a GGUF architecture cannot be told apart in that
	// container; all that they compute differently is whether there are experts.
	got, was := [2]any{fam.Name, ""}, [2]any{is.Name, ""}
	if c.Container == checkpoint.GGUF {
		got, was = [2]any{fam.GGUFArch, fam.Experts != nil}, [2]any{is.GGUFArch, is.Experts != nil}
	}
	if got != was {
		return fmt.Errorf("key model.family is %s in the manifest, but the artifact is %s", fam.Name, is.Name)
	}
	return nil
}

// checkMarker reads what the model itself says about its conversion.
func checkMarker(a *Artifact) error {
	version, source, err := Marker(a.Model)
	if err != nil {
		return err
	}
	if version != a.Sidecar.Version() {
		return fmt.Errorf("the model says format version %d, its sidecar is of %d", version, a.Sidecar.Version())
	}
	if source != a.Sidecar.SourceSHA256 {
		return fmt.Errorf("the model names source %s, the sidecar %s", source, a.Sidecar.SourceSHA256)
	}
	return nil
}

// Marker returns the format version and source digest that a converted model
// carries: keys under general.phaseconv in GGUF, the object "phaseconv" in
// config.json. An error means that there is no marker.
func Marker(c *checkpoint.Checkpoint) (version int, source string, err error) {
	if f := c.File(); f != nil {
		v, err := f.Uint(spec.ModelPrefix + spec.KeyVersion)
		if err != nil {
			return 0, "", err
		}
		source, err = f.String(spec.ModelPrefix + spec.KeySourceSHA256)
		return int(v), source, err
	}
	raw, err := hf.ReadRaw(c.Path)
	if err != nil {
		return 0, "", err
	}
	var m struct {
		Phaseconv *struct {
			Version int `json:"version"`
			Source  struct {
				SHA256 string `json:"sha256"`
			} `json:"source"`
		} `json:"phaseconv"`
	}
	if err := jsonx.Unmarshal(raw, &m); err != nil {
		return 0, "", err
	}
	if m.Phaseconv == nil {
		return 0, "", fmt.Errorf("%s: config.json has no object %q", c.Path, spec.ConfigObject)
	}
	return m.Phaseconv.Version, m.Phaseconv.Source.SHA256, nil
}
