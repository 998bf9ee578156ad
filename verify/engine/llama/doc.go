// Package llama is the engine on stock llama.cpp: any architecture, any device, and devices of other
// machines. A worker program (cmd/phaseconv-llama) loads the library and does jobs; this package
// finds both, starts the worker and speaks with it. It needs no cgo, and programs that import it
// stay static.
//
// What comes from this engine is reproducible with the same release, devices, instruction set and
// batch size, and not beyond: see engine.Identity.
package llama
