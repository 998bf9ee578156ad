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
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/fitcache"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// WorkDir is where fitted layers are kept when no folder is named.
func WorkDir(out string) string { return filepath.Clean(out) + ".work" }

// calibrate fits codes, and the pair scaling if the changes have it. With a work folder it uses
// the layers that are there and keeps those that it fits; only, if set, says which ones. The
// weights are those of the changes, whose edits the fits depend on.
func (j *job) calibrate(ctx context.Context, ch *plan.Changes, only func(layer int) bool) (*calibrate.Result, error) {
	o, c, windows := &j.o, j.source, j.calibration.Tokens
	opt := calibrate.Options{
		Kinds: fitKinds(o.Code), Bits: o.Bits, Policy: o.Policy, Balance: ch.PairScale,
		Seed: o.Seed, Threads: o.Threads, Progress: o.Progress.Of("calibrating"), Only: only,
	}
	if o.Joint != nil {
		g, err := bits.JointGroups(c.Config, o.Joint.GroupOptions)
		if err != nil {
			return nil, err
		}
		opt.Kinds, opt.Joint = nil, &calibrate.Joint{Groups: *g, Fisher: o.Joint.Fisher}
		opt.Gradients = o.Progress.Of("gradients of the calibration text")
	}
	m := refmodel.New(c.Config, ch.View, o.Threads)
	if e, err := j.engine(ctx); err != nil {
		return nil, err
	} else if e != nil {
		if e, err = e.With(ctx, ch.View); err != nil {
			return nil, err
		}
		opt.Tap = e.Tap
	}
	var w *fitcache.Cache
	var err error
	if o.Work != "" {
		if w, err = j.work(ctx, ch, opt); err != nil {
			return nil, err
		}
	}
	signs, err := j.allocate(ctx, m, w, opt)
	if err != nil {
		return nil, err
	}
	if opt.Signs = signs; opt.Joint != nil {
		opt.Joint.Signs, opt.Signs = signs, nil
	}
	if w != nil {
		w.Inputs = append(w.Inputs, fitcache.Input{Name: "signs", Value: signsDigest(signs)})
		if o.Merge {
			if err := complete(ctx, w, len(c.Config.Layers)); err != nil {
				return nil, err
			}
		}
		opt.Store = w
	}
	return calibrate.Run(ctx, m, windows, opt)
}

// complete refuses to merge what is not there.
func complete(ctx context.Context, w *fitcache.Cache, layers int) error {
	missing := 0
	var first error
	for l := range layers {
		if _, err := w.Read(ctx, l); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if missing++; first == nil {
				first = err
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d layers are not in %s; run their units, or convert with --resume: %w", missing, layers,
			w.Dir, first)
	}
	return nil
}

