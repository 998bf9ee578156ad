// Package backends knows which pairs of KV cache types the backends of llama.cpp compute
// attention with, and how runtimes built on it are told to use a pair.
//
// The facts stand in one table and were read from Source. A test compares the table with the
// source text, where a tree of it is at hand.
package backends

import (
	"fmt"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// Source is what the facts were read from: the copy in llama-cpp-python 0.3.36.
const Source = "llama.cpp 0c1e57098 (ggml 0.25.3, October 2026)"

// A Backend is one of llama.cpp's, in its default build, or Any.
type Backend string

// The backends. Any stands for all of the others: what runs there runs everywhere.
const (
	Any    Backend = "any"
	CPU    Backend = "cpu"
	CUDA   Backend = "cuda"
	Metal  Backend = "metal"
	Vulkan Backend = "vulkan"
	ROCm   Backend = "rocm"
)

// MLX is another runtime, mlx-lm, with cache types of its own (kvcache.MLXTypes).
const MLX Backend = "mlx"

// MLXSource is what is known of it was read from.
const MLXSource = "mlx-lm 0.32.2 (--kv-bits, --kv-group-size 64, --quantized-kv-start 0)"

// All lists the backends, Any last.
func All() []Backend { return []Backend{CPU, CUDA, Metal, Vulkan, ROCm, Any} }

// Parse reads a backend's name.
func Parse(name string) (Backend, error) {
	var names []string
	for _, b := range All() {
		if string(b) == name {
			return b, nil
		}
		names = append(names, string(b))
	}
	return "", fmt.Errorf("%q is not a backend; there are %s", name, strings.Join(names, ", "))
}

// title is how users write a backend's name.
var title = map[Backend]string{CPU: "the CPU", CUDA: "CUDA", Metal: "Metal", Vulkan: "Vulkan", ROCm: "ROCm"}

// Runs says what becomes of a pair of types on a backend.
type Runs string

// The answers, best first.
const (
	Yes  Runs = "yes"
	Slow Runs = "slow" // it runs, but by a detour
	No   Runs = "no"   // it is refused, or attention leaves the device for the CPU
)

// rank orders answers, the best first.
func (r Runs) rank() int { return slices.Index([]Runs{Yes, Slow, No}, r) }

// facts of a backend's flash attention, in the default build.
type facts struct {
	types []gguf.Type // that it reads
	// heads are the lengths of heads that it knows; nil: all, or all multiples of headStep.
	heads    []int
	headStep int
	// equal: only K and V of one type.
	equal bool
	// bf16Alone: BF16 beside another type is refused.
	bf16Alone bool
	// own are the types that it reads as they are while tokens are generated, K and V alike, with
	// heads of ownHeads; others are converted to F16 for every token. nil: all.
	own      []gguf.Type
	ownHeads []int
	// some are types that not every device of the backend has, with the reason.
	some map[gguf.Type]string
}

var (
	blocks = []gguf.Type{gguf.TypeQ8_0, gguf.TypeQ5_1, gguf.TypeQ5_0, gguf.TypeQ4_1, gguf.TypeQ4_0}
	floats = []gguf.Type{gguf.TypeF32, gguf.TypeF16, gguf.TypeBF16}

	// CUDA and ROCm are built from the same files, which fattn.cu dispatches; the pairs with
	// kernels of their own are those of GGML_CUDA_FA_QUANTS in ggml/CMakeLists.txt.
	cuda = facts{
		types: slices.Concat(floats, blocks), heads: []int{40, 64, 72, 80, 96, 112, 128, 256, 512},
		own: []gguf.Type{gguf.TypeF16, gguf.TypeBF16, gguf.TypeQ8_0, gguf.TypeQ4_0}, ownHeads: []int{64, 128, 256},
	}

	table = map[Backend]facts{
		// ggml-cpu computes with any type that it can write and multiply.
		CPU:  {types: slices.Concat(floats, blocks, []gguf.Type{gguf.TypeIQ4_NL, gguf.TypeQ1_0})},
		CUDA: cuda,
		ROCm: cuda,
		// ggml-metal-device.m, GGML_OP_FLASH_ATTN_EXT.
		Metal: {
			types: slices.Concat(floats, blocks), equal: true,
			heads: []int{32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576},
			some:  map[gguf.Type]string{gguf.TypeBF16: "bfloat, which older devices lack"},
		},
		// ggml-vulkan.cpp, GGML_OP_FLASH_ATTN_EXT.
		Vulkan: {types: slices.Concat(floats, blocks, []gguf.Type{gguf.TypeIQ4_NL}), headStep: 8, bf16Alone: true},
	}
)

// A Setup is where a model is to run.
type Setup struct {
	Backend Backend
	// TensorSplit: llama.cpp's --split-mode tensor, several devices that share each layer.
	TensorSplit bool
}

// Judge says whether K and V caches of these types run with a model, and why not.
func (s Setup) Judge(cfg *family.Config, k, v gguf.Type) (Runs, string) {
	if why := refused(cfg, k, v, s.TensorSplit); why != "" {
		return No, why
	}
	if s.Backend == MLX {
		return judgeMLX(cfg, k, v)
	}
	if k.CacheOnly() || v.CacheOnly() {
		return No, "it is a cache type of MLX (--runtime mlx)"
	}
	if s.Backend != Any {
		return judge(s.Backend, cfg, k, v)
	}
	worst, reason := Yes, ""
	for _, b := range []Backend{CPU, CUDA, ROCm, Metal, Vulkan} {
		if r, why := judge(b, cfg, k, v); r.rank() > worst.rank() {
			worst, reason = r, why
		}
	}
	return worst, reason
}

// refused is why llama.cpp makes no such cache on any backend (src/llama-context.cpp), "" if
// it does.
func refused(cfg *family.Config, k, v gguf.Type, tensorSplit bool) string {
	if tensorSplit && (k.Quantized() || v.Quantized()) {
		return "--split-mode tensor takes no quantised cache"
	}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		if y.Kind == family.Latent && k != v {
			return "latent attention (MLA) needs one type for K and V"
		}
		for _, x := range []struct {
			side string
			t    gguf.Type
			n    int
		}{{"K", k, y.HeadDim}, {"V", v, y.ValueDim}} {
			if block, _ := x.t.Block(); block == 0 || x.n%block != 0 {
				return fmt.Sprintf("blocks of %d (%s) do not divide head_dim %d of %s",
					block, kvcache.TypeName(x.t), x.n, x.side)
			}
		}
	}
	return ""
}

