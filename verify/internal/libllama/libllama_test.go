//go:build linux && (amd64 || arm64)

package libllama

import (
	"context"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
	"github.com/phaseconv/phaseconv/verify/texts"
)

var open = sync.OnceValues(func() (*Library, error) { return Open(os.Getenv(Env)) })

// library returns llama.cpp, or skips the test.
func library(t *testing.T) *Library {
	t.Helper()
	if os.Getenv(Env) == "" {
		t.Skipf("NOTHING IS COMPARED with llama.cpp: set %s to the folder with libllama.so and libggml*.so of its release v0.5.0"+
			" (a CPU build's build/bin, or bins/linux-x64 of the npm package @node-llama-cpp/linux-x64, version 3.22.1)", Env)
	}
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// scratch is removed after the tests.
var scratch string

func TestMain(m *testing.M) {
	code := m.Run()
	if scratch != "" {
		os.RemoveAll(scratch)
	}
	os.Exit(code)
}

// program builds phaseconv once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "libllama")
	if err != nil {
		return "", err
	}
	scratch = dir
	path := filepath.Join(dir, "phaseconv")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/phaseconv")
	cmd.Dir = "../../.."
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

func convertArgs(src, out string, args ...string) []string {
	return append([]string{"convert", src, "-o", out, "--code", "srht", "--report=false", "--chunks", "1"}, args...)
}

// convert converts src with the command line program and returns the GGUF file.
func convert(t *testing.T, src string, args ...string) string {
	t.Helper()
	p, err := program()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	cmd := exec.Command(p, convertArgs(src, out, args...)...)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, msg)
	}
	return filepath.Join(out, "model.gguf")
}

// austen returns testdata/austen-moe as F32 GGUF files, with and without the changes
// of weights that a conversion makes.
var austen = sync.OnceValue(func() (files struct{ published, converted string }) {
	p, err := program()
	if err != nil {
		return
	}
	for _, x := range []struct {
		name, fuse string
		to         *string
	}{{"published", "none", &files.published}, {"converted", "exact", &files.converted}} {
		out := filepath.Join(scratch, x.name)
		msg, err := exec.Command(p, convertArgs("../../../testdata/austen-moe", out, "--outtype", "f32", "--calib-tokens",
			"2048", "--weight-edits", x.fuse)...).CombinedOutput()
		if err != nil {
			os.Stderr.Write(msg)
			return
		}
		*x.to = filepath.Join(out, "model.gguf")
	}
	return
})

// difference is how far two runs of the same windows are apart.
type difference struct {
	worst, rms float64 // of all logits
	std        float64 // of our own logits: what the others are measured in
}

// compare runs windows through our own forward pass, with the weights of one GGUF
// file, and through llama.cpp with those of another (the same, but for a test of
// compare itself), there with float32 caches and plain attention.
func compare(t *testing.T, here, there string, windows [][]int32) difference {
	t.Helper()
	return compareRounded(t, here, there, windows, true)
}

