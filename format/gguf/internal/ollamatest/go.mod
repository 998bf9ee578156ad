module phaseconv/format/gguf/internal/ollamatest

go 1.26.0

require (
	github.com/ollama/ollama v0.17.4
	phaseconv v0.0.0
)

require golang.org/x/sync v0.17.0 // indirect

replace phaseconv => ../../../..
