// Command phaseconv converts language-model checkpoints so that their KV cache
// survives very few bits, and measures what that costs.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/phaseconv/phaseconv/cmd/phaseconv/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once, for those who cannot wait.
	context.AfterFunc(ctx, stop)
	// A model's activations are few large blocks; collecting more often than the default keeps
	// the peak near what is in use. Who sets GOGC has a reason.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	os.Exit(command.Run(ctx, os.Args, os.Stdout, os.Stderr))
}
