// Package ollamatest compares format/gguf with the independent GGUF readers and
// writer of ollama. It is a module of its own so that programs that import phaseconv
// need not fetch ollama (docs/adr/0008-oracles.md). Run it with
//
//	cd format/gguf/internal/ollamatest && go test -mod=mod ./...
//
// (-mod=mod lets the requirements of phaseconv change without an edit here.)
// Set PHASECONV_MODELS to a folder with GGUF files to compare on those too.
package ollamatest
