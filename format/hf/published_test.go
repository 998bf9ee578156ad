package hf

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
)

// published says what must be read of each configuration of testdata/published.json, or what a refusal
// must name. They are as they lie on the hub, without what says nothing of the graph: tokens, versions,
// the numbers of what stands beside a language model.
var published = map[string]string{
	"ByteDance-Seed/Seed-OSS-36B-Base": "seed_oss, 64 layers: 64 with 80/8 heads of 128, bias",
	"HuggingFaceTB/SmolLM3-3B": "smollm3, 36 layers: 27 with 16/4 heads of 128; " +
		"9 with 16/4 heads of 128, 0 turned",
	"LGAI-EXAONE/EXAONE-4.0-32B": "exaone4, 64 layers: 48 with 40/8 heads of 128, window 4096; " +
		"16 with 40/8 heads of 128, 0 turned",
	"Qwen/Qwen3-0.6B":               "qwen3, 28 layers: 28 with 16/8 heads of 128",
	"Qwen/Qwen3-30B-A3B":            "qwen3_moe, 48 layers: 48 with 32/4 heads of 128, 8 of 128 experts",
	"allenai/Olmo-3.1-32B-Instruct": "olmo3, 64 layers: 48 with 40/8 heads of 128, window 4096; 16 with 40/8 heads of 128",
	"baidu/ERNIE-4.5-0.3B-PT":       "ernie4_5, 18 layers: 18 with 16/2 heads of 128",
	"google/gemma-4-26B-A4B": "gemma4_text, 30 layers: 25 with 16/8 heads of 256, window 1024, 8 of 128 experts; " +
		"5 with 16/2 heads of 512, 8 of 128 experts",
	"google/gemma-4-31B-it": "gemma4_text, 60 layers: 50 with 32/16 heads of 256, window 1024; 10 with 32/4 heads of 512",
	"google/gemma-4-E2B-it": "gemma4_text, 35 layers: 12 with 8/1 heads of 256, window 512; 3 with 8/1 heads of 512; " +
		"16 with 8/1 heads of 256, window 512, keys of 13; 4 with 8/1 heads of 512, keys of 14",
	"google/gemma-4-E4B-it": "gemma4_text, 42 layers: 20 with 8/2 heads of 256, window 512; 4 with 8/2 heads of 512; " +
		"15 with 8/2 heads of 256, window 512, keys of 22; 3 with 8/2 heads of 512, keys of 23",
	"ibm-granite/granite-3.1-2b-base": "granite, 40 layers: 40 with 32/8 heads of 64",
	"meta-llama/Meta-Llama-3.1-8B":    "llama, 32 layers: 32 with 32/8 heads of 128",
	"microsoft/Phi-4-mini-instruct":   "phi3, 32 layers: 32 with 24/8 heads of 128, 96 turned, window 262144",
	"microsoft/phi-4":                 "phi3, 40 layers: 40 with 40/10 heads of 128",
	"mistralai/Devstral-2-123B":       "ministral3, 88 layers: 88 with 96/8 heads of 128",
	"mistralai/Devstral-Small-2-24B":  "ministral3, 40 layers: 40 with 32/8 heads of 128",
	"mistralai/Mixtral-8x7B-v0.1":     "mixtral, 32 layers: 32 with 32/8 heads of 128, 2 of 8 experts",
	"openai/gpt-oss-120b": "gpt_oss, 36 layers: 18 with 64/8 heads of 64, window 128, bias, 4 of 128 experts; " +
		"18 with 64/8 heads of 64, bias, 4 of 128 experts",
	"openai/gpt-oss-20b": "gpt_oss, 24 layers: 12 with 64/8 heads of 64, window 128, bias, 4 of 32 experts; " +
		"12 with 64/8 heads of 64, bias, 4 of 32 experts",
	"tencent/Hunyuan-7B-Instruct": "hunyuan_v1_dense, 32 layers: 32 with 32/8 heads of 128",
	"tiiuae/Falcon3-7B-Instruct":  "llama, 28 layers: 28 with 12/4 heads of 256",
	"zai-org/GLM-4-9B-0414":       "glm4, 40 layers: 40 with 32/2 heads of 128, 64 turned, bias",
	"zai-org/GLM-4.5-Air": "glm4_moe, 46 layers: 1 with 96/8 heads of 128, 64 turned, bias; " +
		"45 with 96/8 heads of 128, 64 turned, bias, 8 of 128 experts",

	"MiniMaxAI/MiniMax-M2.5":                     `model_type "minimax_m2" is not supported`,
	"Qwen/Qwen3-32B-FP8":                         "quantization_config (already quantised weights) is set",
	"Qwen/Qwen3-VL-2B-Instruct":                  `text_config of model_type "qwen3_vl_text" is not supported`,
	"Qwen/Qwen3.5-27B":                           `text_config of model_type "qwen3_5_text" is not supported`,
	"XiaomiMiMo/MiMo-7B-Base":                    `model_type "mimo" is not supported`,
	"deepseek-ai/DeepSeek-V3":                    `model_type "deepseek_v3" is not supported`,
	"meta-llama/Llama-4-Scout-17B-16E-Instruct":  `text_config of model_type "llama4_text" is not supported`,
	"moonshotai/Kimi-K2-Instruct":                `model_type "kimi_k2" is not supported`,
	"nvidia/Gemma-4-26B-A4B-NVFP4":               "quantization_config (already quantised weights) is set",
	"nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": `model_type "nemotron_h" is not supported`,
}

// TestPublishedConfigs: what published checkpoints say is read as they mean it, or refused by name.
func TestPublishedConfigs(t *testing.T) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(read(t, "testdata/published.json"), &all); err != nil {
		t.Fatal(err)
	}
	for name := range published {
		if all[name] == nil {
			t.Errorf("%s has no configuration", name)
		}
	}
	for name, raw := range all {
		want, ok := published[name]
		c, err := ParseConfig(raw)
		switch {
		case err == nil && summary(c) != want:
			t.Errorf("%s: %q, want %q", name, summary(c), want)
		case err != nil && (!ok || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// summary says in one line which kinds of layers a configuration describes, in the order of their first.
func summary(c *family.Config) string {
	var kinds []string
	count := map[string]int{}
	for l := range c.Layers {
		y := &c.Layers[l]
		s := fmt.Sprintf("%d/%d heads of %d", y.Heads, y.KVHeads, y.HeadDim)
		add := func(on bool, format string, args ...any) {
			if on {
				s += ", " + fmt.Sprintf(format, args...)
			}
		}
		add(y.Rope.Dim != y.HeadDim, "%d turned", y.Rope.Dim)
		add(y.Window > 0, "window %d", y.Window)
		add(y.Biases.K, "bias")
		add(y.Owner != l, "keys of %d", y.Owner)
		add(y.FFN.Experts > 0, "%d of %d experts", y.FFN.Used, y.FFN.Experts)
		if !slices.Contains(kinds, s) {
			kinds = append(kinds, s)
		}
		count[s]++
	}
	for i, s := range kinds {
		kinds[i] = fmt.Sprintf("%d with %s", count[s], s)
	}
	return fmt.Sprintf("%s, %d layers: %s", c.Family.Name, len(c.Layers), strings.Join(kinds, "; "))
}
