package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/progress"
)

func engineCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:  "engine",
		Usage: "the engine on stock libllama: what of llama.cpp is here and works",
		Commands: []*cli.Command{{
			Name: "probe",
			Usage: "load llama.cpp's library, find its layouts and try small models on its devices, or a model " +
				"and tell what its graph says",
			ArgsUsage: "[MODEL]",
			Description: `Examples:
  phaseconv engine probe
  phaseconv engine probe --engine llama:/opt/llama.cpp/bin --devices CUDA0
  phaseconv engine probe model.gguf
  phaseconv engine probe --rpc gpu1:50052,gpu2:50052 --json`,
			Flags:        append(engineFlags(engine.Llama), threadsFlag(), jsonFlag()),
			OnUsageError: usageError,
			Action: func(ctx context.Context, c *cli.Command) error {
				if c.Args().Len() > 1 {
					return usagef("engine probe: expected at most one model, got %d arguments", c.Args().Len())
				}
				return runProbe(ctx, c, stdout, stderr)
			},
		}},
		Action: func(_ context.Context, c *cli.Command) error {
			if c.Args().Present() {
				return usagef("unknown command %q of engine; there is probe", c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

// engineFlags choose an engine and where it computes.
func engineFlags(value string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "engine", Value: value, Usage: "what computes the model: own; llama or llama:DIR, " +
			"stock llama.cpp " +
			"(any architecture and device; DIR has libllama, else " + llama.Env + " and the usual folders are " +
			"searched); auto, own where it knows the family"},
		&cli.StringSliceFlag{Name: "devices", Usage: "devices of llama.cpp to load the model onto, such as CUDA0, " +
			"or CPU", DefaultText: "all"},
		&cli.StringSliceFlag{Name: "rpc", Usage: "llama.cpp's RPC servers, HOST:PORT, on a trusted network (they " +
			"have no authentication)"},
		&cli.IntFlag{Name: "gpu-layers", Usage: "layers on devices that are not the CPU, from the last " +
			"on", Value: -1, DefaultText: "all"},
	}
}

// engineChoice is what the flags of an engine say.
type engineChoice struct {
	llama.Spec
	start llama.Start
	place llama.Place
}

// chosenEngine reads the engine's flags; rotation is off where llama.cpp's is to be.
func chosenEngine(c *cli.Command, rotation bool) (e engineChoice, err error) {
	if e.Spec, err = llama.ParseSpec(c.String("engine")); err != nil {
		return e, usagef("--engine: %w", err)
	}
	e.start = llama.Start{Dir: e.Dir, RPC: c.StringSlice("rpc"), NoRotation: !rotation}
	e.place = llama.Place{Devices: c.StringSlice("devices"), GPULayers: c.Int("gpu-layers"), Threads: c.Int("threads")}
	if e.Kind == engine.Own {
		if f := firstSet(c, "devices", "rpc", "gpu-layers"); f != "" {
			return e, usagef("--%s is for --engine llama", f)
		}
	}
	for _, s := range e.start.RPC {
		if _, port, ok := strings.Cut(s, ":"); !ok || port == "" {
			return e, usagef("--rpc: %q is not of the form HOST:PORT", s)
		}
	}
	return e, nil
}

// settle decides which engine "auto" stands for: the own pass, unless one of these models is of an
// architecture that it does not know. (What is wrong with a file otherwise shows when it is opened.)
func (e *engineChoice) settle(paths ...string) {
	if e.Kind != llama.Auto {
		return
	}
	e.Kind = engine.Own
	for _, path := range paths {
		c, err := checkpoint.Open(path)
		if errors.Is(err, format.ErrUnsupported) {
			e.Kind = engine.Llama
		}
		if err == nil {
			c.Close() //nolint:errcheck // only looked at
		}
	}
}

// settleArtifact is settle for the folder of an artifact.
func (e *engineChoice) settleArtifact(dir string) {
	if e.Kind != llama.Auto {
		return
	}
	e.Kind = engine.Own
	if m, err := contract.ReadManifest(dir); err == nil && m.Graph != nil {
		e.Kind = engine.Llama
	}
}

// load starts a worker and loads models, whose notes it prints. The worker is to be closed.
func (e *engineChoice) load(ctx context.Context, report progress.Func, stderr io.Writer, files ...string) (
	*llama.Worker, []*llama.Model, error) {
	x, err := e.engines(ctx, stderr)
	if err != nil {
		return nil, nil, err
	}
	w := x.Worker
	var out []*llama.Model
	for i, f := range files {
		if report != nil {
			report("loading models into llama.cpp", i, len(files))
		}
		m, err := w.Load(ctx, f, e.place)
		if err != nil {
			w.Close()
			return nil, nil, err
		}
		out = append(out, m)
	}
	return w, out, nil
}

// engines starts a worker for checkpoints.
func (e *engineChoice) engines(ctx context.Context, stderr io.Writer) (*llama.Engines, error) {
	w, err := llama.NewWorker(ctx, e.start)
	if err != nil {
		return nil, err
	}
	for _, n := range w.Notes() {
		notes(stderr)(n)
	}
	return &llama.Engines{Worker: w, Place: e.place, Progress: showProgress(stderr)}, nil
}

// engineName says in a line what computed.
func engineName(id *spec.EngineIdentity) string {
	return fmt.Sprintf("llama.cpp %s (ggml %s) on %s", printable(cmp.Or(id.Release, "without a version")), printable(id.GGML),
		printable(strings.Join(id.Devices, ", ")))
}

func runProbe(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	e, err := chosenEngine(c, true)
	if err != nil {
		return err
	}
	if e.Kind != engine.Llama {
		return usagef("--engine %s: engine probe looks at llama or llama:DIR", e.Kind)
	}
	r, err := llama.Probe(ctx, e.start, e.place, c.Args().First(), showProgress(stderr))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(stdout, r)
	} else {
		printProbe(stdout, r)
	}
	if err == nil && !r.OK {
		err = errGate
	}
	return err
}

