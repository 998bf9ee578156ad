package backends

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// model has two layers with heads of one length.
func model(headDim int, kind family.AttentionKind) *family.Config {
	heads := family.HeadShape{Heads: 4, KVHeads: 2, HeadDim: headDim, ValueDim: headDim}
	y := family.Layer{Attention: family.Attention{Kind: kind, HeadShape: heads}}
	return &family.Config{Layers: []family.Layer{y, y}}
}

func pair(t *testing.T, s string) (k, v gguf.Type) {
	t.Helper()
	a, b, _ := strings.Cut(s, "/")
	k, err := kvcache.ParseStockType(a)
	if err != nil {
		t.Fatal(err)
	}
	if v, err = kvcache.ParseStockType(b); err != nil {
		t.Fatal(err)
	}
	return k, v
}

func TestJudge(t *testing.T) {
	for _, x := range []struct {
		s       Setup
		headDim int
		pair    string
		want    Runs
		reason  string
	}{
		{Setup{Backend: CPU}, 64, "q5_1/iq4_nl", Yes, ""},
		{Setup{Backend: CPU}, 128, "q1_0/f16", Yes, ""},
		{Setup{Backend: CPU}, 80, "q8_0/f16", No, "blocks of 32 (q8_0) do not divide head_dim 80 of K"},
		{Setup{Backend: CPU}, 64, "f16/q1_0", No, "blocks of 128"},
		{Setup{Backend: CPU, TensorSplit: true}, 64, "f16/q8_0", No, "--split-mode tensor"},
		{Setup{Backend: CPU, TensorSplit: true}, 64, "f16/bf16", Yes, ""},

		{Setup{Backend: CUDA}, 64, "f16/f16", Yes, ""},
		{Setup{Backend: CUDA}, 64, "bf16/bf16", Yes, ""},
		{Setup{Backend: CUDA}, 128, "q8_0/q8_0", Yes, ""},
		{Setup{Backend: CUDA}, 128, "q4_0/q4_0", Yes, ""},
		{Setup{Backend: CUDA}, 128, "q8_0/q4_0", Slow, "for this pair and converts"},
		{Setup{Backend: CUDA}, 128, "q5_0/q5_0", Slow, "for this pair and converts"},
		{Setup{Backend: CUDA}, 128, "q8_0/f16", Slow, "for this pair and converts"},
		{Setup{Backend: CUDA}, 96, "q8_0/q8_0", Slow, "heads of 96"},
		{Setup{Backend: CUDA}, 96, "f16/f16", Yes, ""},
		{Setup{Backend: CUDA}, 32, "f16/f16", Yes, ""},
		{Setup{Backend: CUDA}, 32, "q8_0/q8_0", No, "heads of 32"},
		{Setup{Backend: CUDA}, 64, "iq4_nl/iq4_nl", No, "CUDA has no flash attention for iq4_nl"},
		{Setup{Backend: CUDA}, 64, "iq4_nl/f16", Slow, "runs without it"},
		{Setup{Backend: CUDA}, 128, "q1_0/f16", No, "cannot write"},
		{Setup{Backend: ROCm}, 128, "q5_1/q5_1", Slow, "ROCm is built without"},

		{Setup{Backend: Metal}, 64, "q5_1/q5_1", Yes, ""},
		{Setup{Backend: Metal}, 32, "q4_1/q4_1", Yes, ""},
		{Setup{Backend: Metal}, 64, "q8_0/q4_0", No, "K and V of different types"},
		{Setup{Backend: Metal}, 64, "q4_0/f16", Slow, "K and V of different types"},
		{Setup{Backend: Metal}, 64, "f16/q4_0", No, "K and V of different types"},
		{Setup{Backend: Metal}, 64, "iq4_nl/iq4_nl", No, "iq4_nl"},
		{Setup{Backend: Metal}, 64, "bf16/bf16", Slow, "bfloat"},

		{Setup{Backend: Vulkan}, 64, "q8_0/q4_0", Yes, ""},
		{Setup{Backend: Vulkan}, 64, "iq4_nl/q5_0", Yes, ""},
		{Setup{Backend: Vulkan}, 64, "bf16/q8_0", No, "bf16 beside another type"},

		{Setup{Backend: Any}, 64, "f16/f16", Yes, ""},
		{Setup{Backend: Any}, 64, "q8_0/q8_0", Yes, ""},
		{Setup{Backend: Any}, 256, "q4_0/q4_0", Yes, ""},
		{Setup{Backend: Any}, 64, "q5_1/q5_1", Slow, "CUDA"},
		{Setup{Backend: Any}, 64, "q8_0/q4_0", No, "Metal"},
		{Setup{Backend: Any, TensorSplit: true}, 64, "q8_0/q8_0", No, "--split-mode tensor"},
	} {
		k, v := pair(t, x.pair)
		got, why := x.s.Judge(model(x.headDim, family.Softmax), k, v)
		if got != x.want || !strings.Contains(why, x.reason) || (why == "") != (got == Yes) {
			t.Errorf("%+v, head_dim %d, %s: %s, %q; want %s, %q", x.s, x.headDim, x.pair, got, why, x.want, x.reason)
		}
	}
	k, v := pair(t, "q8_0/f16")
	got, why := (Setup{Backend: CPU}).Judge(model(64, family.Latent), k, v)
	if got != No || !strings.Contains(why, "MLA") {
		t.Errorf("MLA with two types: %s, %q", got, why)
	}
	for _, b := range All() {
		if got, err := Parse(string(b)); got != b || err != nil {
			t.Errorf("%s: %v, %v", b, got, err)
		}
	}
	if _, err := Parse("tpu"); err == nil || !strings.Contains(err.Error(), "cpu, cuda, metal, vulkan, rocm, any") {
		t.Errorf("tpu: %v", err)
	}
}

