package llama

import "github.com/phaseconv/phaseconv/verify/engine"

// The jobs that the worker does, as JSON bodies of frames. Frames go one way at a time: a request,
// any number of progress and tap frames, then a result or an error. Kinds of frames:
const (
	KindOpen     = "open"     // Open -> Library
	KindLoad     = "load"     // Load -> Loaded
	KindUnload   = "unload"   // Unload -> nothing
	KindTokenize = "tokenize" // Tokenize and the text -> nothing and the ids
	KindMeasure  = "measure"  // Measure, token ids -> Measured and scores
	KindTap      = "tap"      // Tap and token ids -> taps, then nothing
	KindSums     = "sums"     // Sums and token ids -> nothing and the sums
	KindPatch    = "patch"    // Patch and the tensors' bytes -> Patched

	KindResult   = "result"
	KindError    = "error"
	KindProgress = "progress"
	KindTapped   = "tapped" // Tapped and its activations
)

// Open loads the library.
type Open struct {
	Dir string   `json:"dir"`
	RPC []string `json:"rpc,omitempty"` // HOST:PORT
}

// A Library is what was found of llama.cpp.
type Library struct {
	Dir      string `json:"-"` // a path of this machine
	Release  string `json:"release"`
	GGML     string `json:"ggml"`
	Commit   string `json:"commit,omitempty"`
	Tested   bool   `json:"tested"`
	SHA256   string `json:"sha256"` // of the lines "<sha256>  <name>" of the libraries that were loaded
	System   string `json:"system"` // instruction sets and options
	Platform string `json:"platform"`
	// Devices are the library's and those of RPC servers.
	Devices []Device `json:"devices"`
	// Tensor are the offsets of ggml_tensor's fields that probing found.
	Tensor map[string]int `json:"tensor_layout"`
}

// A Device is what a model can be loaded onto.
type Device struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Kind        string `json:"kind"`
	Free        uint64 `json:"free"`
	Total       uint64 `json:"total"`
}

// Load loads a model and tests it on its devices.
type Load struct {
	Path    string   `json:"path"`
	Devices []string `json:"devices,omitempty"`
	// GPULayers is how many layers go to devices that are not the CPU; negative: all.
	GPULayers int `json:"gpu_layers"`
	Threads   int `json:"threads"`
	// Ask loads the model for its facts alone: the file is mapped, and nothing is tested.
	Ask bool `json:"ask,omitempty"`
}

// Loaded is a model that is in memory.
type Loaded struct {
	Model int        `json:"model"` // its number in later jobs
	Facts *Facts     `json:"facts"`
	Tests []SelfTest `json:"tests"`
}

// A SelfTest is what was tried on the devices in use.
type SelfTest struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Unload frees a model.
type Unload struct {
	Model int `json:"model"`
}

// Tokenize encodes a text with the model's tokenizer, as llama.cpp has it.
type Tokenize struct {
	Model int `json:"model"`
	// Special: the text names special tokens itself, and none are added.
	Special bool `json:"special,omitempty"`
}

// A Lane is one way of computing windows.
type Lane struct {
	Model int   `json:"model"`
	K     int32 `json:"k"` // cache types, numbers as in GGUF files
	V     int32 `json:"v"`
	// Keys, if set, replaces keys before they are stored.
	Keys *Keys `json:"keys,omitempty"`
	// Patch names weights that were sent before and are in place while the lane runs.
	Patch string `json:"patch,omitempty"`
}

// Kinds of Keys that test the engine: what is stored is written back, or its double.
const (
	KeysSame     = "same"
	KeysDouble   = "double"
	AllSame      = "all same" // keys and values
	ValuesDouble = "values double"
)

// Keys says by what keys are replaced, and values with them where the code holds both.
type Keys struct {
	// Sidecar is a file of codes; else Kind is a code without a fit (raw, srht, random), or one of the tests.
	Sidecar string `json:"sidecar,omitempty"`
	Kind    string `json:"kind,omitempty"`
	Seed    uint64 `json:"seed,omitempty"`
	// Anchor, Sink, Recent and Exceptions are those of kvcache.Policy. With Recent, keys and values are replaced in
	// F16 caches when they are the latest no more, and tokens are decoded one by one.
	Anchor     int `json:"anchor,omitempty"`
	Sink       int `json:"sink,omitempty"`
	Recent     int `json:"recent,omitempty"`
	Exceptions int `json:"exceptions,omitempty"`
}

