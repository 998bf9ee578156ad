package spec

// FFNRotationsVersion is the version of files with rotations of FFN inputs. They are files of their
// own: a model has them beside a sidecar or without one.
const FFNRotationsVersion = 1

// FFNRotationsType is general.type of such a file in GGUF.
const FFNRotationsType = "ffn-rotations"

// Keys of a file with rotations of FFN inputs, beside KeySourceSHA256 and KeyTool.
const (
	KeyFFNVersion  = "phaseconv.ffn.version"
	KeyFFNBasis    = "phaseconv.ffn.basis"    // FFNOwn or FFNShared
	KeyFFNLayers   = "phaseconv.ffn.layers"   // of the model
	KeyFFNBlock    = "phaseconv.ffn.block"    // most numbers of a block
	KeyFFNRows     = "phaseconv.ffn.rows"     // most rows of a matrix that were looked at
	KeyFFNSeed     = "phaseconv.ffn.seed"     // text, decimal
	KeyFFNMeasured = "phaseconv.ffn.measured" // text, JSON: a list of FFNRow
)

// Bases of FFN rotations.
const (
	FFNOwn    = "own"    // each expert has its own
	FFNShared = "shared" // one for all experts of a layer
)

// FFNInputs are the inputs of an FFN that have a rotation, as tensor names have them: what gate and
// up multiply, and what down multiplies.
var FFNInputs = [2]string{"ffn_input", "ffn_neurons"}

// FFNMatrices are the matrices that multiply each of FFNInputs.
var FFNMatrices = [2][]string{{"gate", "up"}, {"down"}}

// Limits of files with FFN rotations.
const (
	MaxFFNExperts  = 1 << 12
	MaxFFNDim      = 1 << 20  // numbers of an input
	MaxFFNMeasured = 64 << 20 // bytes of JSON
)

// FFNRotationsJSON is what "rotations ffn" prints: what it wrote, and what that is worth.
type FFNRotationsJSON struct {
	File   string `json:"file"` // base name; empty for a unit
	Source Source `json:"source"`
	Basis  string `json:"basis"` // own or shared
	Block  int    `json:"block"`
	Seed   uint64 `json:"seed"`
	// Layers that have rotations, and how many rotations there are in all.
	Layers    int `json:"layers"`
	Rotations int `json:"rotations"`
	// Bytes of all rotations in F32, as the file has them.
	Bytes int64 `json:"bytes"`
	// Products is how far products of rotated inputs with rotated rows are from those of the
	// source, at most.
	Products FFNProducts `json:"products"`
	// Means over layers and experts, by matrix and rotation; Rows has each.
	Means   []FFNMean  `json:"means"`
	Verdict FFNVerdict `json:"verdict"`
	Rows    []FFNRow   `json:"rows"`
}

// FFNProducts compares w.x with (R w).(R x), in float32, for rows w of matrices and random x.
type FFNProducts struct {
	// MaxError is the largest difference over |w| |x|; Bound is what rounding allows.
	MaxError float64 `json:"max_error"`
	Bound    float64 `json:"bound"`
}

// FFNMean is the mean of FFNRow over layers and experts.
type FFNMean struct {
	Matrix        string   `json:"matrix"`
	Rotation      string   `json:"rotation"`
	Each          bool     `json:"each"` // of matrices of single experts
	Dims          int      `json:"dims"`
	Block         int      `json:"block"`
	Matrices      int      `json:"matrices"` // over how many it is
	RowsPerDim    float64  `json:"rows_per_dim"`
	TrainCos1bit  *float64 `json:"train_cos1bit"`
	NoiseCos1bit  *float64 `json:"noise_cos1bit"`
	Cos1bit       float64  `json:"cos1bit"`
	MomentRatio   float64  `json:"moment_ratio"`
	EffectiveBits float64  `json:"effective_bits"`
}

// FFNVerdict says whether learned rotations describe more than the rows that they were fitted to.
type FFNVerdict struct {
	// Gain is the held-out cos1bit of the learned rotations minus that of a Hadamard transform, mean
	// over matrices with its standard error; OverNoise is what they reach on the rows that they were
	// fitted to, minus what the same fit reaches on noise.
	Gain         float64 `json:"gain"`
	GainErr      float64 `json:"gain_err"`
	OverNoise    float64 `json:"over_noise"`
	OverNoiseErr float64 `json:"over_noise_err"`
	// Learned: the gain is above three standard errors and above FFNLeast.
	Learned bool   `json:"learned"`
	Text    string `json:"text"`
}

// FFNLeast is the least gain in cos1bit that counts as one: 0.002 is a thousandth of the squared
// error that signs of Gaussian numbers leave, times nine.
const FFNLeast = 0.002
