// Package texts embeds two short texts, so that a first run needs no file: one to
// calibrate on and one, disjoint from it, to measure on. Both are the opening
// 200,000 bytes of novels by Jane Austen in the public domain.
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