// TestSource compares the table with llama.cpp's source, whose root LLAMA_CPP_SOURCE names.
func TestSource(t *testing.T) {
	root := os.Getenv("LLAMA_CPP_SOURCE")
	if root == "" {
		t.Skip("LLAMA_CPP_SOURCE is not set, so the table was not compared with llama.cpp")
	}
	// after returns the part of a file between two strings.
	after := func(path, from, to string) string {
		raw, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		_, s, ok := strings.Cut(string(raw), from)
		s, _, end := strings.Cut(s, to)
		if !ok || !end {
			t.Fatalf("%s: no %q before %q", path, from, to)
		}
		return s
	}
	words := func(s, pattern string) []string {
		var out []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(s, -1) {
			out = append(out, strings.ToLower(m[1]))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	names := func(types []gguf.Type) []string {
		var out []string
		for _, x := range types {
			out = append(out, kvcache.TypeName(x))
		}
		slices.Sort(out)
		return out
	}
	equal := func(what string, got, want []string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: the source has %v, the table %v", what, got, want)
		}
	}
	const typeCase = `case GGML_TYPE_(\w+):`
	fattn := "ggml/src/ggml-cuda/fattn.cu"
	equal("CUDA types", words(after(fattn, "bool ggml_cuda_fattn_kv_type_supported(", "return true"), typeCase), names(cuda.types))
	var want []string
	for _, n := range names(cuda.own) {
		want = append(want, n+"-"+n)
	}
	equal("CUDA pairs", words(after("ggml/CMakeLists.txt", "GGML_CUDA_FA_QUANTS \"", "\""), `([^;]+)`), want)
	metal := after("ggml/src/ggml-metal/ggml-metal-device.m", "case GGML_OP_FLASH_ATTN_EXT:", "return has_simdgroup_mm;")
	equal("Metal types", words(metal, typeCase), names(table[Metal].types))
	if !strings.Contains(metal, "op->src[1]->type != op->src[2]->type") {
		t.Error("Metal no longer wants equal types of K and V")
	}
	want = nil
	for _, d := range table[Metal].heads {
		want = append(want, strconv.Itoa(d))
	}
	slices.Sort(want)
	equal("Metal heads", words(metal, `src\[0\]->ne\[0\] != (\d+)`), want)
	equal("Vulkan types", words(after("ggml/src/ggml-vulkan/ggml-vulkan.cpp", "auto fa_kv_ok", "return true"), typeCase), names(table[Vulkan].types))
	for path, rule := range map[string]string{
		"src/llama-kv-cache-iswa.cpp": "GGML_PAD(std::min(size_base, hparams.n_swa*(unified ? n_seq_max : 1) + n_ubatch), 256)",
		"src/llama-context.cpp":       "cparams.n_ctx = GGML_PAD(cparams.n_ctx, 256)",
		"common/common.h":             "n_ubatch              =   512",
		"docs/multi-gpu.md":           "Support for quantized KV cache is not implemented",
	} {
		raw, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), rule) {
			t.Errorf("%s no longer has %q", path, rule)
		}
	}
}

func TestLines(t *testing.T) {
	l := Launch{Model: "my models/it's.gguf", Ctx: 8192, K: gguf.TypeQ8_0, V: gguf.TypeQ8_0, Rotation: true}
	find := func(l Launch, program string) (text, note string) {
		t.Helper()
		for _, x := range l.Lines() {
			if x.For == program {
				return x.Text, x.Note
			}
		}
		t.Fatalf("no line for %s in %+v", program, l.Lines())
		return
	}
	for program, want := range map[string]string{
		"llama-server":             `llama-server -m 'my models/it'\''s.gguf' -c 8192 --parallel 1 --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on`,
		"llama-cli":                `llama-cli -m 'my models/it'\''s.gguf' -c 8192 --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on`,
		"Ollama, environment":      "OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE=q8_0 ollama serve",
		"Ollama, Modelfile":        "FROM my models/it's.gguf\nPARAMETER num_ctx 8192",
		"LM Studio, load settings": "Context Length: 8192\nFlash Attention: on\nK Cache Quantization Type: q8_0\nV Cache Quantization Type: q8_0",
	} {
		if got, _ := find(l, program); got != want {
			t.Errorf("%s: %q\nwant %q", program, got, want)
		}
	}
	if _, note := find(l, "Ollama, environment"); !strings.Contains(note, "no attention rotation") {
		t.Errorf("note %q", note)
	}
	l.Rotation = false
	if got, _ := find(l, "llama-cli"); !strings.HasPrefix(got, "LLAMA_ATTN_ROT_DISABLE=1 llama-cli") {
		t.Error(got)
	}
	if _, note := find(l, "Ollama, environment"); strings.Contains(note, "rotation") {
		t.Errorf("note %q", note)
	}
	l.V = gguf.TypeQ4_0
	if text, note := find(l, "Ollama"); text != "" || !strings.Contains(note, "one type for K and V") {
		t.Errorf("mixed pair in Ollama: %q, %q", text, note)
	}
	l.K, l.V = gguf.TypeQ1_0, gguf.TypeF16
	for _, program := range []string{"llama-server", "llama-cli", "Ollama", "LM Studio"} {
		if text, note := find(l, program); text != "" || note == "" {
			t.Errorf("q1_0 in %s: %q, %q", program, text, note)
		}
	}
	l.K = gguf.TypeBF16
	if text, note := find(l, "LM Studio"); text != "" || note == "" {
		t.Errorf("bf16 in LM Studio: %q, %q", text, note)
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a/b-1.gguf": "a/b-1.gguf", "": "''", "a b": "'a b'", "$(x)": "'$(x)'", "~/m": "'~/m'", "é": "'é'"} {
		if got := Quote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
