package spec

// A Manifest (phaseconv.json) says what an artifact is, how it was made, what
// was changed and what was measured. Paths in it are base names.
type Manifest struct {
	Version int `json:"version"`
	// SHA256 is the digest of the manifest's own bytes, see ManifestDigest.
	SHA256  string   `json:"manifest_sha256"`
	Tool    string   `json:"tool"`
	Command []string `json:"command"`
	Source  Source   `json:"source"`
	// Notes say how the source was read where its files disagree, and where the
	// tokenizer of GGUF readers gives other ids than the source's own.
	Notes       []string `json:"notes,omitempty"`
	Model       Model    `json:"model"`
	Code        CodeInfo `json:"code"`
	Calibration Text     `json:"calibration"`
	Seed        uint64   `json:"seed"`
	// Engine computed the model for fits and measurements; nil stands for the own forward pass.
	Engine *EngineIdentity `json:"engine,omitempty"`
	// Graph is there where the architecture has no entry in the table of families.
	Graph      *Graph     `json:"graph,omitempty"`
	Identities []Identity `json:"identities"`
	Fusion     *Fusion    `json:"fusion,omitempty"`
	// FFN is there where weights were changed for the type of a quantised file.
	FFN       *FFNFold    `json:"ffn,omitempty"`
	Artifacts []Artifact  `json:"artifacts"`
	Files     []File      `json:"files"`
	Layers    []Layer     `json:"layers,omitempty"`
	Curves    []Curve     `json:"curves,omitempty"`
	Measured  *VerifyJSON `json:"measured,omitempty"`
}

// Source identifies what was converted.
type Source struct {
	Name      string `json:"name"` // base name of the folder or file
	Container string `json:"container"`
	SHA256    string `json:"sha256"`
}

// Model is the shape of the model.
type Model struct {
	Family  string `json:"family"`
	Layers  int    `json:"layers"`
	Heads   int    `json:"n_heads"`
	KVHeads int    `json:"n_kv_heads"`
	HeadDim int    `json:"head_dim"`
	Hidden  int    `json:"hidden_size"`
	Vocab   int    `json:"vocab_size"`
	Context int    `json:"context_length"`
	Experts int    `json:"experts,omitempty"`
}

// CodeInfo is the key code and the policy that a runtime follows.
type CodeInfo struct {
	Kind string  `json:"kind"`
	Bits float64 `json:"bits"` // signs per number on average over all codes, without scales
	// Alloc is how signs were spread over heads: uniform, sensitivity or angle.
	Alloc string `json:"alloc"`
	// Exceptions is how many coordinates a coded key keeps beside its signs.
	Exceptions int `json:"exceptions"`
	Anchor     int `json:"anchor"`
	Sink       int `json:"sink"`
	Recent     int `json:"recent"`
	// Parts says what groups code: k, v, k+v (each in groups of its own), kv (in one
	// group), or mixed. Version 1 has no groups, and neither this nor the next.
	Parts string `json:"parts,omitempty"`
	// GroupDim is the length of the longest vector of a group.
	GroupDim int `json:"group_dim,omitempty"`
}

// Text identifies a text and how it was cut.
type Text struct {
	Name    string `json:"name"`
	SHA256  string `json:"sha256"`
	Tokens  int    `json:"tokens"`
	Context int    `json:"context"`
	Windows int    `json:"windows"`
	// Kind is what the text is: chat, code, prose, nonlatin; "" where that was not said.
	Kind string `json:"kind,omitempty"`
}

// Identity is one change of weights that was considered.
type Identity struct {
	ID      string `json:"id"` // G1 ... G10, as in the specification
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
	Exact   bool   `json:"exact"`
	// Tensors counts those that it changed.
	Tensors int    `json:"tensors"`
	Why     string `json:"why"`
}

// Artifact names the files of one container.
type Artifact struct {
	Container     string `json:"container"`
	Model         string `json:"model"` // the GGUF file, or the index or single file of safetensors
	Sidecar       string `json:"sidecar"`
	PairLayout    string `json:"pair_layout"`
	WeightsSHA256 string `json:"weights_sha256"`
	OutType       string `json:"outtype"`
}

// File is one file of the artifact.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Columns holds one number per code; null where it was not measured or does not exist.
type Columns struct {
	Raw     *float64 `json:"raw"`
	Cen     *float64 `json:"cen"`
	SRHT    *float64 `json:"srht"`
	Random  *float64 `json:"random"`
	Learned *float64 `json:"learned"`
	Code    *float64 `json:"code"`
}

// Set stores the number of a code; names other than the columns' are ignored.
func (c *Columns) Set(kind string, v float64) {
	if v != v { // NaN: no such number
		return
	}
	for _, x := range []struct {
		kind string
		dst  **float64
	}{{"raw", &c.Raw}, {"cen", &c.Cen}, {"srht", &c.SRHT}, {"random", &c.Random}, {"learned", &c.Learned},
		{"code", &c.Code}} {
		if x.kind == kind {
			*x.dst = &v
		}
	}
}

// Layer is the beta audit of one KV head, on text that nothing was fitted to.
type Layer struct {
	Layer  int     `json:"layer"`
	Head   int     `json:"head"`
	Code   string  `json:"code"`
	Bits   float64 `json:"bits"`
	Anchor int     `json:"anchor"`
	// Cos1bit and MomentRatio are the two units of beta; see the specification.
	Cos1bit     Columns `json:"cos1bit"`
	MomentRatio Columns `json:"moment_ratio"`
	// TrainCos1bit is the code's cos1bit on the keys it was fitted to.
	TrainCos1bit *float64 `json:"train_cos1bit"`
	// Train holds the fitted-text numbers of the other columns.
	Train *Columns `json:"train,omitempty"`
	// Tokens is the number of calibration keys, TokensPerDim that over head_dim.
	Tokens       int     `json:"tokens"`
	TokensPerDim float64 `json:"tokens_per_dim"`
	// Delta is learned minus srht, held out, in cos1bit.
	Delta *float64 `json:"delta,omitempty"`
}