// work opens the folder of fitted layers.
func (j *job) work(ctx context.Context, ch *plan.Changes, opt calibrate.Options) (*fitcache.Cache, error) {
	o, c, windows := &j.o, j.source, j.calibration.Tokens
	if st, err := os.Stat(o.Work); err == nil && !st.IsDir() {
		return nil, option.Bad("Work", o.Work, "it is not a folder")
	}
	source, err := c.Digest(ctx, o.Progress.Of("reading the source, MiB"))
	if err != nil {
		return nil, err
	}
	edits, err := editsDigest(ch.View)
	if err != nil {
		return nil, err
	}
	var kinds []string
	for _, k := range opt.Kinds {
		kinds = append(kinds, string(k))
	}
	in := func(name string, v any) fitcache.Input { return fitcache.Input{Name: name, Value: fmt.Sprint(v)} }
	if opt.Joint != nil {
		kinds = append(kinds, fmt.Sprintf("joint %v, shares %v, given %v, fisher %v", opt.Joint.Parts, opt.Joint.Shares, opt.Joint.Given,
			opt.Joint.Fisher))
	}
	w := &fitcache.Cache{
		Dir: o.Work,
		Inputs: []fitcache.Input{
			in("program", program(o.Tool)), in("source", source), in("calibration", o.Calibration.SHA256()),
			in("tokens", tokensDigest(windows)),
			in("windows", len(windows)), in("ctx", o.Ctx), in("codes", strings.Join(kinds, ",")),
			in("bits", strconv.FormatFloat(opt.Bits, 'g', -1, 64)), in("alloc", o.keys().Allocation()),
			in("anchor", o.Policy.Anchor), in("sink", o.Policy.Sink), in("recent", o.Policy.Recent),
			in("balance", opt.Balance), in("seed", opt.Seed), in("edits", edits),
		},
		Config: c.Config, Balance: opt.Balance, Kinds: opt.Kinds,
		// The digest was taken now: what is fitted to a source that changed since
		// must not be kept under it.
		Check: c.Unchanged, Notice: o.Notice,
	}
	// What an engine on llama.cpp computes differs from machine to machine, and must not be mixed.
	computed := engine.Own
	if !o.own() {
		id := o.Engines.Identity()
		computed = fmt.Sprintf("%s %s, identity %s", id.Engine, id.Release, engine.Digest(id))
	}
	w.Inputs = append(w.Inputs, in("engine", computed))
	if opt.Joint != nil {
		w.Groups = opt.Joint.Parts
	}
	return w, nil
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
	fold := sidecar.FoldOf(v, "")
	if len(v.Edits) == 0 && len(v.Added) == 0 && fold.Residual == nil {
		return "none", nil
	}
	var added []string
	for n := range v.Added {
		added = append(added, n)
	}
	sort.Strings(added)
	b, err := json.Marshal([]any{v.Edits, added, fold.Residual}) // the keys of maps come sorted
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// removeWork removes the work folder's layers after a conversion, unless they are to stay.
func (j *job) removeWork() {
	if j.o.Work == "" || j.o.KeepWork {
		return
	}
	if err := (&fitcache.Cache{Dir: j.o.Work}).Remove(len(j.source.Config.Layers)); err != nil {
		j.o.notice(fmt.Sprintf("the artifact is complete, but fitted layers could not be removed: %v", err))
	}
}

// unitLayers returns the layers [first, end) of unit i of n, counted from 1.
func unitLayers(i, n, layers int) (first, end int) { return (i - 1) * layers / n, i * layers / n }

// CheckUnits refuses a number of units, and a unit (0 for none), that cannot be.
func CheckUnits(i, n int) error {
	if n < 1 || n > spec.MaxLayers {
		return option.Errorf("%d units: expected 1 to %d", n, spec.MaxLayers)
	}
	if i < 0 || i > n {
		return option.Errorf("unit %d of %d: expected 1 to %d", i, n, n)
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
	j, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	c := j.source
	defer c.Close()
	first, end := unitLayers(i, n, len(c.Config.Layers))
	out := &spec.UnitsJSON{Work: filepath.Base(o.Work), Layers: len(c.Config.Layers), Of: n,
		Units: []spec.Unit{{Unit: i, Layers: []spec.UnitLayer{}}}}
	if first == end {
		return out, nil
	}
	if err := j.scan(ctx); err != nil {
		return nil, err
	}
	ch, _, err := j.search(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.chooseJoint(ctx, ch); err != nil {
		return nil, err
	}
	before := map[int]fs.FileInfo{}
	files := &fitcache.Cache{Dir: o.Work}
	for l := first; l < end; l++ {
		if st, err := os.Stat(files.Path(l)); err == nil {
			before[l] = st
		}
	}
	_, err = j.calibrate(ctx, ch, func(l int) bool { return l >= first && l < end })
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

// allocate decides about signs before anything is fitted. With a work folder w, which
// may be nil, it takes the allotment that is there or leaves its own, so that all
// units fit to the same one; each would find the same by itself.
func (j *job) allocate(ctx context.Context, m *refmodel.Model, w *fitcache.Cache, opt calibrate.Options) ([][]int,
	error) {
	o, c := &j.o, m.Config
	alloc := o.keys().Allocation()
	total, err := 0, error(nil)
	switch {
	case opt.Joint != nil && alloc == bits.AllocUniform:
		return opt.Joint.Signs, nil
	case opt.Joint != nil:
		total, _ = opt.Joint.Total()
	case o.Code != codec.Frame || alloc == bits.AllocUniform:
		return bits.Even(c, opt.Bits)
	default:
		total, err = bits.Budget(c, opt.Bits)
	}
	if err != nil {
		return nil, err
	}
	if w != nil {
		signs, err := w.ReadSigns(len(c.Layers), total)
		switch {
		case err == nil:
			return signs, nil
		case o.Merge && !slices.ContainsFunc(layers(len(c.Layers)), func(l int) bool { return there(w.Path(l)) }):
			return nil, complete(ctx, w, len(c.Layers))
		case o.Merge:
			return nil, fmt.Errorf("the units' allotment of signs is not there; run them, or convert with --resume: %w", err)
		case !errors.Is(err, fs.ErrNotExist):
			o.notice(fmt.Sprintf("%v; signs are allotted again", err))
		}
	}
	opt.Progress = o.Progress.Of("allotting signs")
	var signs [][]int
	if opt.Joint != nil {
		signs, err = bits.AllotJoint(ctx, m, j.calibration.Tokens, &opt.Joint.Groups, opt.Allocation())
	} else {
		signs, err = bits.Allocate(ctx, m, j.calibration.Tokens, alloc, opt.Allocation())
	}
	if err == nil && w != nil {
		err = w.SaveSigns(signs)
	}
	return signs, err
}

func layers(n int) []int {
	out := make([]int, n)
	for l := range out {
		out[l] = l
	}
	return out
}

func signsDigest(signs [][]int) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(signs)))
	return hex.EncodeToString(sum[:])
}
