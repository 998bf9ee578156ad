package spec

// Fusion tells how the change of keys for a stock runtime's cache types was
// chosen: what was tried, and what each measured on text that it was not fitted
// to, against the unchanged model with F16 caches.
type Fusion struct {
	KType string `json:"k_type"`
	VType string `json:"v_type"`
	// Rotation says whether llama.cpp's attention rotation was on.
	Rotation bool `json:"rotation"`
	// TargetCtx is the context that was fitted and compared at; FitWindows how many
	// windows of it were fitted to. Text is what was compared on: later windows of
	// the calibration text.
	TargetCtx  int         `json:"target_ctx"`
	FitWindows int         `json:"fit_windows"`
	Text       Text        `json:"text"`
	Tried      []FusionTry `json:"tried"`
	// Chosen names one of them; the first changes nothing.
	Chosen string `json:"chosen"`
	// Measured holds what was written, beside the source, with these cache types and
	// with F16, on the evaluation text.
	Measured []AdviseRow `json:"measured,omitempty"`
	// RoundedInputs of what was measured: see AdviseJSON.
	RoundedInputs bool `json:"rounded_inputs"`
	// Refused says why key biases were not shifted, if so.
	Refused string `json:"refused,omitempty"`
	// Heads lists what near-identity G7 removes, head by head.
	Heads []FusionHead `json:"heads,omitempty"`
}

// Changed says whether the weights were changed for the cache types: the first candidate changes
// nothing.
func (f *Fusion) Changed() bool { return len(f.Tried) == 0 || f.Chosen != f.Tried[0].Name }

// FusionTry is one candidate.
type FusionTry struct {
	Name string `json:"name"`
	// Near: the function changes a little.
	Near     bool    `json:"near"`
	KLD      float64 `json:"kld"`
	KLDErr   float64 `json:"kld_err"`
	PPLRatio float64 `json:"ppl_ratio"`
	SameTop  float64 `json:"same_top"`
	// F16KLD is what the change costs with F16 caches; measured for near-identities
	// that came into question.
	F16KLD *float64 `json:"f16_kld,omitempty"`
}

// FusionHead is what G7 and G8 do to the keys of one KV head.
type FusionHead struct {
	Layer int `json:"layer"`
	Head  int `json:"head"`
	// Removed is the share of the key energy that G7 takes out.
	Removed float64 `json:"removed"`
	// Before and After are the predicted divergences that the cache type causes in
	// this head alone, Cost that of the changes.
	Before float64 `json:"before"`
	After  float64 `json:"after"`
	Cost   float64 `json:"cost"`
}
