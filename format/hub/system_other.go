//go:build !(linux || darwin)

package hub

import "os"

// lockFile: files are not locked here; two processes that download the same file both write it.
func lockFile(*os.File) error { return nil }

// freeSpace is not known here.
func freeSpace(string) (int64, bool) { return 0, false }
