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
	path := filepath.Join(from, name)
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

// announceBiases sets attention_bias in the text of a config.json and leaves every
// other byte as it is.
func announceBiases(raw []byte) ([]byte, error) {
	var m map[string]json.RawMessage
	if err := jsonx.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	set := func(raw []byte) bool {
		var got map[string]json.RawMessage
		if jsonx.Unmarshal(raw, &got) != nil || string(got["attention_bias"]) != "true" {
			return false
		}
		delete(got, "attention_bias")
		delete(m, "attention_bias")
		return maps.EqualFunc(got, m, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
	}
	if _, ok := m["attention_bias"]; !ok {
		at := bytes.IndexByte(raw, '{') + 1
		raw = slices.Concat(raw[:at], []byte("\n  \"attention_bias\": true,"), raw[at:])
	} else {
		raw = biasSwitch.ReplaceAll(raw, []byte("${1}true"))
	}
	if !set(raw) {
		return nil, errors.New("attention_bias cannot be set: use --format gguf")
	}
	return raw, nil
}

var biasSwitch = regexp.MustCompile(`("attention_bias"\s*:\s*)(?:false|null)`)

// configJSON returns the source's config.json with the phaseconv object put in,
// and with biases attention_bias set, everything else byte for byte.
func configJSON(dir string, info any, biases bool) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(dir, hf.ConfigName))
	if err != nil {
		return nil, err
	}
	if biases {
		if raw, err = announceBiases(raw); err != nil {
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