func printProbe(w io.Writer, r *llama.Report) {
	l := r.Library
	tested := "a tested release"
	if !l.Tested {
		tested = "not among the tested releases"
	}
	fmt.Fprintf(w, "llama.cpp %s (ggml %s, commit %s), "+
		"%s\n", printable(cmp.Or(l.Release, "without a version")), printable(l.GGML), printable(l.Commit), tested)
	fmt.Fprintf(w, "libraries: %s, SHA-256 %s\nsystem: %s, "+
		"%s\n\n", printable(l.Dir), l.SHA256, l.Platform, printable(l.System))
	t := newTable("device", "kind", "memory", "description")
	for _, d := range l.Devices {
		t.row(printable(d.Name), d.Kind, cacheSize(int64(d.Total)), printable(d.Description))
	}
	t.print(w)
	fmt.Fprintln(w)
	for _, m := range r.Models {
		fmt.Fprintf(w, "%s (%s): %s\n", m.Model, m.What, passed(m.OK))
		if m.Error != "" {
			fmt.Fprintf(w, "  %s\n", printable(m.Error))
		}
		for _, x := range m.Tests {
			fmt.Fprintf(w, "  %s: %s, %s\n", passed(x.OK), x.Name, printable(x.Detail))
		}
	}
	if r.Facts != nil {
		printFacts(w, r)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", printable(n))
	}
}

// printFacts tells what the graph says of each cache, equal ones together.
func printFacts(w io.Writer, r *llama.Report) {
	f := r.Facts
	fmt.Fprintf(w, "\n%s, %d layers, %d with keys of their own, hidden %d, context %d, vocabulary "+
		"%d\n\n", printable(f.Arch), f.Layers,
		len(r.Folds), f.Hidden, f.Context, f.Vocab)
	layer := regexp.MustCompile(`blk\.\d+\.`)
	var rows []string
	of := map[string][]string{}
	for i, a := range f.Owners() {
		rope := "no RoPE"
		if a.Rope != nil {
			rope = fmt.Sprintf("RoPE on %d, theta %g, mode %d", a.Rope.Dim, a.Rope.Theta, a.Rope.Mode)
		}
		may := r.Folds[i].Keys
		if may == "" {
			may = "nothing: " + r.Folds[i].Refused
		}
		row := fmt.Sprintf("%d heads, %d KV heads of %d; %s\n  keys: %s\n  may be folded: "+
			"%s", a.Heads, a.KVHeads, a.HeadDim, rope,
			layer.ReplaceAllString(a.K.String(), ""), may)
		if of[row] == nil {
			rows = append(rows, row)
		}
		of[row] = append(of[row], fmt.Sprint(a.Layer))
	}
	for _, row := range rows {
		fmt.Fprintf(w, "layers %s: %s\n", strings.Join(of[row], " "), printable(row))
	}
	fmt.Fprintln(w)
}

func passed(ok bool) string {
	if ok {
		return "passed"
	}
	return "FAILED"
}
