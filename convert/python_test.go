package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// TestOtherReaders lets gguf-py and the safetensors package read what Convert
// wrote, in both containers, and compare it with the source: names, shards,
// element types and shapes as they were, only the balanced tensors changed, and
// the same numbers in both containers.
func TestOtherReaders(t *testing.T) {
	python := os.Getenv("PHASECONV_PYTHON")
	if python == "" {
		t.Skip("set PHASECONV_PYTHON to a Python with gguf, safetensors and numpy to let them read our files")
	}
	sources := map[string]string{"austen-moe": "../testdata/austen-moe"}
	for _, family := range []string{"llama", "qwen2"} {
		sources[family] = filepath.Join(t.TempDir(), family)
		m := tiny.New(t, family, tiny.Options{DType: "BF16", Shards: 2})
		m.HF(t, sources[family])
	}
	for name, src := range sources {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			_, err := Convert(context.Background(), Options{
				Source: src, Out: out, Formats: []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors}, OutType: "f32",
				Code: "srht", Bits: 1, Balance: true, Policy: kvcache.Policy{Sink: 2},
				Calibration:       ppl.Text{Name: "a", Data: texts.Calibration[:20000]},
				CalibrationTokens: 256, Evaluation: ppl.Text{Name: "b", Data: texts.Evaluation[:20000]},
				Ctx: 64, Chunks: 1, Seed: 1, Tool: "test",
			})
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd := exec.Command(python, "testdata/read_artifact.py", src, out)
			cmd.Stderr = &stderr
			raw, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			var got struct {
				Changed []string
				Worst   float64
			}
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Changed) == 0 {
				t.Error("the balance changed nothing")
			}
			for _, n := range got.Changed {
				if !strings.Contains(n, "self_attn.q_proj") && !strings.Contains(n, "self_attn.k_proj") {
					t.Errorf("%s changed; the balance is for queries and keys", n)
				}
			}
			// The GGUF file holds the folded numbers in float32, the folder the same
			// numbers rounded to BF16 or F16: half a unit in the last of 8 bits.
			if got.Worst > 1.0/256 {
				t.Errorf("attention weights differ by %g of the largest between the containers", got.Worst)
			}
		})
	}
}
