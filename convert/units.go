package convert

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/fitcache"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// WorkDir is where fitted layers are kept when no folder is named.
func WorkDir(out string) string { return filepath.Clean(out) + ".work" }

// fit calibrates. With a work folder it uses the layers that are there and keeps
// those that it fits; only, if set, says which ones. The weights are those of the
// view, whose edits the fits depend on.
func (o *Options) fit(ctx context.Context, c *checkpoint.Checkpoint, ch *changes, windows [][]int32, only func(layer int) bool) (*calibrate.Result, error) {
	opt := calibrate.Options{
		Kinds: FitKinds(o.Code), Bits: o.Bits, Policy: o.Policy, Balance: ch.balance,
		Seed: o.Seed, Threads: o.Threads, Progress: o.Progress.Of("calibrating"), Only: only,
	}
	m := refmodel.New(c.Config, ch.view, o.Threads)
	var w *fitcache.Cache
	var err error
	if o.Work != "" {
		if w, err = o.work(c, ch, windows, opt); err != nil {
			return nil, err
		}
	}
	if opt.Signs, err = o.allot(ctx, m, w, windows, opt); err != nil {
		return nil, err
	}
	if w != nil {
		w.Inputs = append(w.Inputs, fitcache.Input{Name: "signs", Value: signsDigest(opt.Signs)})
		if o.Merge {
			if err := complete(w, len(c.Config.Layers)); err != nil {
				return nil, err
			}
		}
		opt.Store = w
	}
	return calibrate.Run(ctx, m, windows, opt)
}

// complete refuses to merge what is not there.
func complete(w *fitcache.Cache, layers int) error {
	missing := 0
	var first error
	for l := range layers {
		if _, err := w.Read(l); err != nil {
			if missing++; first == nil {
				first = err
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d layers are not in %s; run their units, or convert with --resume: %w", missing, layers, w.Dir, first)
	}
	return nil
}

// work opens the folder of fitted layers.
func (o *Options) work(c *checkpoint.Checkpoint, ch *changes, windows [][]int32, opt calibrate.Options) (*fitcache.Cache, error) {
	if st, err := os.Stat(o.Work); err == nil && !st.IsDir() {
		return nil, usage("%s is not a folder", o.Work)
	}
	source, err := c.Digest()
	if err != nil {
		return nil, err
	}
	shape, err := c.Config.Uniform()
	if err != nil {
		return nil, err
	}
	edits, err := editsDigest(ch.view)
	if err != nil {
		return nil, err
	}
	in := func(name string, v any) fitcache.Input { return fitcache.Input{Name: name, Value: fmt.Sprint(v)} }
	return &fitcache.Cache{
		Dir: o.Work,
		Inputs: []fitcache.Input{
			in("program", program(o.Tool)), in("source", source), in("calibration", o.Calibration.SHA256()), in("tokens", tokensDigest(windows)),
			in("windows", len(windows)), in("ctx", o.Ctx), in("codes", strings.Join(opt.Kinds, ",")), in("bits", strconv.FormatFloat(opt.Bits, 'g', -1, 64)), in("alloc", o.alloc()),
			in("anchor", o.Policy.Anchor), in("sink", o.Policy.Sink), in("recent", o.Policy.Recent),
			in("balance", opt.Balance), in("seed", opt.Seed), in("edits", edits),
		},
		KVHeads: shape.KVHeads, HeadDim: shape.HeadDim, Balance: opt.Balance, Kinds: opt.Kinds,
		// The digest was taken now: what is fitted to a source that changed since
		// must not be kept under it.
		Check: c.Unchanged, Notice: o.Notice,
	}, nil
}

// program names the program that fits: fits may change with any version.
func program(tool string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" || s.Key == "vcs.modified" && s.Value == "true" {
				tool += " " + s.Key + "=" + s.Value
			}
		}
	}
	return tool
}

