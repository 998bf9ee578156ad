package contract_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// ctx is the length of the windows that tests fit to and measure on.
const ctx = 48

var both = []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors}

func TestMain(m *testing.M) {
	var err error
	if made.root, err = os.MkdirTemp("", "contract"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(made.root)
	os.Exit(code)
}

// made keeps conversions, because tests break copies of the same few.
var made struct {
	sync.Mutex
	root string
	dirs map[string]string
}

// A recipe says what is converted and how.
type recipe struct {
	family  string
	tiny    tiny.Options
	formats []checkpoint.Container
	outtype string     // f32
	code    codec.Kind // frame
}

func (r recipe) options(src, out string) convert.Options {
	if r.formats == nil {
		r.formats = both
	}
	if r.outtype == "" {
		r.outtype = "f32"
	}
	if r.code == "" {
		r.code = "frame"
	}
	return convert.Options{
		Source: src, Out: out, Formats: r.formats, OutType: r.outtype, Code: r.code, Bits: 1, Alloc: "uniform", Balance: true,
		Policy:      kvcache.Policy{Anchor: 16, Sink: 2, Recent: 1},
		Calibration: ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration}, CalibrationTokens: 4 * ctx,
		Evaluation: ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation},
		Ctx:        ctx, Chunks: 1, Seed: 1, Threads: 2, Tool: "phaseconv test",
		Command: []string{"phaseconv", "convert", "src"},
	}
}

// artifact returns a copy of the conversion and of its source, to be broken.
func artifact(t *testing.T, r recipe) (dir, src string) {
	t.Helper()
	made.Lock()
	defer made.Unlock()
	key := fmt.Sprintf("%+v", r)
	base, ok := made.dirs[key]
	if !ok {
		base = filepath.Join(made.root, fmt.Sprint(len(made.dirs)))
		tiny.HF(t, filepath.Join(base, "src"), r.family, r.tiny)
		if _, err := convert.Convert(context.Background(),
			r.options(filepath.Join(base, "src"), filepath.Join(base, "art"))); err != nil {
			t.Fatal(err)
		}
		if made.dirs == nil {
			made.dirs = map[string]string{}
		}
		made.dirs[key] = base
	}
	tmp := t.TempDir()
	if err := os.CopyFS(tmp, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(tmp, "art"), filepath.Join(tmp, "src")
}

// check runs the contract.
func check(t testing.TB, dir, container string) []spec.Check {
	c := &contract.Checker{}
	a, err := contract.Open(t.Context(), dir, container, c)
	if err != nil {
		t.Fatal(err)
	}
	if a != nil {
		a.Close()
	}
	return c.Checks
}

// checkSource runs the contract and the measurements that need the source.
func checkSource(t *testing.T, dir, container, src string) *spec.VerifyJSON {
	t.Helper()
	c := &contract.Checker{}
	a, err := contract.Open(t.Context(), dir, container, c)
	if err != nil {
		t.Fatal(err)
	}
	if a == nil {
		return &spec.VerifyJSON{Contract: c.Checks}
	}
	defer a.Close()
	o := verify.Options{Text: ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}, Ctx: ctx, Chunks: 1, Sink: -1,
		Recent: -1, Threads: 2}
	if o.Source, err = checkpoint.Open(src); err != nil {
		t.Fatal(err)
	}
	defer o.Source.Close()
	v, err := verify.Artifact(context.Background(), a, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// failed returns the checks that did not pass, in order.
func failed(checks []spec.Check) (out []spec.Check) {
	for _, c := range checks {
		if !c.OK {
			out = append(out, c)
		}
	}
	return out
}

// wants reports whether the named check is among the failed ones, its detail
// holding all texts.
func wants(t *testing.T, checks []spec.Check, name string, says ...string) {
	t.Helper()
	bad := failed(checks)
	for _, c := range bad {
		if c.Check != name {
			continue
		}
		for _, s := range says {
			if !strings.Contains(c.Detail, s) {
				t.Errorf("check %q says %q, want %q", name, c.Detail, s)
			}
		}
		return
	}
	t.Errorf("check %q did not fail; failed: %v", name, bad)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// editManifest changes the manifest.
func editManifest(t *testing.T, dir string, edit func(m *spec.Manifest)) {
	t.Helper()
	m, err := contract.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	edit(m)
	b, err := contract.MarshalManifest(m)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, spec.ManifestName), b)
}

// record writes the sizes and digests of changed files into the manifest, so
// that only the later checks can find what was changed.
func record(t *testing.T, dir string) {
	t.Helper()
	editManifest(t, dir, func(m *spec.Manifest) {
		for i := range m.Files {
			f := &m.Files[i]
			path := filepath.Join(dir, f.Name)
			f.Bytes = int64(len(read(t, path)))
			var err error
			if f.SHA256, err = checkpoint.FileDigest(t.Context(), path, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// editSidecar writes a sidecar again after a change.
func editSidecar(t *testing.T, path string, edit func(s *sidecar.Sidecar)) {
	t.Helper()
	s, err := sidecar.Read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	edit(s)
	write := s.WriteGGUF
	if filepath.Ext(path) != ".gguf" {
		write = s.WriteSafetensors
	}
	if err := write(path); err != nil {
		t.Fatal(err)
	}
}

// editGGUF writes a GGUF file again with other keys, types or bytes; edit gets each
// tensor's bytes, and returns nil to leave the tensor out.
func editGGUF(t *testing.T, path string, keys func(kvs []gguf.KV) []gguf.KV,
	edit func(s *gguf.TensorSpec, b []byte) []byte) {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kvs := f.KVs
	if keys != nil {
		kvs = keys(kvs)
	}
	var specs []gguf.TensorSpec
	var data [][]byte
	for i := range f.Tensors {
		x := &f.Tensors[i]
		b, err := io.ReadAll(f.Reader(x))
		if err != nil {
			t.Fatal(err)
		}
		s := x.Spec()
		if edit != nil {
			b = edit(&s, b)
		}
		if b != nil {
			specs, data = append(specs, s), append(data, b)
		}
	}
	w, err := gguf.Create(path, kvs, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, s := range specs {
		if err := w.WriteTensor(s.Name, func(o io.Writer) error { _, err := o.Write(data[i]); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// setKey replaces a key's value, in place.
func setKey(key string, v gguf.KV) func([]gguf.KV) []gguf.KV {
	return func(kvs []gguf.KV) []gguf.KV {
		out := append([]gguf.KV(nil), kvs...)
		for i := range out {
			if out[i].Key == key {
				out[i] = v
				return out
			}
		}
		panic("no key " + key)
	}
}

// dropKeys leaves keys with a prefix out.
func dropKeys(prefix string) func([]gguf.KV) []gguf.KV {
	return func(kvs []gguf.KV) (out []gguf.KV) {
		for _, kv := range kvs {
			if !strings.HasPrefix(kv.Key, prefix) {
				out = append(out, kv)
			}
		}
		return out
	}
}

func truncate(t *testing.T, path string, by int) {
	t.Helper()
	b := read(t, path)
	write(t, path, b[:len(b)-by])
}
