// Package nlptest compares format/safetensors with the independent reader and
// writer of nlpodyssey. It is a module of its own so that phaseconv itself does
// not depend on that. Run it with
//
//	cd format/safetensors/internal/nlptest && go test -mod=mod ./...
//
// (-mod=mod lets the requirements of phaseconv change without an edit here.)
package nlptest
