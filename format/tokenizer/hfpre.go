package tokenizer

import (
	"fmt"
	"strings"
)

// hfStep is one node of the normalizer, pre_tokenizer or decoder of a
// tokenizer.json; a Sequence holds others.
type hfStep struct {
	Type          string
	Pretokenizers []hfStep
	Normalizers   []hfStep
	Processors    []hfStep

	Pattern          struct{ String, Regex *string }
	Behavior         string
	Invert           bool
	IndividualDigits bool    `json:"individual_digits"`
	AddPrefixSpace   bool    `json:"add_prefix_space"`
	UseRegex         *bool   `json:"use_regex"`
	Content          string  // Replace
	Prepend          string  // Prepend
	PrependScheme    *string `json:"prepend_scheme"` // Metaspace
	Replacement      string  // Metaspace

	// TemplateProcessing; RobertaProcessing and BertProcessing use Cls and Sep.
	Single []hfTemplate
	Cls    []any
	Sep    []any
}

// hfTemplate is one part of a TemplateProcessing.
type hfTemplate struct {
	SpecialToken *struct{ ID string }
	Sequence     *struct{ ID string }
}

// flatten lists the steps of a tree of Sequences in order.
func (s *hfStep) flatten() []*hfStep {
	if s == nil || s.Type == "" {
		return nil
	}
	var out []*hfStep
	subs := [][]hfStep{s.Pretokenizers, s.Normalizers, s.Processors}
	if s.Type != "Sequence" {
		return []*hfStep{s}
	}
	for _, list := range subs {
		for i := range list {
			out = append(out, list[i].flatten()...)
		}
	}
	return out
}

// Patterns of tokenizer.json files, as they stand there.
const (
	reGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	reFold   = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	reUnfold = `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`
	reLlama3 = reFold + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	reQwen2  = reFold + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	reQwen35 = reFold + `|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	reUpper  = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
	reLower  = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	reTail   = `| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	reLead   = `[^\r\n\p{L}\p{N}]?`
	reTekken = reLead + reUpper + `*` + reLower + `+|` + reLead + reUpper + `+` + reLower + `*|\p{N}` + reTail
	reGPT4o  = reLead + reUpper + `*` + reLower + `+` + reFold + `?|` + reLead + reUpper + `+` + reLower + `*` + reFold +
		`?|\p{N}{1,3}` + reTail
	reDigit   = `\p{N}`
	reDSKana  = "[一-龥\u3040-ゟ゠-ヿ]+"
	reDSWords = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

// hfPatterns names the sequences of patterns that llama.cpp has a
// pre-tokenizer for.
var hfPatterns = map[string]string{
	patternKey(reGPT2):                            "gpt-2",
	patternKey(reDigit, reGPT2):                   "smollm",
	patternKey(reLlama3):                          "llama-bpe",
	patternKey(reQwen2):                           "qwen2",
	patternKey(reQwen35):                          "qwen35",
	patternKey(reTekken):                          "tekken",
	patternKey(reGPT4o):                           "gpt-4o",
	patternKey(`\p{N}{1,3}`, reDSKana, reDSWords): "deepseek-v3",
}

func patternKey(patterns ...string) string { return strings.Join(patterns, "\x00") }

// detectPre finds the llama.cpp name for the pre_tokenizer of a byte-level BPE
// tokenizer.json by what it does, not by whose model it is.
func detectPre(file string, root *hfStep, ignoreMerges bool) (name string, notes []string, err error) {
	const key = "pre_tokenizer"
	unsupported := func(what string) error {
		return &UnsupportedError{File: file, Key: key, What: what,
			Hint: "llama.cpp must know a pre-tokenizer to run the model; if it does, add it to format/tokenizer"}
	}
	var patterns []string
	bytes := false // ByteLevel was seen
	for _, s := range root.flatten() {
		if bytes {
			// It would see the spelling of bytes instead of text.
			return "", nil, unsupported(fmt.Sprintf("pre-tokenizer step %q after ByteLevel", s.Type))
		}
		switch s.Type {
		case "ByteLevel":
			bytes = true
			if s.UseRegex == nil || *s.UseRegex {
				patterns = append(patterns, reGPT2)
			}
			if s.AddPrefixSpace {
				notes = append(notes, "Hugging Face puts a space before the text (add_prefix_space); llama.cpp does not for byte-level BPE.")
			}
		case "Digits":
			digits := reDigit
			if !s.IndividualDigits {
				digits += "+"
			}
			patterns = append(patterns, digits)
		case "Split":
			// "Removed" with invert keeps the matches and drops the gaps; the
			// patterns it is used with leave no gaps.
			isolated := s.Behavior == "Isolated" && !s.Invert || s.Behavior == "Removed" && s.Invert
			if s.Pattern.Regex == nil || !isolated {
				return "", nil, unsupported(fmt.Sprintf("Split with behavior %q, invert %t", s.Behavior, s.Invert))
			}
			patterns = append(patterns, strings.ReplaceAll(*s.Pattern.Regex, reUnfold, reFold))
		default:
			return "", nil, unsupported(fmt.Sprintf("pre-tokenizer step %q", s.Type))
		}
	}
	if !bytes {
		return "", nil, unsupported("BPE without a ByteLevel step")
	}
	name, ok := hfPatterns[patternKey(patterns...)]
	if !ok {
		return "", nil, unsupported(fmt.Sprintf("the sequence of patterns %.200q", patterns))
	}
	switch name {
	case "llama-bpe":
		if !ignoreMerges {
			name = "smaug-bpe" // the same pattern, merges not ignored
		}
	case "tekken", "gpt-4o":
		notes = append(notes, "The pattern tells upper from lower case and takes marks in words; llama.cpp's form of it does so for ASCII only.")
	}
	if p := preTokenizers[name]; p.ignoreMerges != ignoreMerges {
		notes = append(notes, fmt.Sprintf("tokenizer.json has ignore_merges %t; llama.cpp's %s has %t.",
			ignoreMerges, name, p.ignoreMerges))
	}
	return name, notes, nil
}
