//go:build !((linux || darwin) && (amd64 || arm64))

// Command phaseconv-llama is the worker of phaseconv's engine on stock libllama, on Linux and
// macOS.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "phaseconv-llama: the engine on libllama runs on Linux and macOS, amd64 and arm64")
	os.Exit(2)
}