func tokensDigest(windows [][]int32) string {
	h := sha256.New()
	for _, w := range windows {
		_ = binary.Write(h, binary.LittleEndian, w) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

// editsDigest identifies what is done to weights before the calibration.
func editsDigest(v *checkpoint.Edited) (string, error) {
	if len(v.Edits) == 0 && len(v.Added) == 0 {
		return "none", nil
	}
	var added []string
	for n := range v.Added {
		added = append(added, n)
	}
	sort.Strings(added)
	b, err := json.Marshal([]any{v.Edits, added}) // the keys of maps come sorted
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// done removes the work folder's layers after a conversion, unless they are to stay.
func (o *Options) done(layers int) {
	if o.Work == "" || o.KeepWork {
		return
	}
	if err := (&fitcache.Cache{Dir: o.Work}).Remove(layers); err != nil && o.Notice != nil {
		o.Notice(fmt.Sprintf("the artifact is complete, but fitted layers could not be removed: %v", err))
	}
}

// unitLayers returns the layers [first, end) of unit i of n, counted from 1.
func unitLayers(i, n, layers int) (first, end int) { return (i - 1) * layers / n, i * layers / n }

// CheckUnits refuses a number of units, and a unit (0 for none), that cannot be.
func CheckUnits(i, n int) error {
	if n < 1 || n > spec.MaxLayers {
		return usage("%d units: expected 1 to %d", n, spec.MaxLayers)
	}
	if i < 0 || i > n {
		return usage("unit %d of %d: units count from 1", i, n)
	}
	return nil
}

// PlanUnits tells how the fitting of a source is divided into n units, 0 for one
// per layer, and which layers are there already. It neither reads weights nor
// looks into the layers' files.
func PlanUnits(o Options, n int) (*spec.UnitsJSON, error) {
	cfg, err := sourceConfig(o.Source)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		n = len(cfg.Layers)
	}
	if err := CheckUnits(0, n); err != nil {
		return nil, err
	}
	out := &spec.UnitsJSON{Work: filepath.Base(o.Work), Layers: len(cfg.Layers), Of: n, Units: []spec.Unit{}}
	w := &fitcache.Cache{Dir: o.Work}
	for i := 1; i <= n; i++ {
		u := spec.Unit{Unit: i, Layers: []spec.UnitLayer{}}
		first, end := unitLayers(i, n, len(cfg.Layers))
		for l := first; l < end; l++ {
			u.Layers = append(u.Layers, spec.UnitLayer{Layer: l, File: filepath.Base(w.Path(l)), There: there(w.Path(l))})
		}
		out.Units = append(out.Units, u)
	}
	return out, nil
}

func sourceConfig(path string) (*family.Config, error) {
	c, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Config, nil
}

func there(path string) bool { _, err := os.Stat(path); return err == nil }

// RunUnit fits the layers of unit i of n and leaves them in o.Work. Layers that
// are there already stay.
func RunUnit(ctx context.Context, o Options, i, n int) (*spec.UnitsJSON, error) {
	if err := CheckUnits(i, n); err != nil {
		return nil, err
	}
	o.Merge = false
	c, ch, w, err := o.open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	first, end := unitLayers(i, n, len(c.Config.Layers))
	out := &spec.UnitsJSON{Work: filepath.Base(o.Work), Layers: len(c.Config.Layers), Of: n, Units: []spec.Unit{{Unit: i, Layers: []spec.UnitLayer{}}}}
	if first == end {
		return out, nil
	}
	if ch, err = searchEdits(ctx, c, &o, ch); err != nil {
		return nil, err
	}
	before := map[int]fs.FileInfo{}
	files := &fitcache.Cache{Dir: o.Work}
	for l := first; l < end; l++ {
		if st, err := os.Stat(files.Path(l)); err == nil {
			before[l] = st
		}
	}
	_, err = o.fit(ctx, c, ch, w.Tokens, func(l int) bool { return l >= first && l < end })
	if err != nil {
		// Only the folder, and only if nothing is in it.
		if rest, e := os.ReadDir(o.Work); e == nil && len(rest) == 0 {
			err = errors.Join(err, os.Remove(o.Work))
		}
		return nil, err
	}
	for l := first; l < end; l++ {
		st, err := os.Stat(files.Path(l))
		if err != nil {
			return nil, err
		}
		out.Units[0].Layers = append(out.Units[0].Layers, spec.UnitLayer{
			Layer: l, File: filepath.Base(files.Path(l)), There: before[l] != nil && os.SameFile(before[l], st),
		})
	}
	return out, nil
}
