package llama

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/verify/engine"
)

// Env names a folder with llama.cpp's libraries, or the libllama file itself.
const Env = "PHASECONV_LLAMA"

// WorkerName is the program that runs them.
const WorkerName = "phaseconv-llama"

// WorkerProtocol is the worker's argument. It changes with the jobs.
const WorkerProtocol = "engine-2"

// TestedReleases are the releases of llama.cpp that the engine's tests ran with, as ReleaseName gives
// them. Others work if their layouts are found; there is a warning.
var TestedReleases = []string{
	"0.5.0-dev, ggml 0.25.1", // what @node-llama-cpp 3.22.1 has as v0.5.0
}

// ReleaseName joins what llama_version and ggml_version give.
func ReleaseName(llama, ggml string) string {
	return cmp.Or(llama, "that does not tell its release") + ", ggml " + ggml
}

// howToGet is said where there is no library.
const howToGet = `llama.cpp's shared libraries (libllama, libggml) come with its release archives
(github.com/ggml-org/llama.cpp/releases), with package managers (brew install llama.cpp), and in the npm
packages @node-llama-cpp/linux-x64 (also -cuda and -vulkan), bins/linux-x64 in them; name the folder with
--engine llama:DIR or in ` + Env

// libraryFiles are the names that libllama goes by in a folder.
func libraryFiles() []string {
	suffix := ".so"
	if runtime.GOOS == "darwin" {
		suffix = ".dylib"
	}
	return []string{"libllama" + suffix, "libllama.v*" + suffix, "libllama.b*" + suffix, "libllama" + suffix + ".*"}
}

// hasLibrary says whether libllama is in a folder.
func hasLibrary(dir string) bool {
	return slices.ContainsFunc(libraryFiles(), func(p string) bool {
		m, err := filepath.Glob(filepath.Join(dir, p))
		return err == nil && len(m) > 0
	})
}

// FindLibrary returns the folder of llama.cpp's libraries: dir if it is not "", else the first of
// PHASECONV_LLAMA, the program's own folder and its lib, and the system's folders that has one.
func FindLibrary(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv(Env)
	}
	if dir != "" {
		st, err := os.Stat(dir)
		if err != nil {
			return "", fmt.Errorf("--engine llama, or %s: %w; name the folder with libllama", Env, err)
		}
		if !st.IsDir() {
			dir = filepath.Dir(dir)
		}
		if !hasLibrary(dir) {
			return "", fmt.Errorf("%s: no %s there; %s", dir, libraryFiles()[0], howToGet)
		}
		return dir, nil
	}
	var tried []string
	if exe, err := os.Executable(); err == nil {
		own := filepath.Dir(exe)
		tried = append(tried, own, filepath.Join(own, "lib"), filepath.Join(own, "..", "lib"))
	}
	tried = append(tried, filepath.SplitList(os.Getenv("LD_LIBRARY_PATH"))...)
	tried = append(tried, "/usr/local/lib", "/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu",
		"/usr/lib/aarch64-linux-gnu", "/opt/homebrew/lib", "/home/linuxbrew/.linuxbrew/lib")
	for _, d := range tried {
		if d != "" && hasLibrary(d) {
			return d, nil
		}
	}
	return "", fmt.Errorf("no libllama was found in %s; %s", strings.Join(tried, ", "), howToGet)
}

// FindWorker returns the worker program: beside this program, or in the path.
func FindWorker() (string, error) {
	var tried []string
	if exe, err := os.Executable(); err == nil {
		tried = append(tried, filepath.Join(filepath.Dir(exe), WorkerName))
	}
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(d) {
			tried = append(tried, filepath.Join(d, WorkerName))
		}
	}
	for _, path := range tried {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("the engine's program %s is neither beside this one nor in PATH; build it: go build ./cmd/%s",
		WorkerName, WorkerName)
}

// A Spec is what --engine says: "own", "llama", "llama:DIR" or "auto".
type Spec struct {
	Kind string // engine.Own, engine.Llama or Auto
	Dir  string
}

// Auto takes the own pass for the families that it knows, and llama.cpp for others.
const Auto = "auto"

// ParseSpec reads the value of --engine; "" is own.
func ParseSpec(s string) (Spec, error) {
	kind, dir, has := strings.Cut(s, ":")
	switch {
	case s == "":
		return Spec{Kind: engine.Own}, nil
	case kind == engine.Llama && (!has || dir != ""):
		return Spec{engine.Llama, dir}, nil
	case (kind == engine.Own || kind == Auto) && !has:
		return Spec{Kind: kind}, nil
	}
	return Spec{}, fmt.Errorf("%q is no engine; there are own, llama, llama:DIR (a folder with libllama) and auto", s)
}
