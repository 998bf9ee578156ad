package spec

// FFNFold tells how the change of weights for a quantised file's type was chosen: what was tried,
// and what each measured on text that it was not fitted to, against the unchanged model in floats.
type FFNFold struct {
	// Weights is the type as --weights takes it, FileType as llama-quantize takes it.
	Weights  string `json:"weights"`
	FileType string `json:"file_type"`
	// Mode is what was asked for: scale, rotate or auto.
	Mode string `json:"mode"`
	// Imatrix is the SHA-256 of the importance matrix that llama-quantize will be given, if any.
	Imatrix string `json:"imatrix,omitempty"`
	// FitWindows is how many windows were fitted to; Text is what was compared on: other windows of
	// the calibration text.
	FitWindows int      `json:"fit_windows"`
	Text       Text     `json:"text"`
	Tried      []FFNTry `json:"tried"`
	// Chosen names one of them; the first changes nothing.
	Chosen string `json:"chosen"`
	// Measured holds the source and what was written, both with that type, on the evaluation text.
	Measured []FFNTry `json:"measured,omitempty"`
}

// FFNTry is one candidate with its matrices in the type.
type FFNTry struct {
	Name string `json:"name"`
	// Bits is how many bits a weight of the matrices takes on average, scales included.
	Bits     float64 `json:"bits"`
	KLD      float64 `json:"kld"`
	KLDErr   float64 `json:"kld_err"`
	PPLRatio float64 `json:"ppl_ratio"`
	SameTop  float64 `json:"same_top"`
}

// QuantizedJSON is what scripts/ffn/measure.py --artifact prints: files that llama-quantize made of the
// unchanged and of the converted model, in stock llama.cpp beside the unchanged model in floats. The report
// and the card show it beside what was emulated.
type QuantizedJSON struct {
	// FileType is how llama-quantize spells the type of both files, such as Q4_0.
	FileType string `json:"file_type"`
	// Runtime is the release of llama.cpp that measured, as it names itself.
	Runtime string `json:"runtime"`
	// Text is what was measured on.
	Text Text `json:"text"`
	// Quantized has a row for each file; bits count all tensors of it.
	Quantized []FFNTry `json:"quantized"`
}
