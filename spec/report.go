package spec

// ReportVersion is the version of report.json that this package describes.
const ReportVersion = 1

// Names of the report's files in an artifact. Neither is listed in the manifest:
// they describe the artifact and are not part of it.
const (
	ReportName     = "report.html"
	ReportDataName = "report.json"
)

// ReportJSON (report.json) holds what report.html shows beyond the manifest. A
// report of a source that was only audited carries the audit; one of an artifact
// lies beside its manifest. What was not measured is absent.
type ReportJSON struct {
	Version int         `json:"report"`
	Name    string      `json:"name,omitempty"` // base name of the model
	Audit   *AuditJSON  `json:"audit,omitempty"`
	Verify  *VerifyJSON `json:"verify,omitempty"`
	Detail  *Detail     `json:"detail,omitempty"`
	Advise  []AdviseRow `json:"advise,omitempty"`
	// RoundedInputs of Advise: see AdviseJSON.
	RoundedInputs bool          `json:"rounded_inputs,omitempty"`
	FFN           []FFNRow      `json:"ffn,omitempty"`
	Pareto        []ParetoPoint `json:"pareto,omitempty"`
}

// AdviseRow is one K and V cache type measured with this model. The runtime's
// own types keep its names (f16, q8_0, q4_0).
type AdviseRow struct {
	KType string `json:"k_type"`
	VType string `json:"v_type"`
	Ctx   int    `json:"ctx"`
	// Converted says whether the artifact was run, or the source as published.
	Converted     bool    `json:"converted"`
	BytesPerToken float64 `json:"bytes_per_token"` // keys and values, all layers
	PPLRatio      float64 `json:"ppl_ratio"`       // to the source with F16 keys and values
	KLD           float64 `json:"kld"`             // from it, nats per token
	KLDErr        float64 `json:"kld_err"`
	SameTop       float64 `json:"same_top"`
	// CacheBytes is the cache of all layers, keys and values, as llama.cpp allocates it for one
	// sequence at Ctx: windows count with what they keep, cells are padded.
	CacheBytes int64 `json:"cache_bytes,omitempty"`
	// Runs says whether the pair runs on the backend asked for: yes, slow or no, and Reason why
	// not. Absent where no backend was named.
	Runs   string `json:"runs,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Positions: the divergence by where in the window a token stands.
	Positions []PositionBand `json:"positions,omitempty"`
	// Text is the name of what was measured on, absent where that was one text.
	Text string `json:"text,omitempty"`
}

// FFNRow is the beta of one FFN matrix, on its input side.
type FFNRow struct {
	Layer  int    `json:"layer"`
	Matrix string `json:"matrix"` // gate, up or down
	Expert int    `json:"expert"` // -1: a dense FFN, or all experts of a bank together
	// Rotation: none, srht, shared (one per layer) or own (one per expert or matrix).
	Rotation    string  `json:"rotation"`
	Cos1bit     float64 `json:"cos1bit"`
	MomentRatio float64 `json:"moment_ratio"`
	// EffectiveBits per weight: the sign, an F16 scale per row, and the storage of a
	// learned rotation over the weights that share it.
	EffectiveBits float64 `json:"effective_bits"`
	Dims          int     `json:"dims"`     // numbers of a row
	HeldOut       int     `json:"held_out"` // rows measured
	// Block: rotations are block-diagonal with blocks of so many numbers; 0 for none.
	Block int `json:"block"`
	// Rows fitted, RowsPerDim that over Block; 0 where nothing is fitted.
	Rows       int     `json:"rows"`
	RowsPerDim float64 `json:"rows_per_dim"`
	// TrainCos1bit is the cosine on the fitted rows of this matrix, NoiseCos1bit
	// what the same fit reaches on as many rows of Gaussian noise.
	TrainCos1bit *float64 `json:"train_cos1bit"`
	NoiseCos1bit *float64 `json:"noise_cos1bit"`
}

// ParetoPoint is one setting of a code measured on the whole model, values float.
type ParetoPoint struct {
	Code          string  `json:"code"`
	Bits          float64 `json:"bits"`            // signs per number
	BytesPerToken float64 `json:"bytes_per_token"` // keys of all layers
	PPLRatio      float64 `json:"ppl_ratio"`
	KLD           float64 `json:"kld"`
	KLDErr        float64 `json:"kld_err"`
	SameTop       float64 `json:"same_top"`
}

// Detail is measured for the report, on text that nothing was fitted to.
type Detail struct {
	Text   Text    `json:"text"`
	Code   string  `json:"code"`
	Bits   float64 `json:"bits"`
	Anchor int     `json:"anchor"`
	Sink   int     `json:"sink"`
	Recent int     `json:"recent"`
	// Positions: the error by where in the context a token stands.
	Positions []PositionBand `json:"positions,omitempty"`
	// Contexts: the error by length of context, second halves scored.
	Contexts []ContextRow `json:"contexts,omitempty"`
	Angles   []AngleRow   `json:"angles,omitempty"`
	// Layers: the error when the keys of one layer alone are coded.
	Layers []LayerKLD `json:"layers,omitempty"`
	// Codes measured on the whole model, on the same windows.
	Codes       []ParetoPoint `json:"codes,omitempty"`
	Cloud       *Cloud        `json:"cloud,omitempty"`
	Scores      *Scores       `json:"scores,omitempty"`
	Convergence *Convergence  `json:"convergence,omitempty"`
	// Groups: how well joint codes describe keys and values.
	Groups []GroupRow `json:"groups,omitempty"`
}

// GroupRow is beta of the keys, or of the values, of a group: all its heads of them as one vector,
// without its mean. Its codes are frames, which have no moment ratio.
type GroupRow struct {
	Layer   int     `json:"layer"`
	Group   int     `json:"group"`
	Part    string  `json:"part"` // k or v
	Heads   []int   `json:"heads"`
	Dims    int     `json:"dims"`            // numbers of the vector
	Signs   int     `json:"signs"`           // of a token, for all that the group holds
	Given   bool    `json:"given,omitempty"` // coded given the codes of the layer below
	Tokens  int     `json:"tokens"`
	Cos1bit float64 `json:"cos1bit"` // mean over tokens
	// EnergyLeft is the energy of the error over that of the vectors.
	EnergyLeft float64 `json:"energy_left"`
}

// PositionBand is what tokens at positions [From, To) of a window cost.
type PositionBand struct {
	From   int     `json:"from"`
	To     int     `json:"to"`
	Tokens int     `json:"tokens"`
	KLD    float64 `json:"kld"`
	KLDErr float64 `json:"kld_err"`
}

// ContextRow is the error at one context length.
type ContextRow struct {
	Ctx      int     `json:"ctx"`
	Windows  int     `json:"windows"`
	Tokens   int     `json:"tokens"`
	PPLRatio float64 `json:"ppl_ratio"`
	RatioErr float64 `json:"ratio_err"`
	KLD      float64 `json:"kld"`
	KLDErr   float64 `json:"kld_err"`
}

// AngleRow holds mean angles between keys and what one bit makes of them, in degrees.
type AngleRow struct {
	Layer int     `json:"layer"`
	Head  int     `json:"head"`
	Raw   float64 `json:"raw"`  // the key as it stands, neither centred nor rotated nor anchored
	SRHT  float64 `json:"srht"` // after a random Hadamard rotation
	Code  float64 `json:"code"` // the code in use, keys as it codes them, centred
}

// LayerKLD is the error when one layer's keys are coded and all others are float.
type LayerKLD struct {
	Layer  int     `json:"layer"`
	KLD    float64 `json:"kld"`
	KLDErr float64 `json:"kld_err"`
}

// Cloud is a sample of one head's keys in the plane of two of their coordinates,
// centred. It is the plane, among all pairs of coordinates, in which the best turn
// gains most over no turn and over 45 degrees.
type Cloud struct {
	Layer  int          `json:"layer"`
	Head   int          `json:"head"`
	Dims   [2]int       `json:"dims"`
	Points [][2]float64 `json:"points"`
}

// Scores holds the attention logits of one query of one head, scaled as before softmax.
type Scores struct {
	Layer     int         `json:"layer"`
	Head      int         `json:"head"`       // KV head
	QueryHead int         `json:"query_head"` // of all query heads
	Position  int         `json:"position"`
	Sink      int         `json:"sink"` // keys at the start that are not coded
	Float     []float64   `json:"float"`
	Codes     []ScoreCode `json:"codes"`
}

// ScoreCode holds the logits that coded keys give.
type ScoreCode struct {
	Code   string    `json:"code"`
	Bits   float64   `json:"bits"`
	Fitted string    `json:"fitted"` // what the code was fitted to; "" for none
	Scores []float64 `json:"scores"`
}

// Convergence is the plain L1-max iteration of one head, with the value on keys
// that it does not see beside the value on those that it is fitted to.
type Convergence struct {
	Layer        int     `json:"layer"`
	Head         int     `json:"head"`
	Keys         int     `json:"keys"` // fitted
	HeldOut      int     `json:"held_out"`
	TokensPerDim float64 `json:"tokens_per_dim"`
	// Points: step, cos1bit on the fitted keys, cos1bit on the held-out keys.
	Points [][3]float64 `json:"points"`
	SRHT   float64      `json:"srht"` // cos1bit of a Hadamard rotation on the held-out keys
}
