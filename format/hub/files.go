package hub

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A File is a file of a repository.
type File struct {
	Name string // with slashes
	Size int64  // -1 if it is not known
	// ETag is the name of its blob: the SHA-256 of large files (LFS), Git's SHA-1 of others; ""
	// if it is not known.
	ETag string
}

// safeName says whether a file's name, which a server chose, stays inside of a folder.
func safeName(name string) bool {
	return name != "" && name == path.Clean(name) && !path.IsAbs(name) && name != ".." && !strings.HasPrefix(name, "../") &&
		!strings.ContainsAny(name, "\\:\x00\n\r") && len(name) < 1024
}

// auxiliary are the kinds of files that a checkpoint needs beside its weights.
var auxiliary = []string{".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}

var (
	shard = regexp.MustCompile(`-\d{5}-of-\d{5}\.gguf$`)
	// numbered is the name of a shard in either format: before, number, total, ending.
	numbered = regexp.MustCompile(`^(.*-)(\d{5})-of-(\d{5})(\.[a-z]+)$`)
)

// missingShard returns the name of the first shard that files lack, "" if they are complete: weights
// of which only a part was downloaded are as good as none.
func missingShard(files []File) string {
	have := map[string]bool{}
	for _, f := range files {
		have[f.Name] = true
	}
	for _, f := range files {
		m := numbered.FindStringSubmatch(f.Name)
		if m == nil {
			continue
		}
		total, _ := strconv.Atoi(m[3]) // five digits, by the pattern
		for i := 1; i <= total; i++ {
			if name := fmt.Sprintf("%s%05d-of-%s%s", m[1], i, m[3], m[4]); !have[name] {
				return name
			}
		}
	}
	return ""
}

// Choose picks the files of a model out of those of a repository: one GGUF model, all shards of it,
// if a quantisation is named or there are no safetensors weights; else the safetensors checkpoint.
// main is the file to open, "" for the folder.
func Choose(r Ref, all []File) (files []File, main string, err error) {
	var ggufs, tensors, others []File
	for _, f := range all {
		switch base := path.Base(f.Name); {
		case strings.HasSuffix(f.Name, ".gguf"):
			if lower := strings.ToLower(base); !strings.HasPrefix(lower, "mmproj") && !strings.Contains(lower, "imatrix") {
				ggufs = append(ggufs, f)
			}
		case strings.Contains(f.Name, "/"): // originals, other formats, pictures
		case strings.HasSuffix(f.Name, ".safetensors"):
			tensors = append(tensors, f)
		case slices.Contains(auxiliary, path.Ext(base)) ||
			strings.HasPrefix(base, "LICENSE") || strings.HasPrefix(base, "NOTICE"):
			others = append(others, f)
		}
	}
	if r.Quant == "" && len(tensors) > 0 {
		return append(tensors, others...), "", nil
	}
	models := map[string][]File{} // by name without the number of a shard
	for _, f := range ggufs {
		name := shard.ReplaceAllString(f.Name, ".gguf")
		models[name] = append(models[name], f)
	}
	var names []string
	for n := range models {
		names = append(names, n)
	}
	slices.Sort(names)
	fits := func(q string) (out []string) {
		for _, n := range names {
			if hasQuant(n, q) {
				out = append(out, n)
			}
		}
		return out
	}
	var found []string
	switch {
	case r.Quant != "":
		found = fits(r.Quant)
	case len(names) == 1:
		found = names
	default:
		found = fits("Q4_K_M") // as llama.cpp's -hf
	}
	switch {
	case len(names) == 0:
		return nil, "", fmt.Errorf("%s has neither safetensors nor GGUF weights", r)
	case len(found) == 0:
		return nil, "", fmt.Errorf("%s: no file of that quantisation; there are %s", r, strings.Join(names, ", "))
	case len(found) > 1:
		return nil, "", fmt.Errorf("%s: several files fit: %s; name one as %s%s:QUANT", r, strings.Join(found, ", "), Prefix, r.Repo)
	}
	files = models[found[0]]
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files, files[0].Name, nil
}

// hasQuant says whether a file's name has a quantisation as one of its parts.
func hasQuant(name, quant string) bool {
	base := strings.ToLower(strings.TrimSuffix(path.Base(name), ".gguf"))
	at := strings.LastIndex(base, strings.ToLower(quant))
	if at < 0 {
		return false
	}
	before, after := at == 0 || strings.ContainsRune("-._", rune(base[at-1])), base[at+len(quant):]
	return before && after == ""
}
