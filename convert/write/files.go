package write

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/format/stream"
	"github.com/phaseconv/phaseconv/spec"
)

// File writes data to a file in dir and describes it.
func File(dir, name string, data []byte) (spec.File, error) {
	out, err := atomicfile.Create(filepath.Join(dir, name))
	if err != nil {
		return spec.File{}, err
	}
	defer out.Abort()
	if _, err := out.Write(data); err != nil {
		return spec.File{}, err
	}
	return spec.File{Name: name, Bytes: out.Offset(), SHA256: out.SHA256()}, out.Commit()
}

// Copy copies a file from one folder to another and describes it.
func Copy(ctx context.Context, from, to, name string) (spec.File, error) {
	return CopyAs(ctx, filepath.Join(from, name), to, name)
}

// CopyAs copies a file into a folder, where it has another name, and describes it.
func CopyAs(ctx context.Context, path, to, name string) (spec.File, error) {
	in, err := os.Open(path)
	if err != nil {
		return spec.File{}, err
	}
	defer in.Close()
	out, err := atomicfile.Create(filepath.Join(to, name))
	if err != nil {
		return spec.File{}, err
	}
	defer out.Abort()
	if err := stream.Copy(ctx, out, in, nil); err != nil {
		return spec.File{}, fmt.Errorf("%s: %w", path, err)
	}
	return spec.File{Name: name, Bytes: out.Offset(), SHA256: out.SHA256()}, out.Commit()
}

// Describe reads a file that others wrote into dir.
func Describe(ctx context.Context, dir, name string) (spec.File, error) {
	path := filepath.Join(dir, name)
	st, err := os.Stat(path)
	if err != nil {
		return spec.File{}, err
	}
	sum, err := checkpoint.FileDigest(ctx, path, nil)
	return spec.File{Name: name, Bytes: st.Size(), SHA256: sum}, err
}

// setSwitch sets a boolean member in the text of a config.json and leaves every other byte as it is.
func setSwitch(raw []byte, key string, value bool) ([]byte, error) {
	var m map[string]json.RawMessage
	if err := jsonx.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	text := strconv.FormatBool(value)
	set := func(raw []byte) bool {
		var got map[string]json.RawMessage
		if jsonx.Unmarshal(raw, &got) != nil || string(got[key]) != text {
			return false
		}
		delete(got, key)
		delete(m, key)
		return maps.EqualFunc(got, m, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
	}
	if _, ok := m[key]; !ok {
		at := bytes.IndexByte(raw, '{') + 1
		raw = slices.Concat(raw[:at], fmt.Appendf(nil, "\n  %q: %s,", key, text), raw[at:])
	} else {
		raw = regexp.MustCompile(`("`+key+`"\s*:\s*)(?:true|false|null)`).ReplaceAll(raw, []byte("${1}"+text))
	}
	if !set(raw) {
		return nil, fmt.Errorf("%s cannot be set: use --format gguf", key)
	}
	return raw, nil
}

// configJSON returns the source's config.json with the phaseconv object put in,
// with biases attention_bias set, and untied tie_word_embeddings unset; everything else byte for byte.
func configJSON(dir string, info any, biases, untied bool) ([]byte, error) {
	raw, err := hf.ReadRaw(dir)
	if err != nil {
		return nil, err
	}
	if biases {
		if raw, err = setSwitch(raw, "attention_bias", true); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, hf.ConfigName), err)
		}
	}
	if untied {
		if raw, err = setSwitch(raw, "tie_word_embeddings", false); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, hf.ConfigName), err)
		}
	}
	obj, err := json.MarshalIndent(info, "  ", "  ")
	if err != nil {
		return nil, err
	}
	text := strings.TrimRight(string(raw), " \t\r\n")
	body, ok := strings.CutSuffix(text, "}")
	if !ok {
		return nil, fmt.Errorf("%s: config.json does not end in }", dir)
	}
	body = strings.TrimRight(body, " \t\r\n")
	sep := ","
	if strings.HasSuffix(body, "{") {
		sep = ""
	}
	return []byte(body + sep + "\n  \"" + spec.ConfigObject + "\": " + string(obj) + "\n}\n"), nil
}

// auxiliaryFiles lists the files beside the weights that a loader needs; others stay
// behind, weights in other formats above all.
func auxiliaryFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		n := e.Name()
		// Of the file that a link points to: the download cache of the Hugging Face
		// tools is a folder of links.
		st, err := os.Stat(filepath.Join(dir, n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil || !st.Mode().IsRegular() ||
			n == hf.ConfigName || n == safetensors.IndexName || n == spec.ManifestName {
			continue
		}
		switch strings.ToLower(filepath.Ext(n)) {
		case ".json", ".txt", ".model", ".jinja", ".md", ".tiktoken":
			out = append(out, n)
		case "":
			if u := strings.ToUpper(n); strings.HasPrefix(u, "LICENSE") || strings.HasPrefix(u, "NOTICE") {
				out = append(out, n)
			}
		}
	}
	return out, nil
}
