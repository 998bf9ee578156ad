//go:build !linux

package main

import (
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts that need these are skipped.
const posix = false

func limitFiles(uint64)                              { panic("not here") }
func cpuTime(int) (time.Duration, bool)              { return 0, false }
func fifo(*testscript.TestScript, string)            { panic("not here") }
func canMount() bool                                 { return false }
func mountfs(*testscript.TestScript, bool, []string) { panic("not here") }
