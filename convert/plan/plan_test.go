package plan

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
)

type keys = map[string]any

// variant is a tiny model with keys of config.json changed; nil removes one.
func variant(t *testing.T, model string, changes keys) *checkpoint.Checkpoint {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join("../../verify/refmodel/testdata", model, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of %s (%v)", model, err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(f) == "config.json" {
			m := keys{}
			if err := json.Unmarshal(raw, &m); err != nil {
				t.Fatal(err)
			}
			maps.Copy(m, changes)
			maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
			if raw, err = json.Marshal(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), raw, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What stock GGUF readers cannot compute is refused by name; the same model as
// safetensors is fine.
func TestPlanRefusals(t *testing.T) {
	llama3 := keys{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
		"original_max_position_embeddings": 64}
	for _, c := range []struct {
		model   string
		changes keys
		want    string
	}{
		{"gemma3", keys{"query_pre_attn_scalar": 32}, "query_pre_attn_scalar"},
		{"gemma3-62", keys{"query_pre_attn_scalar": 4}, "query_pre_attn_scalar"}, // head_dim is not what counts there
		{"gemma3", keys{"rope_theta": nil, "rope_local_base_freq": nil, "rope_parameters": keys{
			"full_attention": keys{"rope_type": "default"}, "sliding_attention": keys{"rope_type": "linear", "factor": 2.0}}},
			"sliding-window layers"},
		{"gemma3", keys{"rope_scaling": llama3}, "RoPE scaling llama3"},
		{"qwen2", keys{"rope_scaling": llama3}, "RoPE scaling llama3"},
		{"llama", keys{"rope_scaling": keys{"type": "yarn", "factor": 2.0, "beta_slow": 2.0}}, "beta_slow 2"},
		{"qwen2-headdim", nil, "head_dim 16"},
		{"olmoe-gqa", keys{"norm_topk_prob": false}, "num_key_value_heads 2"},
		{"olmoe", keys{"norm_topk_prob": true}, "norm_topk_prob is true"},
		{"qwen3moe", keys{"norm_topk_prob": false}, "norm_topk_prob is false"},
	} {
		m := variant(t, c.model, c.changes)
		p, err := proposed(m, checkpoint.GGUF, "f16", true)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), m.Path) {
			t.Errorf("%s with %v: plan %v, error %v; it should name the folder and %q", c.model, c.changes, p != nil, err,
				c.want)
		}
		if _, err := proposed(m, checkpoint.Safetensors, "f16", true); err != nil {
			t.Errorf("%s with %v as safetensors: %v", c.model, c.changes, err)
		}
	}
	if _, err := proposed(variant(t, "llama", nil), checkpoint.GGUF, "q4_7", true); err == nil ||
		!strings.Contains(err.Error(), "q4_7") {
		t.Errorf("an unknown outtype: %v", err)
	}
}