// compareRounded is compare with the inputs of our products rounded or not.
func compareRounded(t *testing.T, here, there string, windows [][]int32, round bool) difference {
	t.Helper()
	c, err := checkpoint.Open(here)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	T, vocab := len(windows[0]), c.Config.Vocab
	m := refmodel.New(c.Config, c, 2)
	m.RoundInputs = round
	variant := &refmodel.Variant{}
	if err := m.Run(context.Background(), windows, []*refmodel.Variant{variant}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	normed, err := m.FinalNorm(variant.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	ours := make([]float32, len(windows)*T*vocab)
	if err := m.Logits(t.Context(), [][]float32{ours}, [][]float32{normed}, 0, vocab); err != nil {
		t.Fatal(err)
	}
	return differ(t, there, windows, ours)
}

// differ runs windows through llama.cpp with the weights of a GGUF file and compares the logits
// with others, [windows, T, vocab].
func differ(t *testing.T, there string, windows [][]int32, ours []float32) difference {
	t.Helper()
	T := len(windows[0])
	vocab := len(ours) / (len(windows) * T)
	model, err := library(t).Load(there)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	if model.Vocab != vocab {
		t.Fatalf("llama.cpp finds %d tokens, we %d", model.Vocab, vocab)
	}
	ctx, err := model.Context(Options{Ctx: T, K: gguf.TypeF32, V: gguf.TypeF32, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Close()
	var d difference
	var sum, squares, errors float64
	for n, w := range windows {
		rows := 0
		err := ctx.Window(w, 0, func(i int, z []float32) error {
			rows++
			for j, v := range z {
				o := float64(ours[(n*T+i)*vocab+j])
				x := math.Abs(o - float64(v))
				if !(x <= d.worst) { // a NaN counts as a difference
					d.worst = x
				}
				errors += x * x
				sum += o
				squares += o * o
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if rows != T {
			t.Fatalf("%d rows of logits for %d tokens", rows, T)
		}
	}
	n := float64(len(ours))
	d.rms = math.Sqrt(errors / n)
	d.std = math.Sqrt(squares/n - sum/n*sum/n)
	return d
}

// windowsOf cuts held-out text for the model in path.
func windowsOf(t *testing.T, path string, ctx, chunks int) *ppl.Windows {
	t.Helper()
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w, err := ppl.Tokenize(t.Context(), c, ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}, ctx, chunks)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// rawFile opens a GGUF file, until the test ends, and reads its bytes.
func rawFile(t *testing.T, path string) (*gguf.File, []byte) {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f, raw
}

// disturb copies a GGUF file of F32 matrices and doubles one weight of it, the
// largest of a tensor's first row.
func disturb(t *testing.T, path, tensor string) string {
	t.Helper()
	f, raw := rawFile(t, path)
	for i := range f.Tensors {
		if f.Tensors[i].Name != tensor || f.Tensors[i].Type != gguf.TypeF32 {
			continue
		}
		row := raw[f.Tensors[i].Offset:][:4*f.Tensors[i].RowLen()]
		at, largest := 0, float32(0)
		for j := 0; j < len(row); j += 4 {
			if v := math.Float32frombits(binary.LittleEndian.Uint32(row[j:])); v*v > largest*largest {
				at, largest = j, v
			}
		}
		binary.LittleEndian.PutUint32(row[at:], math.Float32bits(2*largest))
		out := filepath.Join(t.TempDir(), "disturbed.gguf")
		if err := os.WriteFile(out, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Fatalf("%s has no F32 tensor %s", path, tensor)
	return ""
}

// Tolerances of a logit, in standard deviations of all logits.
const (
	// With F32 weights both programs compute in float32 and differ by the order of
	// sums: a few hundred roundings of 2^-24 along the way, times what layers amplify.
	exactLimit = 1e-4
	// With F16 weights every input of a matrix product is rounded to F16 too, by up to
	// 2^-11 of it. We round them as llama.cpp does (TestRoundedInputs), but a few fall to the
	// other side of a tie, and from there on more and more do.
	halfLimit = 0.02
	// ggml looks GELU up in a table for F16 arguments: again 2^-11 per value.
	geluLimit = 0.02
)

func TestAustenMoE(t *testing.T) {
	library(t)
	t.Log(library(t).SystemInfo())
	for _, x := range []struct {
		outtype string
		limit   float64
	}{{"f32", exactLimit}, {"f16", halfLimit}} {
		t.Run(x.outtype, func(t *testing.T) {
			path := austen().converted
			if x.outtype != "f32" {
				path = convert(t, "../../../testdata/austen-moe", "--outtype", x.outtype, "--calib-tokens", "2048")
			}
			w := windowsOf(t, path, 128, 2)
			d := compare(t, path, path, w.Tokens)
			t.Logf("largest difference %.1e, rms %.1e, limit %.1e of the logits' deviation %.2f", d.worst/d.std, d.rms/d.std,
				x.limit, d.std)
			if !(d.worst <= x.limit*d.std) {
				t.Errorf("a logit differs from llama.cpp's by %.2e of the deviation, more than %.0e", d.worst/d.std, x.limit)
			}
			if x.outtype != "f32" {
				return
			}
			// One weight of the 2.6 million, in the file that llama.cpp alone reads.
			bad := compare(t, path, disturb(t, path, "blk.1.attn_v.weight"), w.Tokens)
			t.Logf("with one weight disturbed: largest difference %.1e", bad.worst/bad.std)
			if bad.worst <= 10*x.limit*bad.std {
				t.Errorf("one disturbed weight moves logits by %.1e of the deviation: the limit %.0e would not show it",
					bad.worst/bad.std, x.limit)
			}
		})
	}
}

// headScales are the offsets of the F16 numbers in a block of the types of output heads
// that TestRoundedInputs tries.
var headScales = map[gguf.Type][]int{
	gguf.TypeF16: nil, gguf.TypeBF16: nil, gguf.TypeQ8_0: {0}, gguf.TypeQ4_0: {0}, gguf.TypeQ4_1: {0, 2},
	gguf.TypeQ5_0: {0}, gguf.TypeQ5_1: {0, 2},
	gguf.TypeIQ4_NL: {0}, gguf.TypeQ2_K: {80, 82}, gguf.TypeQ3_K: {108}, gguf.TypeQ4_K: {0, 2}, gguf.TypeQ5_K: {0, 2},
	gguf.TypeQ6_K: {208}, gguf.TypeIQ4_XS: {0}, gguf.TypeMXFP4: nil, gguf.TypeIQ2_XXS: {0}, gguf.TypeIQ2_XS: {0},
	gguf.TypeIQ2_S: {0}, gguf.TypeIQ3_XXS: {0}, gguf.TypeIQ3_S: {0}, gguf.TypeIQ1_S: {0},
}

// withHead copies a GGUF file with another output head, of random blocks.
func withHead(t *testing.T, path string, typ gguf.Type) string {
	t.Helper()
	f, raw := rawFile(t, path)
	r := rand.New(rand.NewPCG(3, uint64(typ)))
	var specs []gguf.TensorSpec
	data := map[string][]byte{}
	for i := range f.Tensors {
		x := &f.Tensors[i]
		s := gguf.TensorSpec{Name: x.Name, Type: x.Type, Dims: x.Dims}
		size, err := gguf.RowBytes(x.Type, x.Elements())
		if err != nil {
			t.Fatal(err)
		}
		b := raw[x.Offset:][:size]
		if x.Name == "output.weight" {
			s.Type = typ
			if size, err = gguf.RowBytes(typ, x.Elements()); err != nil {
				t.Fatal(err)
			}
			b = make([]byte, size)
			for j := range b {
				b[j] = byte(r.Uint32())
			}
			_, block := typ.Block()
			for at := 0; at < size; at += block {
				for _, o := range headScales[typ] {
					binary.LittleEndian.PutUint16(b[at+o:], dtype.F32ToF16(0.01+0.01*r.Float32()))
				}
				switch typ { // the first two are numbers without blocks
				case gguf.TypeMXFP4:
					b[at] = 121 // 2^-6
				case gguf.TypeF16:
					binary.LittleEndian.PutUint16(b[at:], dtype.F32ToF16(float32(r.NormFloat64())))
				case gguf.TypeBF16:
					binary.LittleEndian.PutUint16(b[at:], uint16(math.Float32bits(float32(r.NormFloat64()))>>16))
				}
			}
		}
		specs, data[x.Name] = append(specs, s), b
	}
	out := filepath.Join(t.TempDir(), "head.gguf")
	w, err := gguf.Create(out, f.KVs, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, s := range specs {
		if err := w.WriteTensor(s.Name, func(o io.Writer) error { _, err := o.Write(data[s.Name]); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRoundedInputs: the inputs of products are rounded as llama.cpp's CPU backend rounds
// them for each type of matrix. Only one product of the model has such a type, the output
// head: errors of rounding grow like roots from one product to the next, because what is
// a little different before rounding may be a step different behind it.
func TestRoundedInputs(t *testing.T) {
	library(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "model.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Seed: 2, Hidden: 256, Untied: true})
	for typ := range headScales {
		t.Run(typ.String(), func(t *testing.T) {
			head := withHead(t, path, typ)
			w := windowsOf(t, head, 64, 2)
			d := compareRounded(t, head, head, w.Tokens, true)
			bare := compareRounded(t, head, head, w.Tokens, false)
			t.Logf("rms difference %.1e, without rounding %.1e of the logits' deviation %.2f", d.rms/d.std, bare.rms/d.std,
				d.std)
			// A number that lies a float32 rounding away from a tie may fall to its other side.
			// Of F16 inputs that is one in a thousand, which leaves a thirtieth of the difference
			// or a little more; of Q8_K inputs nearly none.
			limit := bare.rms / 4
			if inputsOf256(typ) {
				limit = 1e-5 * d.std
			}
			if !(d.rms <= limit) {
				t.Errorf("logits differ by %.1e of their deviation, more than %.1e", d.rms/d.std, limit/d.std)
			}
		})
	}
}

// inputsOf256: types whose inputs are rounded in blocks of 256.
func inputsOf256(typ gguf.Type) bool {
	numbers, _ := typ.Block()
	return numbers == 256
}

// TestFamilies converts a tiny model of every family with random weights.
func TestFamilies(t *testing.T) {
	library(t)
	for _, fam := range tiny.Families {
		t.Run(fam, func(t *testing.T) {
			dir := t.TempDir()
			options := tiny.Options{Seed: 1}
			if fam == "olmoe" {
				options.KVHeads = 4 // stock runtimes know olmoe without GQA only
			}
			tiny.HF(t, dir, fam, options)
			path := convert(t, dir, "--outtype", "f32", "--ctx", "64", "--calib-tokens", "1024")
			w := windowsOf(t, path, 64, 2)
			limit := exactLimit
			if fam == "gemma3_text" {
				limit = geluLimit
			}
			d := compare(t, path, path, w.Tokens)
			t.Logf("largest difference %.1e, rms %.1e, limit %.1e of the logits' deviation %.2f", d.worst/d.std, d.rms/d.std,
				limit, d.std)
			if !(d.worst <= limit*d.std) {
				t.Errorf("a logit differs from llama.cpp's by %.2e of the deviation, more than %.0e", d.worst/d.std, limit)
			}
		})
	}
}

// tinyFiles names a folder with the GGUF files of the models that transformers made, as
// TestGGUFOracle of convert/write keeps them.
const tinyFiles = "PHASECONV_TINY_GGUF"

// files are the F32 files in that folder.
func files(t *testing.T) []string {
	t.Helper()
	if os.Getenv(tinyFiles) == "" {
		t.Skipf("NOTHING IS COMPARED: set %s to the folder of what PHASECONV_KEEP_GGUF=FOLDER go test -run TestGGUFOracle "+
			"./convert/write keeps", tinyFiles)
	}
	files, err := filepath.Glob(filepath.Join(os.Getenv(tinyFiles), "*.f32.gguf"))
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files (%v)", len(files), err)
	}
	return files
}

// TestTinyFiles: llama.cpp loads our F32 file of every model that transformers made (partly turned
// heads, layers without RoPE, shared keys, sinks, stacked tensors, ...) and computes what we do.
func TestTinyFiles(t *testing.T) {
	library(t)
	for _, path := range files(t) {
		name := strings.TrimSuffix(filepath.Base(path), ".f32.gguf")
		t.Run(name, func(t *testing.T) {
			c, err := checkpoint.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			limit := exactLimit
			if c.Config.Layers[0].FFN.Activation == family.GELUTanh {
				limit = geluLimit * max(1, float64(len(c.Config.Layers))/10) // the table's errors add up
			}
			for _, x := range c.Tensors() {
				if typ, err := gguf.ParseType(x.Type); err == nil && typ.Quantized() {
					limit = halfLimit // inputs are rounded
				}
			}
			d := compare(t, path, path, tiny.Windows(c.Config, 2, 36))
			t.Logf("largest difference %.1e, rms %.1e, limit %.1e of the logits' deviation %.2f", d.worst/d.std, d.rms/d.std,
				limit, d.std)
			if !(d.worst <= limit*d.std) {
				t.Errorf("a logit differs from llama.cpp's by %.2e of the deviation, more than %.0e", d.worst/d.std, limit)
			}
		})
	}
}

// TestModel converts the real model of float weights that PHASECONV_MODEL names.
func TestModel(t *testing.T) {
	library(t)
	src := os.Getenv("PHASECONV_MODEL")
	if src == "" {
		t.Skip("NO REAL MODEL IS COMPARED: set PHASECONV_MODEL to a GGUF file or a Hugging Face folder")
	}
	src, err := filepath.Abs(src)
	if err != nil {
		t.Fatal(err)
	}
	path := convert(t, src, "--outtype", "f32", "--calib-tokens", "2048")
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range f.Tensors {
		if x := &f.Tensors[i]; x.Type != gguf.TypeF32 {
			t.Fatalf("%s is %s, which conversion keeps, and llama.cpp rounds the inputs of its products: PHASECONV_MODEL must be a model of float weights", x.Name, x.Type)
		}
	}
	w := windowsOf(t, path, 256, 1)
	limit := exactLimit
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if strings.HasPrefix(c.Config.Family.Name, "gemma") {
		limit = geluLimit
	}
	d := compare(t, path, path, w.Tokens)
	t.Logf("largest difference %.1e, rms %.1e, limit %.1e of the logits' deviation %.2f", d.worst/d.std, d.rms/d.std,
		limit, d.std)
	if !(d.worst <= limit*d.std) {
		t.Errorf("a logit differs from llama.cpp's by %.2e of the deviation, more than %.0e", d.worst/d.std, limit)
	}
	bad := compare(t, path, disturb(t, path, "blk.1.attn_v.weight"), w.Tokens)
	t.Logf("with one weight disturbed: largest difference %.1e", bad.worst/bad.std)
	if bad.worst <= 10*limit*bad.std {
		t.Errorf("one disturbed weight moves logits by %.1e of the deviation: the limit %.0e would not show it",
			bad.worst/bad.std, limit)
	}
}

// TestCacheTypes measures stock key caches in llama.cpp against the published model
// with F16 caches, before and after the K/Q pair balance, and holds our emulation
// against it.
func TestCacheTypes(t *testing.T) {
	l := library(t)
	files := austen()
	if files.published == "" || files.converted == "" {
		t.Fatal("testdata/austen-moe was not converted; see above")
	}
	o := CacheOptions{
		Published: files.published, Converted: files.converted, Emulate: CacheKeys, Ctx: 256, Chunks: 2,
		Text: ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation},
	}
	rows, base, err := CacheTypes(context.Background(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("perplexity of the published model with F16 caches: %.4f", base.PPL)
	if len(rows) != 8 {
		t.Fatalf("%d rows for 4 types and 2 models", len(rows))
	}
	before := 0.0
	for _, r := range rows {
		t.Log(r)
		if r.Refused != "" {
			t.Errorf("%s is refused: %s", r.K, r.Refused)
			continue
		}
		// Each type has about half the bits of the one before it.
		if !(r.KLD > before) && r.K != gguf.TypeF16 {
			t.Errorf("%s: KLD %.2e is not above the %.2e of the type before", r.K, r.KLD, before)
		}
		before = r.KLD
		// Both programs round in other places in the last bit, so their errors are
		// independent to that extent: three standard errors of both together, and a
		// floor for what is only rounding.
		both := math.Hypot(r.KLDErr, r.Emulated.KLDErr)
		if d := math.Abs(r.KLD - r.Emulated.KLD); !(d <= 3*both+1e-6) {
			t.Errorf("%s, converted %v: KLD %.3e in llama.cpp and %.3e in our emulation, %.1f standard errors apart", r.K,
				r.Converted, r.KLD, r.Emulated.KLD, d/both)
		}
	}
	if d := rows[0].KLD; d != 0 {
		t.Errorf("the published model with F16 keys diverges from itself by %g", d)
	}
}

// TestRefused: llama.cpp has no 1-bit keys where head_dim is not a multiple of 128,
// and says so instead of ending the process.
func TestRefused(t *testing.T) {
	l := library(t)
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Seed: 1, HeadDim: 64})
	m, err := l.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, k := range CacheKeys {
		c, err := m.Context(Options{Ctx: 64, K: k, V: gguf.TypeF16, Flash: true, Threads: 2})
		if err == nil {
			// The log says which cache was made: the field is where we think it is.
			if want := "K (" + strings.ToLower(k.String()) + ")"; !strings.Contains(c.Log, want) {
				t.Errorf("asked for %s, the log has no %q:\n%s", k, want, c.Log)
			}
			c.Close()
		}
		if refused := k == gguf.TypeQ1_0; refused != (err != nil) {
			t.Errorf("%s with head_dim 64: %v", k, err)
		} else if refused && !strings.Contains(err.Error(), "does not divide n_embd_head_k=64") {
			t.Errorf("%s is refused without llama.cpp's reason: %v", k, err)
		}
	}
	if _, err := m.Context(Options{Ctx: 64, K: gguf.TypeQ8_0, V: gguf.TypeF16}); err == nil {
		t.Error("a quantised cache without flash attention is not refused")
	}
	if _, err := l.Load(filepath.Join(t.TempDir(), "none.gguf")); err == nil {
		t.Error("a missing file loads")
	}
	broken := filepath.Join(t.TempDir(), "broken.gguf")
	if err := os.WriteFile(broken, []byte("GGUF\x03\x00\x00\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Load(broken); err == nil {
		t.Error("a truncated file loads")
	}
	c, err := m.Context(Options{Ctx: 4, K: gguf.TypeF16, V: gguf.TypeF16, Flash: true, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tokens := range [][]int32{nil, {1, 2, 3, 4, 5}, {-1}, {int32(m.Vocab)}} {
		if err := c.Window(tokens, 0, func(int, []float32) error { return nil }); err == nil {
			t.Errorf("tokens %v are not refused", tokens)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), Env) {
		t.Errorf("a folder without libraries: %v", err)
	}
}