// Measure runs windows of token ids, all of Ctx, through lanes; the first is the base.
// The request's blob holds the ids.
type Measure struct {
	Ctx     int    `json:"ctx"`
	First   int    `json:"first"` // the first position whose prediction is scored
	Lanes   []Lane `json:"lanes"`
	Threads int    `json:"threads"`
	// Base, if set, names what the base's logits are kept under, if they fit into KeptBytes, so that a later
	// job with the same name, windows and first lane does not compute them again.
	Base string `json:"base,omitempty"`
	// FullWindow gives layers with sliding windows caches for the whole context.
	FullWindow bool `json:"full_window,omitempty"`
}

// KeptBytes bounds the logits that the worker keeps.
const KeptBytes = 2 << 30

// Measured has one entry per lane. The blobs are NLL, KLD and most likely tokens of each lane,
// as ppl.Scores has them.
type Measured struct {
	Lanes []MeasuredLane `json:"lanes"`
	// DecodeCPU is what the library's forward passes took of CPU in this job, CPU what the worker has taken
	// since it was started, in seconds of all its threads.
	DecodeCPU float64 `json:"decode_cpu"`
	CPU       float64 `json:"cpu"`
}

// MeasuredLane is what a lane's context took, and how far its logits are from the base's.
type MeasuredLane struct {
	MaxAbsDLogit float64 `json:"max_abs_dlogit"`
	TokenBytes   int64   `json:"token_bytes"` // of the caches, per token
	CacheBytes   int64   `json:"cache_bytes"` // of the caches
	Note         string  `json:"note,omitempty"`
}

// Wants says which activations of a layer are needed: each costs a stop or a copy.
type Wants struct {
	Pre bool `json:"pre,omitempty"` // queries and keys before RoPE
	QKV bool `json:"qkv,omitempty"` // queries, keys and values as they are scored and stored
	// NoValues leaves values out.
	NoValues bool `json:"no_values,omitempty"`
	In       bool `json:"in,omitempty"`  // the layer's normed input
	FFN      bool `json:"ffn,omitempty"` // the normed input of the FFN
}

// Tap runs windows and sends activations.
type Tap struct {
	Model   int    `json:"model"`
	Ctx     int    `json:"ctx"`
	Wants   Wants  `json:"wants"`
	Threads int    `json:"threads"`
	Patch   string `json:"patch,omitempty"`
	// Layers, if not nil, are those that are wanted.
	Layers []int `json:"layers,omitempty"`
}

// Sums runs windows and sums up statistics of keys, see engine.Summer.
type Sums struct {
	Model int    `json:"model"`
	Ctx   int    `json:"ctx"`
	Patch string `json:"patch,omitempty"`
	engine.KeySums
}

// Names of activations, in Tapped.
const (
	TapQ    = "q"
	TapK    = "k"
	TapV    = "v"
	TapQPre = "q_pre"
	TapKPre = "k_pre"
	TapIn   = "in"
	TapFFN  = "ffn"
)

// Tapped is the activations of one layer in one window; the blobs are float32, token by token,
// [tokens, heads, d] or [tokens, width].
type Tapped struct {
	Window int      `json:"window"`
	Layer  int      `json:"layer"`
	Names  []string `json:"names"`
}

// Patch keeps tensors for lanes: Names[i] gets the bytes of blob i, in the type that the library
// holds the tensor in. An empty list forgets the patch.
type Patch struct {
	Model int      `json:"model"`
	Name  string   `json:"name"`
	Names []string `json:"names"`
}

// Progress is how much of a job is done.
type Progress struct {
	Done  int `json:"done"`
	Total int `json:"total"`
}

// Failure is an error of a job; the worker goes on.
type Failure struct {
	Message string `json:"message"`
}
