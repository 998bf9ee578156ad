package spec

// AdviseJSON is what `phaseconv advise --json` prints. Its keys are stable.
type AdviseJSON struct {
	// Base says what every row is compared with: the model and its cache types.
	Base string `json:"base"`
	// MaxKLD is the gate: a pair of types passes if its mean KLD is at most this at
	// every context.
	MaxKLD float64 `json:"max_kld"`
	// Rotation says whether llama.cpp's attention rotation was on.
	Rotation bool `json:"rotation"`
	// RoundedInputs says whether the inputs of matrix products were rounded as llama.cpp's
	// CPU backend does for the types of the file, so that divergences are those it shows.
	RoundedInputs bool        `json:"rounded_inputs"`
	Rows          []AdviseRow `json:"rows"`
	// Choices holds the smallest pair of types below the gate, for the published
	// and for the converted weights where both were measured; empty if none passes.
	Choices []AdviseChoice `json:"choices"`
	// Texts describes what was measured, one entry per context.
	Texts []Text `json:"texts"`
	// BasePPL is the perplexity of the base on each of them.
	BasePPL []float64 `json:"base_ppl"`
}

// AdviseChoice is the smallest pair of cache types that passed the gate.
type AdviseChoice struct {
	KType         string  `json:"k_type"`
	VType         string  `json:"v_type"`
	Converted     bool    `json:"converted"`
	BytesPerToken float64 `json:"bytes_per_token"`
	// Worst is the largest KLD of the contexts measured.
	Worst float64 `json:"worst_kld"`
	// Flags are the options of llama.cpp's programs; empty for types that they do
	// not offer (Q1_0, which only the library takes).
	Flags string `json:"flags"`
}

// StockJSON is the part of `phaseconv verify --json` that measures a stock
// runtime's cache types.
type StockJSON struct {
	KType string `json:"k_type"`
	VType string `json:"v_type"`
	// Rotation says whether llama.cpp's attention rotation was on; RotationK and
	// RotationV are the sizes of its Hadamard matrices, 0 where it does not apply.
	Rotation  bool `json:"rotation"`
	RotationK int  `json:"rotation_k"`
	RotationV int  `json:"rotation_v"`
	// RoundedInputs: see AdviseJSON.
	RoundedInputs bool `json:"rounded_inputs"`
	// Base is what the rest is compared with: "source" or "artifact", with F16 caches.
	Base          string   `json:"base"`
	BytesPerToken int      `json:"bytes_per_token"`
	PPL           float64  `json:"ppl"`
	PPLErr        float64  `json:"ppl_err"`
	PPLRatio      float64  `json:"ppl_ratio"`
	PPLRatioErr   float64  `json:"ppl_ratio_err"`
	KLD           *KLDJSON `json:"kld"`
}
