module github.com/phaseconv/phaseconv/format/gguf/internal/ollamatest

go 1.26.0

require (
	github.com/ollama/ollama v0.17.4
	github.com/phaseconv/phaseconv v0.0.0
)

require golang.org/x/sync v0.17.0 // indirect

replace github.com/phaseconv/phaseconv => ../../../..
