package report

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
)

// A License is what a source's files say of its licence, in the terms of the hub's
// model cards.
type License struct {
	IDs        []string // of the hub's list; "other" is one of them
	Name, Link string   // license_name and license_link, which go with "other"
	// File names the file that tells the licence where nothing else does.
	File string
	// Gated says that the source's page asks for something before a download.
	Gated bool
}

// Known says whether there is an id to state.
func (l License) Known() bool { return len(l.IDs) > 0 }

// String returns the licence for people, "" if nothing tells it.
func (l License) String() string {
	switch {
	case len(l.IDs) == 1 && l.IDs[0] == other && l.Name != "":
		return l.Name
	case l.Known():
		return strings.Join(l.IDs, ", ")
	case l.File != "":
		return "see " + l.File
	}
	return ""
}

const other = "other"

// hubLicenses are the values of license that the hub takes.
var hubLicenses = strings.Fields(`
	apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
	bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda
	cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
	cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
	cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
	etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
	intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
	postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
	fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community
	gemma unknown other`)

// ParseLicense reads licence identifiers as people write them. What is not of the
// hub's list becomes the name of another licence: the hub takes no other value.
func ParseLicense(ids ...string) License {
	var l License
	for _, id := range ids {
		switch low := strings.ToLower(strings.TrimSpace(id)); {
		case low == "":
		case slices.Contains(hubLicenses, low):
			l.IDs = append(l.IDs, low)
		default:
			l.IDs = append(l.IDs, other)
			if l.Name == "" {
				l.Name = strings.TrimSpace(id)
			}
		}
	}
	slices.Sort(l.IDs)
	l.IDs = slices.Compact(l.IDs)
	return l
}

// ReadLicense reads the licence of a model from its folder: the front matter of
// README.md, else a known text in a licence file, else the name of that file.
func ReadLicense(dir string) License {
	gated := false
	if raw, err := head(filepath.Join(dir, "README.md")); err == nil {
		f := frontMatter(raw)
		l := ParseLicense(f["license"]...)
		if n := strings.Join(f["license_name"], " "); n != "" {
			l.Name = n
		}
		l.Link = strings.Join(f["license_link"], " ")
		if !l.Known() && l.Name+l.Link != "" {
			l.IDs = []string{other}
		}
		for k := range f {
			gated = gated || strings.HasPrefix(k, "extra_gated_")
		}
		if l.Gated = gated; l.Known() {
			return l
		}
	}
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"} {
		raw, err := head(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		for _, k := range []struct{ id, a, b string }{
			{"apache-2.0", "Apache License", "Version 2.0"}, {"mit", "MIT License", "Permission is hereby granted"},
			{"gpl-3.0", "GNU GENERAL PUBLIC LICENSE", "Version 3"}, {"cc-by-4.0", "Attribution 4.0 International", ""},
		} {
			if strings.Contains(raw, k.a) && strings.Contains(raw, k.b) {
				return License{IDs: []string{k.id}, Gated: gated}
			}
		}
		return License{File: name, Gated: gated}
	}
	return License{Gated: gated}
}

// maxHead bounds what is read of a card or a licence. Cards of gated models have
// whole licences in their front matter.
const maxHead = 1 << 20

// head returns the first bytes of a file.
func head(path string) (string, error) {
	f, _, err := format.OpenRegular(path)
	if errors.Is(err, format.ErrBroken) { // a folder with the name of a licence is none
		return "", fs.ErrNotExist
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHead))
	return strings.TrimPrefix(string(b), "\ufeff"), err
}

// frontMatter reads the YAML between the leading "---" lines as far as licences go:
// the texts of each key at the margin, of which a list has several. Blocks of text
// (| and >) and objects have none.
func frontMatter(text string) map[string][]string {
	out := map[string][]string{}
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	if strings.TrimSpace(lines[0]) != "---" {
		return out
	}
	key := "" // whose list may follow
	for _, l := range lines[1:] {
		bare := strings.TrimSpace(l)
		switch {
		case l == "---" || l == "..." || strings.TrimRight(l, " \t") == "---":
			return out
		case bare == "" || bare[0] == '#':
		case bare == "-" || strings.HasPrefix(bare, "- "):
			if key != "" && len(out[key]) < 100 {
				if s := scalar(bare[1:]); s != "" {
					out[key] = append(out[key], s)
				}
			}
		case l[0] == ' ' || l[0] == '\t':
			key = "" // inside a block or an object
		default:
			k, v, ok := strings.Cut(l, ":")
			if !ok || v != "" && v[0] != ' ' && v[0] != '\t' {
				key = ""
				continue
			}
			k = strings.Trim(strings.TrimSpace(k), `"'`)
			out[k], key = nil, ""
			v = strings.TrimSpace(v)
			if v == "" || v[0] == '#' {
				key = k
			} else {
				out[k] = inline(v)
			}
		}
	}
	return map[string][]string{} // no end: no front matter
}

// inline reads what stands behind a key: a list in brackets or one text, nil for a block of
// text or an object.
func inline(v string) (out []string) {
	if v[0] == '|' || v[0] == '>' || v[0] == '{' {
		return nil
	}
	items := []string{v}
	if list, ok := strings.CutPrefix(v, "["); ok {
		list, _, _ = strings.Cut(list, "]")
		items = strings.Split(list, ",")
	}
	for _, x := range items {
		if s := scalar(x); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// scalar reads a plain or quoted YAML text, "" for null.
func scalar(s string) string {
	s = strings.TrimSpace(s)
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		if i := strings.IndexByte(s[1:], s[0]); i >= 0 {
			return s[1 : i+1]
		}
		return s[1:]
	}
	if i := strings.Index(s, " #"); i >= 0 {
		s = strings.TrimSpace(s[:i])
	}
	if s == "~" || s == "null" || strings.HasPrefix(s, "#") {
		return ""
	}
	return s
}
