package tokenizer

// Limits on what is read from files. Real tokenizers stay far below: Gemma's,
// among the largest, has 262,144 tokens and 514,906 merges.
const (
	// MaxVocab is the largest number of tokens, and one more than the largest token id.
	MaxVocab = 1 << 21
	// MaxMerges is the largest number of BPE merges.
	MaxMerges = 1 << 23
	// MaxTokenLen is the largest length of one token, in bytes.
	MaxTokenLen = 1 << 16
	// MaxAddedTokens is the largest number of entries in added_tokens.
	MaxAddedTokens = 1 << 18
	// MaxFileSize is the largest tokenizer.json or tokenizer.model, in bytes.
	MaxFileSize = 1 << 29
	// MaxConfigSize is the largest of the small JSON files beside it, in bytes.
	// tokenizer_config.json repeats the added tokens and holds the chat template.
	MaxConfigSize = 1 << 26
	// MaxTemplateSize is the largest chat template, in bytes.
	MaxTemplateSize = 1 << 24

	// maxWordLen bounds the symbols that one run of the merge loop indexes with
	// int32. Longer words are cut there, which changes no text in practice.
	maxWordLen = 1 << 30
	// maxSmallMerge is the number of symbols up to which a linear scan for the
	// best pair beats a heap.
	maxSmallMerge = 32
)
