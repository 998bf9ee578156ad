package backends

import (
	"fmt"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// Launch describes what is to be run.
type Launch struct {
	Model string // path of the GGUF file; "" where none is known, which gets a placeholder and a note
	Ctx   int    // context in tokens
	K, V  gguf.Type
	// Rotation: llama.cpp's attention rotation is on, its default.
	Rotation bool
	// MLX: the runtime is mlx-lm, and Model the folder of a checkpoint.
	MLX bool
}

// What other programs take, by their own words.
var (
	// Ollama 0.17.4, fs/ggml: OLLAMA_KV_CACHE_TYPE, one for K and V and for all models. Its copy
	// of llama.cpp has no attention rotation yet.
	ollamaTypes = []gguf.Type{gguf.TypeF16, gguf.TypeQ8_0, gguf.TypeQ4_0}
	// lmstudio-js, LLMLlamaCacheQuantizationType.
	studioTypes = append([]gguf.Type{gguf.TypeF32, gguf.TypeF16, gguf.TypeIQ4_NL}, blocks...)
)

// Lines returns what users of llama.cpp, Ollama and LM Studio paste or set to run with a pair
// of cache types. A program that cannot has a Note instead of a text.
func (l Launch) Lines() []spec.AdviseLine {
	k, v := kvcache.TypeName(l.K), kvcache.TypeName(l.V)
	if l.MLX {
		return l.mlxLines()
	}
	var out []spec.AdviseLine
	stands := ""
	if l.Model == "" {
		l.Model, stands = "MODEL.gguf", "MODEL.gguf stands for a GGUF file of this model, such as convert writes"
	}
	for _, program := range []string{"llama-server", "llama-cli"} {
		flags := kvcache.Flags(l.K, l.V)
		if flags == "" {
			out = append(out, spec.AdviseLine{
				For: program, Note: "has no option for this pair; llama.cpp's library takes it",
			})
			continue
		}
		if program == "llama-server" {
			flags = "--parallel 1 " + flags
		}
		env := ""
		if !l.Rotation {
			env = "LLAMA_ATTN_ROT_DISABLE=1 "
		}
		out = append(out, spec.AdviseLine{
			For: program, Text: fmt.Sprintf("%s%s -m %s -c %d %s", env, program, Quote(l.Model), l.Ctx, flags), Note: stands,
		})
		stands = "" // once is enough
	}
	if l.K != l.V || !slices.Contains(ollamaTypes, l.K) {
		out = append(out, spec.AdviseLine{
			For: "Ollama", Note: "has one type for K and V (f16, q8_0 or q4_0), not this pair",
		})
	} else {
		note := "for all models of that server"
		if l.K.Quantized() && l.Rotation {
			note += "; Ollama 0.17.4 has no attention rotation: measure with --cache-rotation off what it does"
		}
		out = append(out,
			spec.AdviseLine{
				For: "Ollama, environment", Note: note,
				Text: "OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE=" + k + " ollama serve",
			},
			spec.AdviseLine{
				For: "Ollama, Modelfile", Text: fmt.Sprintf("FROM %s\nPARAMETER num_ctx %d", l.Model, l.Ctx),
			})
	}
	if !slices.Contains(studioTypes, l.K) || !slices.Contains(studioTypes, l.V) {
		out = append(out, spec.AdviseLine{For: "LM Studio", Note: "does not offer this pair"})
	} else {
		out = append(out, spec.AdviseLine{For: "LM Studio, load settings", Text: fmt.Sprintf(
			"Context Length: %d\nFlash Attention: on\nK Cache Quantization Type: %s\nV Cache Quantization Type: %s",
			l.Ctx, k, v)})
	}
	return out
}

// mlxLines is Lines for mlx-lm, which quantises the cache from the first token on only if it is told.
func (l Launch) mlxLines() []spec.AdviseLine {
	flags := ""
	switch l.K {
	case gguf.TypeMLX4:
		flags = " --kv-bits 4 --kv-group-size 64 --quantized-kv-start 0"
	case gguf.TypeMLX8:
		flags = " --kv-bits 8 --kv-group-size 64 --quantized-kv-start 0"
	}
	return []spec.AdviseLine{
		{For: "mlx-lm", Text: "mlx_lm.generate --model " + Quote(l.Model) + flags + " --prompt PROMPT"},
		{For: "LM Studio, MLX engine", Note: "set the KV cache quantisation of its load settings to the same bits and group size"},
	}
}

// Quote makes a word that a POSIX shell takes as it is.
func Quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("_-./:@%+=,", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
