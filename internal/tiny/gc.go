package tiny

import (
	"os"
	"runtime/debug"
)

// Tests of small models have heaps of a few megabytes that fill many times a second: at the default
// percentage a third of their processor time is garbage collection. GOGC from outside counts.
func init() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}
