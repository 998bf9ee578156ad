package spec

import (
	"encoding/json"
	"reflect"
	"sort"
	"strings"
	"testing"
)

// stable lists the keys of `phaseconv verify --json` that programs may rely on.
// More keys may be added; none of these may go away or change its type.
var stable = map[string]string{
	"ok":                            "bool",
	"contract[].check":              "string",
	"contract[].ok":                 "bool",
	"contract[].detail":             "string",
	"ppl.float":                     "number",
	"ppl.onebit":                    "number",
	"ppl.ratio":                     "number",
	"ppl.tokens":                    "number",
	"ppl.ctx":                       "number",
	"ppl.chunks":                    "number",
	"ppl.sink":                      "number",
	"ppl.recent":                    "number",
	"kld.mean":                      "number",
	"kld.median":                    "number",
	"kld.p99":                       "number",
	"kld.max":                       "number",
	"kld.same_top":                  "number",
	"function.max_abs_dlogit":       "number",
	"function.kld_mean":             "number",
	"function.floor_max_abs_dlogit": "number",
	"function.floor_kld_mean":       "number",
	"layers[].layer":                "number",
	"layers[].head":                 "number",
	"layers[].code":                 "string",
	"layers[].bits":                 "number",
	"layers[].anchor":               "number",
	"layers[].train_cos1bit":        "number",
	"layers[].tokens":               "number",
	"layers[].tokens_per_dim":       "number",
	"bytes.k_f16":                   "number",
	"bytes.k_code":                  "number",
	"bytes.effective_bits.4096":     "number",
	"bytes.effective_bits.32768":    "number",
	"bytes.effective_bits.131072":   "number",
}

func init() {
	for _, unit := range []string{"cos1bit", "moment_ratio"} {
		for _, code := range []string{"raw", "cen", "srht", "random", "learned", "code"} {
			stable["layers[]."+unit+"."+code] = "number"
		}
	}
}

// paths lists the leaves of decoded JSON with their types.
func paths(v any, at string, out map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			paths(x, strings.TrimPrefix(at+"."+k, "."), out)
		}
	case []any:
		for _, x := range v {
			paths(x, at+"[]", out)
		}
	case bool:
		out[at] = "bool"
	case string:
		out[at] = "string"
	case float64:
		out[at] = "number"
	default:
		out[at] = "null"
	}
}

// sample is a report with every part present.
func sample() *VerifyJSON {
	x := 0.8
	c := Columns{&x, &x, &x, &x, &x, &x}
	return &VerifyJSON{
		Contract: []Check{{}}, PPL: &PPLJSON{}, KLD: &KLDJSON{}, Function: &FunctionJSON{},
		Layers: []Layer{{Cos1bit: c, MomentRatio: c, TrainCos1bit: &x}},
		Bytes:  &BytesJSON{EffectiveBits: map[string]float64{"4096": 1, "32768": 1, "131072": 1}},
	}
}

func TestVerifyKeys(t *testing.T) {
	b, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	paths(v, "", got)
	for k, typ := range stable {
		if got[k] != typ {
			t.Errorf("%s is %q, a %s is promised", k, got[k], typ)
		}
	}
}

// TestVerifyAbsent: what was not measured is null, not gone and not zero.
func TestVerifyAbsent(t *testing.T) {
	b, err := json.Marshal(&VerifyJSON{Layers: []Layer{{}}})
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"ok", "contract", "ppl", "kld", "function", "layers", "bytes"} {
		if _, ok := v[k]; !ok {
			t.Errorf("key %s is gone", k)
		}
	}
	got := map[string]string{}
	paths(any(v), "", got)
	for _, k := range []string{"ppl", "kld", "function", "bytes", "layers[].cos1bit.raw", "layers[].moment_ratio.code",
		"layers[].train_cos1bit"} {
		if got[k] != "null" {
			t.Errorf("%s is %q without a measurement", k, got[k])
		}
	}
}

// TestRoundTrip: the manifest and the reports read back as they were written, so
// no two fields share a key.
func TestRoundTrip(t *testing.T) {
	x := 0.5
	m := Manifest{Version: Version, Tool: "t", Command: []string{"a", "b"}, Source: Source{"n", "gguf", "s"},
		Model: Model{"llama", 1, 2, 3, 4, 5, 6, 7, 8}, Code: CodeInfo{"frame", 1, "uniform", 3, 64, 4, 2, "kv", 384},
		Calibration: Text{"x", "y", 1, 2, 3, "k"}, Seed: 9,
		Identities: []Identity{{"G3", "balance", true, true, 4, "why"}},
		Artifacts:  []Artifact{{"gguf", "m", "s", "half", "w", "f16"}},
		Files:      []File{{"f", 1, "h"}}, Layers: sample().Layers,
		Curves: []Curve{{1, 2, "learned", [][2]float64{{0, .8}, {1, .9}}}}, Measured: sample()}
	m.Layers[0].Delta = &x
	m.Layers[0].Train = &Columns{Raw: &x}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back Manifest
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m, back) {
		t.Errorf("read back: %+v\nwritten: %+v", back, m)
	}
}

// TestColumnsSet: a number goes to the column of its code; what is no number or no
// column goes nowhere.
func TestColumnsSet(t *testing.T) {
	var c Columns
	for i, k := range []string{"raw", "cen", "srht", "random", "learned", "code", "frame", ""} {
		c.Set(k, float64(i))
	}
	var nan float64
	nan /= nan
	c.Set("raw", nan)
	for i, p := range []*float64{c.Raw, c.Cen, c.SRHT, c.Random, c.Learned, c.Code} {
		if p == nil || *p != float64(i) {
			t.Errorf("column %d is %v", i, p)
		}
	}
}

// TestKeys: every sidecar key lies under phaseconv. and none occurs twice.
func TestKeys(t *testing.T) {
	keys := []string{KeyVersion, KeyCode, KeyLayers, KeyHeads, KeyHeadDim, KeyAnchor, KeySink, KeyRecent, KeyExceptions,
		KeyGroups, KeyBasis, KeyPairLayout, KeyRope,
		KeySourceSHA256, KeyWeightsSHA256, KeyCalibrationSHA256, KeyCalibrationTokens, KeyCalibrationContext, KeyTool}
	sort.Strings(keys)
	for i, k := range keys {
		if !strings.HasPrefix(k, "phaseconv.") || i > 0 && k == keys[i-1] {
			t.Errorf("key %q", k)
		}
	}
}
