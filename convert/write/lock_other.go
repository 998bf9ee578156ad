//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package write

import "os"

// lockFolder: folders cannot be locked here.
func lockFolder(string) (*os.File, error) { return nil, errNoLocks }
