package command

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/hub"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

func inspectCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what is in GGUF, safetensors or sidecar files",
		ArgsUsage: "FILE|FOLDER...",
		Description: `Of a folder, its files of weights, sidecars and folds are shown.

Examples:
  phaseconv inspect model.gguf
  phaseconv inspect ./SmolLM2-135M
  phaseconv inspect out/model.phase.gguf --json
  phaseconv inspect HuggingFaceTB/SmolLM2-135M        # of the hub; only headers are downloaded`,
		Flags: []cli.Flag{jsonFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			if !c.Args().Present() {
				return usagef("inspect: name at least one file")
			}
			var all []*fileInfo
			for _, path := range c.Args().Slice() {
				found, err := inspectNamed(ctx, stderr, path)
				if err != nil {
					return err
				}
				all = append(all, found...)
			}
			if c.Bool("json") {
				return printJSON(stdout, all)
			}
			for i, f := range all {
				if i > 0 {
					fmt.Fprintln(stdout)
				}
				f.print(stdout)
			}
			return nil
		},
	}
}

// fileInfo is what inspect shows of one file.
type fileInfo struct {
	File      string       `json:"file"`
	Container string       `json:"container"`
	Bytes     int64        `json:"bytes"`
	Keys      []keyInfo    `json:"keys"`
	Tensors   []tensorInfo `json:"tensors"`
	Sidecar   *sidecarInfo `json:"sidecar,omitempty"`
}

type keyInfo struct {
	Key   string `json:"key"`
	Type  string `json:"type"`
	Value string `json:"value"`
}

type tensorInfo struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Shape []int  `json:"shape"`
	Bytes int64  `json:"bytes"`
}

type sidecarInfo struct {
	Code    string `json:"code"`
	Layers  int    `json:"layers"`
	Heads   int    `json:"heads"`
	HeadDim int    `json:"head_dim"`
	// Groups of all layers, what they code, and the length of the longest vector.
	Groups   int    `json:"groups,omitempty"`
	Parts    string `json:"parts,omitempty"`
	GroupDim int    `json:"group_dim,omitempty"`

	Bits   float64 `json:"bits"`
	Anchor int     `json:"anchor"`
	Sink   int     `json:"sink"`
	Recent int     `json:"recent"`
	Except int     `json:"exceptions"` // per key
}

// inspectNamed shows a file, or the weights of a model of the hub, of which it reads the headers.
func inspectNamed(ctx context.Context, stderr io.Writer, name string) ([]*fileInfo, error) {
	if !hub.Is(name) {
		return inspectLocal(ctx, name)
	}
	o, remove, err := outlined(ctx, stderr, name, -1)
	if err != nil {
		return nil, err
	}
	defer remove()
	var out []*fileInfo
	for _, path := range o.Files {
		f, err := inspect(ctx, path)
		if err != nil {
			return nil, err
		}
		f.File = filepath.Base(path)
		out = append(out, f)
	}
	return out, nil
}

