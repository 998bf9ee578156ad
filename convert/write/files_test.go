package write

import (
	"encoding/json"
	"testing"

	"github.com/phaseconv/phaseconv/convert/plan"
)

// TestAnnounceBiases: attention_bias is set and every other key stays.
func TestAnnounceBiases(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"a": 1}`: true,
		`{"b": {"attention_bias": false}, "attention_bias" : false, "a": 1}`: false, // which of the two is not told apart
		`{"attention_bias" :  null, "a": 1}`:                                 true,
		`{"attention_bias": 0}`:                                              false,
		`[]`:                                                                 false,
	} {
		out, err := setSwitch([]byte(in), "attention_bias", true)
		if (err == nil) != ok {
			t.Errorf("%s: %s, %v", in, out, err)
			continue
		}
		var m struct {
			A    int  `json:"a"`
			Bias bool `json:"attention_bias"`
		}
		if ok && (json.Unmarshal(out, &m) != nil || m.A != 1 || !m.Bias) {
			t.Errorf("%s became %s", in, out)
		}
	}
}

// TestExtendIndex: the size grows by the added tensors, and nothing else is lost.
func TestExtendIndex(t *testing.T) {
	raw := []byte(`{"metadata":{"total_size":100,"x":"y"},"weight_map":{"a":"s1"},"other":[1]}`)
	p := &plan.Plan{Tensors: []plan.TensorPlan{{Name: "b", Shape: []int{5}, To: "BF16"},
		{Name: "a", Shape: []int{9}, To: "F32"}}}
	out, err := extendIndex(raw, map[string]string{"b": "s2"}, p)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Metadata struct {
			TotalSize int `json:"total_size"`
			X         string
		}
		WeightMap map[string]string `json:"weight_map"`
		Other     []int
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Metadata.TotalSize != 110 || got.Metadata.X != "y" || len(got.WeightMap) != 2 || got.WeightMap["b"] != "s2" ||
		len(got.Other) != 1 {
		t.Errorf("%s", out)
	}
	if same, err := extendIndex(raw, nil, p); err != nil || string(same) != string(raw) {
		t.Errorf("nothing added: %s, %v", same, err)
	}
}
