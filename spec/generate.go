package spec

// GenerateJSON is what `phaseconv generate --json` prints. Its keys are stable.
type GenerateJSON struct {
	Tool   string `json:"tool"`
	Prompt string `json:"prompt"`
	// PromptTokens counts the tokens of the prompt, those that the tokenizer adds included.
	PromptTokens int     `json:"prompt_tokens"`
	Temperature  float64 `json:"temperature"`
	Seed         uint64  `json:"seed"`
	// Anchor, Sink and Recent are the policy of the coded cache.
	Anchor int `json:"anchor"`
	Sink   int `json:"sink"`
	Recent int `json:"recent"`
	// Runs has the text with the coded cache, and with the float one if that was asked for.
	Runs []GeneratedText `json:"runs"`
	// SameTokens is how many tokens both texts begin with; absent with one run.
	SameTokens *int `json:"same_tokens,omitempty"`
}

// GeneratedText is one text, and the cache it came from.
type GeneratedText struct {
	Cache  string `json:"cache"` // coded or float
	Text   string `json:"text"`
	Tokens []int  `json:"tokens"`
	// Ended says that the model ended the text itself.
	Ended bool `json:"ended"`
	// PromptSeconds contains the reading of the weights in the first run.
	PromptSeconds float64 `json:"prompt_seconds"`
	// TokensPerSecond is that of decoding; absent for fewer than two tokens.
	TokensPerSecond *float64 `json:"tokens_per_second,omitempty"`
	// CacheTokens are the tokens in the cache at the end.
	CacheTokens int `json:"cache_tokens"`
	// CodedBytes is what has a code takes: signs, scales, and the kept tokens in F16. The
	// same keys and values take CodedF16Bytes in F16.
	CodedBytes    int `json:"coded_bytes"`
	CodedF16Bytes int `json:"coded_f16_bytes"`
	// FloatBytes are those of keys and values that have no code, in float32.
	FloatBytes int `json:"float32_bytes"`
}
