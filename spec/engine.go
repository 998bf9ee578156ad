package spec

// EngineIdentity is what the results of an engine depend on beside the model, the text and the options.
// Results of two identities may differ in their last bits, and must not be mixed.
type EngineIdentity struct {
	Engine string `json:"engine"` // own or llama
	// The rest is empty for the own pass, whose results depend on nothing else.
	Release   string   `json:"release,omitempty"` // of llama.cpp, as the library tells it
	GGML      string   `json:"ggml,omitempty"`
	Commit    string   `json:"commit,omitempty"`
	Libraries string   `json:"libraries_sha256,omitempty"` // of the lines "<sha256>  <name>" of the libraries
	Platform  string   `json:"platform,omitempty"`
	System    string   `json:"system,omitempty"` // instruction sets and options of the library
	Devices   []string `json:"devices,omitempty"`
	GPULayers int      `json:"gpu_layers,omitempty"`
	Batch     int      `json:"ubatch,omitempty"` // tokens that are computed at a time
}