// What can be expressed is not refused.
func TestPlanAccepts(t *testing.T) {
	for _, c := range []struct {
		model   string
		changes keys
		warning string
	}{
		{"gemma3", keys{"rope_scaling": keys{"rope_type": "yarn", "factor": 4.0}}, ""},
		{"gemma3", keys{"sliding_window_pattern": 1}, ""},
		{"qwen3", keys{"rope_scaling": keys{"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}}, ""},
		{"mistral", keys{"sliding_window": 127}, "beyond 127 tokens"},
		{"mistral", keys{"sliding_window": 128}, ""}, // as long as the context: never felt
		{"qwen2", keys{"use_sliding_window": true, "max_window_layers": 1}, "beyond 16 tokens"},
		{"qwen2", keys{"use_sliding_window": true, "max_window_layers": 2}, ""}, // there is no layer 2
	} {
		p, err := proposed(variant(t, c.model, c.changes), checkpoint.GGUF, "f16", true)
		if err != nil {
			t.Errorf("%s with %v: %v", c.model, c.changes, err)
			continue
		}
		if (c.warning == "") != (len(p.Warnings) == 0) || !strings.Contains(strings.Join(p.Warnings, ""), c.warning) {
			t.Errorf("%s with %v: warnings %q, expected one with %q", c.model, c.changes, p.Warnings, c.warning)
		}
	}
}

// Tensors that no graph needs are left out of a GGUF file.
func TestPlanUnknownTensors(t *testing.T) {
	for model, name := range map[string]string{"llama": "model.layers.0.self_attn.rotary_emb.inv_freq",
		"mistral": "vision_tower.weight", "qwen2": "lm_head.weight"} {
		m := variant(t, model, nil)
		m.Unknown = append(m.Unknown, name)
		p, err := proposed(m, checkpoint.GGUF, "f16", false)
		if err != nil {
			t.Errorf("tensor %s: %v", name, err)
			continue
		}
		if x := p.Tensors[len(p.Tensors)-1]; x.Name != name || x.Action != Drop {
			t.Errorf("tensor %s: planned as %+v", name, x)
		}
	}
}

// Element types follow stock converters (stock_gguf.py compares bytes), and the
// plan lists every tensor once.
func TestPlanTypes(t *testing.T) {
	for _, c := range []struct {
		model, outtype, tensor, want string
		action                       Action
		reorder                      bool
	}{
		{"llama", "f32", "blk.0.attn_q.weight", "F32", Recode, true},
		{"llama", "f16", "blk.0.attn_k.weight", "F16", Recode, true},
		{"llama", "bf16", "blk.0.attn_v.weight", "BF16", Copy, false},
		{"llama", "bf16", "blk.0.attn_q.weight", "BF16", Recode, true},
		{"llama", "bf16", "blk.0.attn_norm.weight", "F32", Recode, false},
		{"llama", "q8_0", "blk.0.ffn_up.weight", "F16", Recode, false}, // rows of 48
		{"llama", "q8_0", "blk.0.ffn_down.weight", "Q8_0", Recode, false},
		{"llama-bias", "f16", "blk.0.attn_k.bias", "F32", Recode, true},
		{"llama-bias", "f16", "blk.0.attn_v.bias", "F32", Recode, false},
		{"llama-llama3", "f16", "rope_freqs.weight", "F32", Recode, false},
		{"llama-hd80", "f32", "output.weight", "F32", Copy, false},
		{"qwen2", "q8_0", "token_embd.weight", "Q8_0", Recode, false},
		{"qwen2", "f16", "blk.1.attn_q.weight", "F16", Recode, false},
		{"olmoe-tied", "f16", "output.weight", "F16", Recode, false},
		{"olmoe", "f16", "blk.0.ffn_gate_inp.weight", "F32", Recode, false},
		{"mixtral", "bf16", "blk.0.ffn_down_exps.weight", "BF16", Copy, false},
		{"gemma3", "bf16", "blk.0.post_ffw_norm.weight", "F32", Recode, false},
	} {
		p, err := proposed(variant(t, c.model, nil), checkpoint.GGUF, c.outtype, false)
		if err != nil {
			t.Error(err)
			continue
		}
		seen := map[string]int{}
		for i, x := range p.Tensors {
			if seen[x.Name]++; seen[x.Name] > 1 {
				t.Errorf("%s: %s is planned twice", c.model, x.Name)
			}
			if x.Name == c.tensor && (x.To != c.want || x.Action != c.action || x.Reorder != c.reorder) {
				t.Errorf("%s as %s: %+v, expected %s, %s, reordered %v", c.model, c.outtype, p.Tensors[i], c.want, c.action,
					c.reorder)
			}
		}
		if seen[c.tensor] == 0 {
			t.Errorf("%s: no %s in the plan", c.model, c.tensor)
		}
	}
}

// Balance touches the query and key tensors of every layer, or their norms.
func TestPlanBalance(t *testing.T) {
	for model, want := range map[string][]string{
		"llama":   {"attn_q.weight", "attn_k.weight"},
		"qwen2":   {"attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"},
		"qwen3":   {"attn_q_norm.weight", "attn_k_norm.weight"},
		"olmoe":   {"attn_q_norm.weight", "attn_k_norm.weight"},
		"mixtral": {"attn_q.weight", "attn_k.weight"},
	} {
		m := variant(t, model, nil)
		p, err := proposed(m, checkpoint.GGUF, "f16", true)
		if err != nil {
			t.Error(err)
			continue
		}
		folded := 0
		for _, x := range p.Tensors {
			is := false
			for _, w := range want {
				is = is || strings.HasSuffix(x.Name, "."+w)
			}
			if is != (x.Action == Fold) {
				t.Errorf("%s: %s is planned as %s", model, x.Name, x.Action)
			}
			if is {
				folded++
			}
		}
		if n := len(m.Config.Layers) * len(want); folded != n || !p.Identities[0].Applied || p.Identities[0].Tensors != n {
			t.Errorf("%s: %d tensors folded, %+v, expected %d", model, folded, p.Identities[0], n)
		}
	}
}

// proposed plans a container with what would be proposed, before anything is measured.
func proposed(c *checkpoint.Checkpoint, to checkpoint.Container, outtype string, pairScale bool) (*Plan, error) {
	return Make(c, to, outtype, Propose(c, Options{PairScale: pairScale, WeightEdits: EditsExact}))
}

// TestPlanOtherLayers: what the GGUF writer has one number for must be so in all
// layers, and what it has no key for must not be there.
func TestPlanOtherLayers(t *testing.T) {
	for says, change := range map[string]func(y *family.Layer){
		"a gate on the output of attention, which the GGUF writer does not support": func(y *family.Layer) { y.Gate = family.GateHead },
		"layer 1 has 8 and 2 of 12": func(y *family.Layer) { y.Heads = 8 },
		"an FFN of another size":    func(y *family.Layer) { y.FFN.Size = 96 },
	} {
		c := variant(t, "llama", nil)
		change(&c.Config.Layers[1])
		if _, err := Make(c, checkpoint.GGUF, "f32", NoChanges(c)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}
