//go:build (linux || darwin) && (amd64 || arm64)

// Command phaseconv-llama is the worker of phaseconv's engine on stock libllama. phaseconv starts
// it and sends it jobs over pipes (file descriptors 3 and 4); nobody else has a use for it. It is
// a program of its own because llama.cpp's libraries end the process where an assertion of theirs
// fails, and because loading them makes a program dynamic: phaseconv stays static and survives.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/worker"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
)

func main() {
	if len(os.Args) != 2 || os.Args[1] != worker.Handshake {
		fmt.Fprintf(os.Stderr, "phaseconv-llama %s is started by phaseconv (--engine llama)\n", buildinfo.Version)
		os.Exit(2)
	}
	// llama.cpp writes to a server that went away: it must see the error, and say which server, instead of
	// ending at the signal without a word.
	signal.Ignore(syscall.SIGPIPE)
	in, out := os.NewFile(3, "requests"), os.NewFile(4, "results")
	if err := worker.Serve(in, out, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "phaseconv-llama:", err)
		os.Exit(1)
	}
}
