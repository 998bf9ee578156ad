// Package texts embeds texts, so that a first run needs no file: one to calibrate on and one,
// disjoint from it, to measure on, both the opening 200,000 bytes of novels by Jane Austen in the
// public domain; and short texts of other kinds to measure on, written for this program.
package texts

import _ "embed"

// Calibration is from Northanger Abbey. Never measure on it.
//
//go:embed calibration.txt
var Calibration []byte

// Evaluation is from Persuasion. Never fit to it.
//
//go:embed evaluation.txt
var Evaluation []byte

// Names of the texts in manifests.
const (
	CalibrationName = "embedded:northanger-abbey"
	EvaluationName  = "embedded:persuasion"
)

//go:embed chat.jsonl
var chat []byte

//go:embed code.txt
var code []byte

//go:embed prose.txt
var prose []byte

//go:embed nonlatin.txt
var nonlatin []byte

// A Kind is a text of one kind to measure on. Never fit to it.
type Kind struct {
	Name string // in manifests and on the command line
	Kind string
	Data []byte
	Chat bool // conversations, one JSON object a line, see chat.Parse
}

// Kinds lists the embedded texts to measure on.
//
//   - chat: conversations with calls of tools, for models with a chat template
//   - code: Go, Python and shell, parts of this program as it once was
//   - prose: stories, a passage of an encyclopaedia, an essay and a direction
//   - nonlatin: Russian, Chinese, Japanese, Korean, Arabic, Hindi, Greek, Hebrew and Thai
//   - novel: Evaluation, long enough for contexts of 32k tokens; models may have read it
func Kinds() []Kind {
	return []Kind{
		{"embedded:chat", "chat", chat, true},
		{"embedded:code", "code", code, false},
		{"embedded:prose", "prose", prose, false},
		{"embedded:nonlatin", "nonlatin", nonlatin, false},
		{EvaluationName, "novel", Evaluation, false},
	}
}
