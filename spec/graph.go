package spec

// A Graph describes the attention of a model whose architecture has no entry in the table of families,
// as llama.cpp computes it: read from the graph that it runs, not from the architecture's name. A
// manifest with one is about a model that only an engine on llama.cpp computes.
type Graph struct {
	Architecture string `json:"architecture"` // general.architecture of the GGUF file
	Hidden       int    `json:"hidden_size"`
	Vocab        int    `json:"vocab_size"`
	Context      int    `json:"context_length"`
	// PairLayout is how RoPE pairs the dimensions that it turns: half or interleaved.
	PairLayout string       `json:"pair_layout"`
	Caches     []GraphCache `json:"caches"` // in the order in which layers run
}

// A GraphCache is one K cache and what writes and reads it.
type GraphCache struct {
	Block    int     `json:"block"` // number of the layer in the file: blk.N
	Heads    int     `json:"n_heads"`
	KVHeads  int     `json:"n_kv_heads"`
	HeadDim  int     `json:"head_dim"`
	ValueDim int     `json:"value_dim"` // 0: values are a part of the keys
	Scale    float64 `json:"scale"`     // of scores
	// Rope is absent where positions are not in the keys, or where RopeUnknown says that they are in a
	// way that this object has no words for.
	Rope        *GraphRope `json:"rope,omitempty"`
	RopeUnknown bool       `json:"rope_unknown,omitempty"`
	// Norm is none, head or projection: over what queries and keys are normed; LateNorm says that it
	// is behind RoPE.
	Norm     string `json:"qk_norm"`
	LateNorm bool   `json:"late_norm,omitempty"`
	Sinks    bool   `json:"sinks,omitempty"`
	// FixedKeys and FixedValues name the operation through which no edit of keys, or values, passes.
	FixedKeys   string        `json:"fixed_keys,omitempty"`
	FixedValues string        `json:"fixed_values,omitempty"`
	Tensors     []GraphTensor `json:"tensors"`
}

// A GraphRope is how a cache's keys are turned.
type GraphRope struct {
	Dim             int       `json:"dim"` // dimensions of a head that turn, from the first on
	Theta           float64   `json:"theta"`
	Scaling         string    `json:"scaling,omitempty"` // linear, yarn or divisor
	Factor          float64   `json:"factor,omitempty"`
	OriginalContext int       `json:"original_context,omitempty"`
	BetaFast        float64   `json:"beta_fast,omitempty"`
	BetaSlow        float64   `json:"beta_slow,omitempty"`
	Divisors        []float64 `json:"divisors,omitempty"` // one for each pair
}

// A GraphTensor is a tensor by what it does: rows [Row, Row+Rows) of tensor Name.
type GraphTensor struct {
	Role string `json:"role"` // attn_k.weight, attn_q_norm.weight, ...
	Name string `json:"name"`
	Row  int    `json:"row"`
	Rows int    `json:"rows"`
	// Optional: the source may lack the tensor, a vector of float32; the library takes it where it is
	// there, and a conversion may add it.
	Optional bool `json:"optional,omitempty"`
}