// Curve is the fit of one head, step by step.
type Curve struct {
	Layer  int          `json:"layer"`
	Head   int          `json:"head"`
	Code   string       `json:"code"`
	Points [][2]float64 `json:"points"` // step, cos1bit on the fitted keys
}

// Check is one line of the contract.
type Check struct {
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// VerifyJSON is what `phaseconv verify --json` prints. Its keys are stable.
type VerifyJSON struct {
	OK       bool     `json:"ok"`
	Contract []Check  `json:"contract"`
	PPL      *PPLJSON `json:"ppl"`
	KLD      *KLDJSON `json:"kld"`
	// Positions is the divergence of the scored positions, in bands of equal length.
	Positions []PositionBand `json:"positions,omitempty"`
	Function  *FunctionJSON  `json:"function"`
	Layers    []Layer        `json:"layers"`
	Bytes     *BytesJSON     `json:"bytes"`
	Text      *Text          `json:"text,omitempty"`
	// Engine computed the numbers; nil stands for the own forward pass.
	Engine *EngineIdentity `json:"engine,omitempty"`
	// Stock is there when cache types of a stock runtime were asked for.
	Stock *StockJSON `json:"stock,omitempty"`
	// CodeName is the --code that makes such codes: CodeJoint for groups, whose codes are frames,
	// else their kind. Pairs says that layers are given the codes of the layer below. Both are
	// printed and never in a manifest, where readers refuse what they do not know.
	CodeName string `json:"code_name,omitempty"`
	Pairs    bool   `json:"pairs,omitempty"`
}

// CodeJoint names codes of several heads' keys and values together.
const CodeJoint = "joint"

// PPLJSON is the perplexity with float keys and with 1-bit keys.
type PPLJSON struct {
	Float     float64 `json:"float"`
	FloatErr  float64 `json:"float_err"`
	OneBit    float64 `json:"onebit"`
	OneBitErr float64 `json:"onebit_err"`
	Ratio     float64 `json:"ratio"`
	RatioErr  float64 `json:"ratio_err"`
	Tokens    int     `json:"tokens"` // scored tokens
	Ctx       int     `json:"ctx"`
	Chunks    int     `json:"chunks"`
	Sink      int     `json:"sink"`
	Recent    int     `json:"recent"`
	Anchor    int     `json:"anchor"`
	Code      string  `json:"code"`
	// Kernels says that keys were scored with the decode kernels, which round
	// queries, instead of as products with decoded keys.
	Kernels bool `json:"kernels,omitempty"`
}

// KLDJSON is the divergence of the 1-bit model from the float model, in nats per token.
type KLDJSON struct {
	Mean       float64 `json:"mean"`
	MeanErr    float64 `json:"mean_err"`
	Median     float64 `json:"median"`
	P90        float64 `json:"p90"`
	P95        float64 `json:"p95"`
	P99        float64 `json:"p99"`
	Max        float64 `json:"max"`
	SameTop    float64 `json:"same_top"`
	SameTopErr float64 `json:"same_top_err"`
	DeltaPMean float64 `json:"delta_p_mean"`
	DeltaPRMS  float64 `json:"delta_p_rms"`
}

// FunctionJSON says how far the converted weights are from the source with float
// keys, beside the floor that merely re-rounding the same tensors costs.
type FunctionJSON struct {
	MaxAbsDLogit      float64 `json:"max_abs_dlogit"`
	KLDMean           float64 `json:"kld_mean"`
	SameTop           float64 `json:"same_top"`
	FloorMaxAbsDLogit float64 `json:"floor_max_abs_dlogit"`
	FloorKLDMean      float64 `json:"floor_kld_mean"`
	FloorSameTop      float64 `json:"floor_same_top"`
}

// BytesJSON says what keys cost, all layers together. With groups, k_f16, k_code and
// effective_bits are those of all that the groups code, values too.
type BytesJSON struct {
	KF16  int `json:"k_f16"`  // bytes per token with F16 keys
	KCode int `json:"k_code"` // bytes per coded token, scales and exceptions included
	// EffectiveBits per number at a context length, sink and recent keys included.
	EffectiveBits map[string]float64 `json:"effective_bits"`
	// Sidecar is the size of the sidecar's matrices, once per model.
	Sidecar int64 `json:"sidecar"`
	// KVF16 and KVCode are bytes of keys and values together, per token: in F16, and as the
	// codes and what they leave in F16 take them. Files of earlier programs have neither.
	KVF16  int `json:"kv_f16,omitempty"`
	KVCode int `json:"kv_code,omitempty"`
	// Parts, of joint codes, is what they hold, as in CodeInfo; k_f16, k_code and effective_bits
	// are of these. Empty for codes of keys, head by head.
	Parts string `json:"parts,omitempty"`
}

// AuditJSON is what `phaseconv audit --json` prints.
type AuditJSON struct {
	Calibration Text       `json:"calibration"`
	Text        Text       `json:"text"`
	Balance     bool       `json:"balance"`
	Layers      []Layer    `json:"layers"`
	PPL         *PPLJSON   `json:"ppl"`
	KLD         *KLDJSON   `json:"kld"`
	Bytes       *BytesJSON `json:"bytes"`
	// FFN is there when it was asked for.
	FFN []FFNRow `json:"ffn,omitempty"`
	// Engine computed the numbers, nil for the own pass.
	Engine *EngineIdentity `json:"engine,omitempty"`
}
