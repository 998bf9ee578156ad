// Package buildinfo names this program and the build it is.
package buildinfo

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Version is the release. The linker sets it in releases.
var Version = "0.1.0-dev"

// Tool names this program and its version in artifacts. Before a release the version says
// little, so the commit follows it where the build knows one, and ".modified" where files
// differed from it.
func Tool() string { return "phaseconv " + full(Read()) }

func full(b Build) string {
	if !strings.HasSuffix(b.Version, "-dev") || len(b.Revision) < 12 {
		return b.Version
	}
	v := b.Version + "+" + b.Revision[:12]
	if b.Modified {
		v += ".modified"
	}
	return v
}

// A Build describes a program.
type Build struct {
	Version string `json:"version"`
	// Revision is the commit that it was built from, "" if it is not known, and Modified says
	// that files differed from it.
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// Read describes the running program on this machine.
func Read() Build {
	b := Build{Version: Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Revision = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}
