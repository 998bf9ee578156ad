package spec

// AdviseJSON is what `phaseconv advise --json` prints. Its keys are stable.
type AdviseJSON struct {
	// Base says what every row is compared with: the model and its cache types.
	Base string `json:"base"`
	// MaxKLD is the gate: a pair of types passes if its mean KLD is at most this on
	// every text at every context.
	MaxKLD float64 `json:"max_kld"`
	// Rotation says whether llama.cpp's attention rotation was on.
	Rotation bool `json:"rotation"`
	// RoundedInputs says whether the inputs of matrix products were rounded as llama.cpp's
	// CPU backend does for the types of the file, so that divergences are those it shows.
	RoundedInputs bool `json:"rounded_inputs"`
	// Backend is where pairs of types are to run: cpu, cuda, metal, vulkan, rocm, or any for
	// all of them. Empty where that was not asked; then no row says whether it runs.
	Backend string `json:"backend,omitempty"`
	// TensorSplit: with llama.cpp's --split-mode tensor.
	TensorSplit bool `json:"tensor_split,omitempty"`
	// Engine is what computed the numbers, where it was not the own pass: results depend on it.
	Engine *EngineIdentity `json:"engine,omitempty"`
	// Facts names the release that what is said of backends was read from.
	Facts string      `json:"facts,omitempty"`
	Rows  []AdviseRow `json:"rows"`
	// Choices holds the smallest pair of types below the gate that runs on the backend, for
	// the published and for the converted weights where both were measured; empty if none passes.
	Choices []AdviseChoice `json:"choices"`
	// Passed says whether the model to run (the converted one where both were measured) has a choice
	// that is smaller than F16 caches; true also where nothing smaller was measured and F16 passes.
	Passed bool `json:"passed"`
	// Improve is a conversion that may make a smaller pair pass; absent where there is none to
	// try, and where a converted model was measured.
	Improve *AdviseImprove `json:"improve,omitempty"`
	// Texts describes what was measured, one entry per text and context.
	Texts []Text `json:"texts"`
	// Notes say what was not measured, and why.
	Notes []string `json:"notes,omitempty"`
	// BasePPL is the perplexity of the base on each of them.
	BasePPL []float64 `json:"base_ppl"`
}

// AdviseChoice is the smallest pair of cache types that passed the gate.
type AdviseChoice struct {
	KType         string  `json:"k_type"`
	VType         string  `json:"v_type"`
	Converted     bool    `json:"converted"`
	BytesPerToken float64 `json:"bytes_per_token"`
	// Worst is the largest KLD of the texts and contexts measured.
	Worst float64 `json:"worst_kld"`
	// Flags are the options of llama.cpp's programs; empty for types that they do
	// not offer (Q1_0, which only the library takes).
	Flags string `json:"flags"`
	// Ctx is the longest context measured, for which CacheBytes and Lines are: see AdviseRow.
	Ctx        int   `json:"ctx"`
	CacheBytes int64 `json:"cache_bytes"`
	// Lines to paste.
	Lines []AdviseLine `json:"lines"`
}

// AdviseLine is what a user of one program types or sets to run with a choice.
type AdviseLine struct {
	For string `json:"for"` // the program, and which of its places
	// Text may have several lines; empty where the program cannot, and Note says why.
	Text string `json:"text"`
	Note string `json:"note,omitempty"`
}

// AdviseImprove is the smallest pair of types that runs on the backend and is smaller than the
// choice for the published weights, which it misses the gate with.
type AdviseImprove struct {
	KType string `json:"k_type"`
	VType string `json:"v_type"`
	// Worst is its largest KLD with the published weights.
	Worst float64 `json:"worst_kld"`
	// Saved is what the cache would shrink by at the longest context, in bytes, if the converted
	// model passes: from the choice, or from F16 where there is none.
	Saved int64 `json:"saved_bytes"`
	// ScoreErrorLeft and Removable are what norm gains and biases alone foretell of the gain, means
	// over layers: the share of the error of scores that is left by the best scales between
	// q_norm and k_norm, and the share of the energy of keys that biases make and that can be
	// taken out, exactly or nearly. Absent where there are no such gains or biases, and
	// with engines other than the own.
	ScoreErrorLeft *float64 `json:"score_error_left,omitempty"`
	Removable      *float64 `json:"removable_key_energy,omitempty"`
	// Expected is what the conversion is likely to leave; absent with engines other than the own.
	Expected *AdviseExpected `json:"expected,omitempty"`
	Command  string          `json:"command"`
}

// AdviseExpected is a guess: the KLD that is left of AdviseImprove.Worst, by what measured conversions
// left of that of a model with keys of the same kind.
type AdviseExpected struct {
	Low  float64 `json:"kld_low"`
	High float64 `json:"kld_high"`
	Like string  `json:"like"` // that model, and what its keys are like
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