// judgeMLX is Judge for mlx-lm: its cache quantises K and V alike, or neither, and none that keeps
// the last tokens only.
func judgeMLX(cfg *family.Config, k, v gguf.Type) (Runs, string) {
	switch {
	case k == gguf.TypeF16 && v == gguf.TypeF16:
		return Yes, ""
	case k != v:
		return No, "MLX quantises K and V alike"
	case !k.CacheOnly():
		return No, "it is no cache type of MLX"
	}
	if window, _ := cfg.Window(); window > 0 {
		return No, "MLX cannot quantise the caches of sliding windows"
	}
	return Yes, ""
}

// judge is Judge for one backend and a pair that llama.cpp does not refuse.
func judge(b Backend, cfg *family.Config, k, v gguf.Type) (Runs, string) {
	f, name := table[b], title[b]
	if why := f.missing(cfg, k, v); why != "" {
		if v.Quantized() {
			return No, fmt.Sprintf("%s has no flash attention for %s, which a quantised V needs: the CPU would compute it",
				name, why)
		}
		if k == gguf.TypeF16 && v == gguf.TypeF16 {
			return Yes, "" // without flash attention, llama.cpp's own choice there
		}
		if k == gguf.TypeQ1_0 {
			return No, fmt.Sprintf("%s cannot write a cache of %s", name, kvcache.TypeName(k))
		}
		return Slow, fmt.Sprintf("%s has no flash attention for %s and runs without it", name, why)
	}
	if f.own == nil || k == gguf.TypeF16 && v == gguf.TypeF16 {
		return Yes, ""
	}
	if k != v || !slices.Contains(f.own, k) {
		return Slow, name + " is built without a kernel for this pair and converts K and V to F16 for every token" +
			" (GGML_CUDA_FA_QUANTS)"
	}
	for l := range cfg.Layers {
		if d := cfg.Layers[l].HeadDim; k.Quantized() && !slices.Contains(f.ownHeads, d) {
			return Slow, fmt.Sprintf("%s has no kernel for quantised heads of %d and converts K and V to F16 for every token",
				name, d)
		}
	}
	return Yes, ""
}

// missing is what the backend's flash attention lacks for the pair, "" for nothing.
func (f facts) missing(cfg *family.Config, k, v gguf.Type) string {
	for _, t := range []gguf.Type{k, v} {
		if !slices.Contains(f.types, t) {
			return kvcache.TypeName(t)
		}
		if why := f.some[t]; why != "" {
			return why
		}
	}
	if f.equal && k != v {
		return "K and V of different types"
	}
	if f.bf16Alone && k != v && (k == gguf.TypeBF16 || v == gguf.TypeBF16) {
		return "bf16 beside another type"
	}
	for l := range cfg.Layers {
		d := cfg.Layers[l].HeadDim
		if f.heads != nil && !slices.Contains(f.heads, d) || f.headStep > 0 && d%f.headStep != 0 {
			return fmt.Sprintf("heads of %d", d)
		}
	}
	return ""
}
