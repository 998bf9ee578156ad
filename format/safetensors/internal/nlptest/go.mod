module github.com/phaseconv/phaseconv/format/safetensors/internal/nlptest

go 1.26.0

require (
	github.com/nlpodyssey/safetensors v0.0.0-20250209183917-bfb01cc25f7c
	github.com/phaseconv/phaseconv v0.0.0
)

replace github.com/phaseconv/phaseconv => ../../../..
