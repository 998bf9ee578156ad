package release

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
)

// fileTypes are the names of general.file_type (llama.cpp's llama_ftype), which end file names.
var fileTypes = map[uint64]string{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
	11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
	19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S",
	27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4"}

var (
	// sizeLabel is the part of a name that tells the number of parameters, such as 0.5B or 8x7B.
	sizeLabel = regexp.MustCompile(`(?i)(^|[-_])(\d+x)?\d+([._]\d+)?[kmbtq](-a\d+([._]\d+)?[kmb])?($|[-_.])`)
	unfit     = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// Name makes the name of a GGUF file, without ending, by the convention of the format:
//
//	BaseName-SizeLabel-FineTune-Version-KVtype-context-Encoding
//
// The source's name has the first parts; the size is counted where it has none. What the weights
// were changed for stands before the encoding: KVq4_0-8k for K and V caches of type q4_0 at 8192
// tokens, where anything helped there, Kq8_0-Vq4_0-8k for different ones, KV1.5bit for codes of keys and values of so many bits a
// number, K1bit for those of keys alone.
func Name(f *gguf.File, m *spec.Manifest) string {
	encoding := "F16"
	if t, err := f.Uint("general.file_type"); err == nil && fileTypes[t] != "" {
		encoding = fileTypes[t]
	}
	base := strings.Trim(unfit.ReplaceAllString(strings.TrimSuffix(m.Source.Name, ".gguf"), "-"), "-.")
	for _, e := range fileTypes {
		for _, sep := range []string{"-", "."} {
			if n := len(base) - len(e) - 1; n > 0 && strings.EqualFold(base[n:], sep+e) {
				base = base[:n]
			}
		}
	}
	if !sizeLabel.MatchString(base) {
		base += "-" + size(f)
	}
	coded := "K"
	switch m.Code.Parts {
	case "":
	case "k", "v":
		coded = strings.ToUpper(m.Code.Parts)
	default:
		coded = "KV"
	}
	cache := fmt.Sprintf("%s%gbit", coded, math.Round(10*m.Code.Bits)/10)
	if x := m.Fusion; x != nil && x.Changed() {
		cache = fmt.Sprintf("KV%s-%s", x.KType, tokens(x.TargetCtx))
		if x.KType != x.VType {
			cache = fmt.Sprintf("K%s-V%s-%s", x.KType, x.VType, tokens(x.TargetCtx))
		}
	}
	return base + "-" + cache + "-" + encoding
}

func tokens(n int) string {
	if n%1024 == 0 {
		return fmt.Sprintf("%dk", n/1024)
	}
	return fmt.Sprint(n)
}

// size writes the number of parameters in three figures at most.
func size(f *gguf.File) string {
	n := 0.0
	for i := range f.Tensors {
		n += float64(f.Tensors[i].Elements())
	}
	for _, u := range []struct {
		scale  float64
		letter string
	}{{1e12, "T"}, {1e9, "B"}, {1e6, "M"}} {
		if n >= u.scale {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", n/u.scale), ".0") + u.letter
		}
	}
	return fmt.Sprintf("%.0fK", max(1, n/1e3))
}

// keys are the keys of a released GGUF file: those of the artifact's, and what tells where it comes
// from. The keys that this writes replace those of the source, which told of the source's source.
func (o *Options) keys(f *gguf.File, m *spec.Manifest) []gguf.KV {
	what := "Written by " + m.Tool + " with a code for the KV cache; no weight was changed"
	if slices.ContainsFunc(m.Identities, func(x spec.Identity) bool { return x.Applied }) {
		what = "Weights changed by " + m.Tool + " so that the KV cache survives few bits"
	}
	set := []gguf.KV{
		gguf.Value("general.description", what),
		gguf.Value("general.dataset.count", uint32(1)),
		gguf.Value("general.dataset.0.name", m.Calibration.Name),
	}
	if o.QuantizedBy != "" {
		set = append(set, gguf.Value("general.quantized_by", o.QuantizedBy))
	}
	if org, name, ok := strings.Cut(o.BaseModel, "/"); ok {
		url := "https://huggingface.co/" + o.BaseModel
		set = append(set, gguf.Value("general.base_model.count", uint32(1)), gguf.Value("general.base_model.0.name", name),
			gguf.Value("general.base_model.0.organization", org), gguf.Value("general.base_model.0.repo_url", url),
			gguf.Value("general.source.huggingface.repository", o.BaseModel), gguf.Value("general.source.repo_url", url))
	}
	for _, x := range []struct{ key, value string }{
		{"general.license", o.License}, {"general.license.name", o.LicenseName}, {"general.license.link", o.LicenseLink},
	} {
		if x.value != "" {
			set = append(set, gguf.Value(x.key, x.value))
		}
	}
	tags := []string{"phaseconv", "kv-cache"}
	if old, err := f.Strings("general.tags"); err == nil {
		for _, t := range old {
			if t != "phaseconv" && t != "kv-cache" {
				tags = append(tags, t)
			}
		}
	}
	set = append(set, gguf.Array("general.tags", tags))
	mine := map[string]bool{}
	for _, kv := range set {
		mine[kv.Key] = true
	}
	var out []gguf.KV
	for _, kv := range f.KVs {
		if mine[kv.Key] || strings.HasPrefix(kv.Key, "general.dataset.") || strings.HasPrefix(kv.Key, "split.") ||
			o.BaseModel != "" && strings.HasPrefix(kv.Key, "general.base_model.") ||
			o.License != "" && strings.HasPrefix(kv.Key, "general.license") {
			continue
		}
		out = append(out, kv)
	}
	return append(out, set...)
}