// inspectLocal shows a file, or those of a folder.
func inspectLocal(ctx context.Context, path string) ([]*fileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	paths := []string{path}
	if st.IsDir() {
		if paths, err = inspectable(path); err != nil {
			return nil, err
		}
	}
	var out []*fileInfo
	for _, p := range paths {
		f, err := inspect(ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// splitName is how names of the files of a GGUF split end.
var splitName = regexp.MustCompile(`-\d{5}-of-(\d{5}\.gguf)$`)

// inspectable returns the files of a folder that inspect can read, by name. Any file of a GGUF
// split shows all of it.
func inspectable(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	seen := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		model := splitName.ReplaceAllString(name, "-of-$1")
		switch filepath.Ext(name) {
		case ".gguf", ".safetensors", ".sidecar", ".gguf-sidecar", ".fold":
			if !seen[model] && !strings.HasPrefix(name, ".") {
				out = append(out, filepath.Join(dir, name))
			}
			seen[model] = true
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no GGUF, safetensors, sidecar or fold file is in this folder", dir)
	}
	return out, nil
}

func inspect(ctx context.Context, path string) (*fileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	info := &fileInfo{File: path, Bytes: st.Size()}
	isGGUF, err := gguf.HasMagic(path)
	if err != nil {
		return nil, err
	}
	if isGGUF {
		err = info.gguf(path)
	} else {
		err = info.safetensors(path)
	}
	if err != nil {
		return nil, err
	}
	for _, k := range info.Keys {
		// A fold has the version too; its tensors and keys are shown as they are.
		if k.Key == spec.KeyVersion &&
			!slices.ContainsFunc(info.Keys, func(k keyInfo) bool { return k.Key == spec.FoldList }) {
			return info, info.sidecar(ctx, path)
		}
	}
	return info, nil
}

func (i *fileInfo) gguf(path string) error {
	f, err := gguf.Open(path)
	alone := ""
	if err != nil {
		// One file of a split can be looked at without the others.
		var one error
		if f, one = gguf.OpenShard(path); one != nil {
			return one
		}
		alone = fmt.Sprintf(", this file alone (%v)", err)
	}
	defer f.Close()
	i.Container = fmt.Sprintf("gguf version %d%s", f.Version, alone)
	if f.Shards > 1 {
		i.Container += fmt.Sprintf(", %d shards", f.Shards)
	}
	for _, kv := range f.KVs {
		typ := kv.Kind().String()
		if e, ok := kv.Elem(); ok {
			typ = fmt.Sprintf("[%d]%s", kv.Len(), e)
		}
		i.Keys = append(i.Keys, keyInfo{kv.Key, typ, shorten(kv.Text())})
	}
	for k := range f.Tensors {
		t := &f.Tensors[k]
		i.Tensors = append(i.Tensors, tensorInfo{t.Name, t.Type.String(), t.Shape(), t.Size})
	}
	return nil
}

func (i *fileInfo) safetensors(path string) error {
	f, err := safetensors.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	i.Container = "safetensors"
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		i.Keys = append(i.Keys, keyInfo{k, "string", shorten(f.Metadata[k])})
	}
	for k := range f.Tensors {
		t := &f.Tensors[k]
		i.Tensors = append(i.Tensors, tensorInfo{t.Name, t.DType, t.Shape, t.Size()})
	}
	return nil
}

func (i *fileInfo) sidecar(ctx context.Context, path string) error {
	s, err := sidecar.Read(ctx, path)
	if err != nil {
		return err
	}
	groups := s.Groups()
	x := codec.Summarize(groups)
	i.Sidecar = &sidecarInfo{
		Code: string(s.Kind), Layers: len(s.Codes) + len(s.Layers), HeadDim: s.HeadDim,
		Groups: len(groups), Parts: x.Parts, GroupDim: x.Dim,
		Bits: s.Bits(), Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent, Except: s.Exceptions,
	}
	if len(s.Codes) > 0 {
		i.Sidecar.Heads = len(s.Codes[0])
	}
	for _, y := range s.Layers {
		i.Sidecar.Heads, i.Sidecar.HeadDim = max(i.Sidecar.Heads, y.Heads), max(i.Sidecar.HeadDim, y.KeyDim)
	}
	return nil
}

// shorten keeps long values, such as vocabularies and chat templates, to a line.
func shorten(s string) string {
	const most = 100
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\n", `\n`), "?")
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}

func (i *fileInfo) print(w io.Writer) {
	fmt.Fprintf(w, "%s: %s, %d bytes, %d keys, %d tensors\n", i.File, i.Container, i.Bytes, len(i.Keys), len(i.Tensors))
	if s := i.Sidecar; s != nil {
		code, outliers := s.Code, fmt.Sprintf(", %d outliers a key", s.Except)
		if s.Groups > 0 { // codes of groups are frames, and have no outliers
			code, outliers = codeJoint, ""
		}
		fmt.Fprintf(w, "sidecar: code %s, %d layers, %d KV heads of %d, %.3g bits per number%s, ",
			code, s.Layers, s.Heads, s.HeadDim, s.Bits, outliers)
		fmt.Fprintf(w, "anchor %d, sink %d, recent %d\n", s.Anchor, s.Sink, s.Recent)
		if s.Groups > 0 {
			fmt.Fprintf(w, "groups: %d, %s, of at most %d numbers\n", s.Groups, s.Parts, s.GroupDim)
		}
	}
	t := newTable("key", "type", "value")
	for _, k := range i.Keys {
		t.row(k.Key, k.Type, k.Value)
	}
	t.print(w)
	t = newTable("tensor", "type", "shape", "bytes")
	for _, x := range i.Tensors {
		t.row(x.Name, x.Type, shapeText(x.Shape), fmt.Sprint(x.Bytes))
	}
	t.print(w)
}
