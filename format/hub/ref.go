package hub

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Prefix makes a name one of the hub's, whatever is on the disk.
const Prefix = "hf:"

// A Ref names a model of the hub.
type Ref struct {
	Repo string // ORG/NAME
	// Revision is a branch, a tag or a commit; "" stands for main.
	Revision string
	// Quant names one GGUF encoding of a repository that has several, such as Q4_K_M.
	Quant string
}

// String writes the name as ParseRef reads it.
func (r Ref) String() string {
	s := r.Repo
	if r.Quant != "" {
		s += ":" + r.Quant
	}
	if r.Revision != "" {
		s += "@" + r.Revision
	}
	return Prefix + s
}

func (r Ref) revision() string {
	if r.Revision == "" {
		return "main"
	}
	return r.Revision
}

var (
	repoName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$`)
	revName  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$`)
	quant    = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	commit   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// ParseRef reads hf:ORG/NAME, hf:ORG/NAME:QUANT, hf:ORG/NAME@REVISION, and the same without hf:
// where Is says that it is such a name.
func ParseRef(name string) (Ref, error) {
	s := strings.TrimPrefix(name, Prefix)
	var r Ref
	var cut bool
	if s, r.Revision, cut = strings.Cut(s, "@"); cut && !validRevision(r.Revision) {
		return r, fmt.Errorf("%s: %q is not a revision (a branch, a tag or a commit)", name, r.Revision)
	}
	if s, r.Quant, cut = strings.Cut(s, ":"); cut && !quant.MatchString(r.Quant) {
		return r, fmt.Errorf("%s: %q is not a quantisation such as Q4_K_M", name, r.Quant)
	}
	r.Repo = s
	if !validRepo(s) {
		return r, fmt.Errorf("%s: %q is not the name of a model on the hub (ORG/NAME)", name, s)
	}
	return r, nil
}

// The hub's own rules: no "--" or "..", which its cache and URLs give another meaning.
func validRepo(s string) bool {
	return repoName.MatchString(s) && !strings.Contains(s, "--") && !strings.Contains(s, "..") &&
		!strings.HasSuffix(s, ".git")
}

func validRevision(s string) bool {
	return revName.MatchString(s) && !strings.Contains(s, "..") && !strings.Contains(s, "//") && !strings.HasSuffix(s, "/")
}

// Is says whether a name on the command line means a model of the hub: one with the prefix hf:, or
// ORG/NAME that is neither a path here nor below a folder here, and does not look like a file.
func Is(name string) bool {
	if strings.HasPrefix(name, Prefix) {
		return true
	}
	r, err := ParseRef(name)
	if err != nil {
		return false
	}
	switch strings.ToLower(filepath.Ext(r.Repo)) {
	case ".gguf", ".safetensors", ".json", ".txt", ".bin":
		return false
	}
	org, _, _ := strings.Cut(r.Repo, "/")
	for _, path := range []string{name, org} {
		if _, err := os.Lstat(path); err == nil {
			return false
		}
	}
	return true
}
