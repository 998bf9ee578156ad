package checkpoint

import (
	"encoding/hex"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/format/jsonx"
)

// Name returns what the model is called: the base name of its folder or file. A name
// that is only a digest says nothing, so a snapshot in the download cache of the
// Hugging Face tools (models--ORG--NAME/snapshots/COMMIT) has the name of its
// repository, another folder the one that config.json carries, and a file named by
// its digest, as in the store of ollama, its general.name. The last resort is "model".
func (c *Checkpoint) Name() string {
	abs, err := filepath.Abs(c.Path)
	if err != nil {
		abs = c.Path
	}
	base := filepath.Base(abs)
	if !digestLike(base) {
		return base
	}
	if up := filepath.Dir(abs); filepath.Base(up) == "snapshots" {
		if repo, ok := strings.CutPrefix(filepath.Base(filepath.Dir(up)), "models--"); ok {
			if _, name, ok := strings.Cut(repo, "--"); ok {
				repo = name
			}
			if usable(repo) {
				return repo
			}
		}
	}
	said := ""
	if f := c.File(); f != nil {
		said, _ = f.String("general.name")
	} else {
		said = c.nameOrPath()
		if said = strings.TrimRight(said, "/"); strings.Count(said, "/") > 1 {
			said = "" // a path of some other machine
		}
		said = said[strings.LastIndexByte(said, '/')+1:]
	}
	if usable(said) {
		return said
	}
	return "model"
}

// digestLike says whether a name is a digest, as whoever stores files by content
// names them: 40 hex digits or more, after "sha256-" or "sha256:" or nothing.
func digestLike(name string) bool {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "sha256-"), "sha256:")
	_, err := hex.DecodeString(name)
	return err == nil && len(name) >= 40
}

func usable(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 200 &&
		!strings.ContainsAny(name, "/\\\x00\n") && !digestLike(name)
}

// nameOrPath returns _name_or_path of config.json, "" if there is none.
func (c *Checkpoint) nameOrPath() string {
	var doc struct {
		Name string `json:"_name_or_path"`
	}
	if b, ok := c.b.(*hfBackend); ok {
		if raw, err := b.configText(); err == nil && jsonx.Unmarshal(raw, &doc) == nil {
			return doc.Name
		}
	}
	return ""
}
