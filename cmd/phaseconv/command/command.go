// Package command is the command line of phaseconv: flags, messages, tables.
// Everything it does is a call of the library.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/hub"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// Exit codes.
const (
	exitGood   = 0
	exitFailed = 1 // failed, or a gate was not met
	exitUsage  = 2 // wrong use
)

// errGate says that the work was done and its result is below a gate.
var errGate = errors.New("below the gate")

// Run executes the command line and returns the exit code.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out := &checkedWriter{w: stdout}
	messages := &closingWriter{w: stderr}
	defer messages.Close()
	app := root(out, messages)
	err := app.Run(ctx, args)
	if err == nil && out.err == nil {
		return exitGood
	}
	var use *option.Error
	var exit cli.ExitCoder // of the library that reads the command line: unknown topics of help and the like
	switch {
	case out.err != nil: // a result that nobody can read is none
		fmt.Fprintln(messages, "phaseconv: standard output:", printable(out.err.Error()))
	case errors.As(err, &exit):
		text, _, suggested := strings.Cut(err.Error(), "'. ")
		if suggested {
			text += "'"
		}
		fmt.Fprintln(messages, "phaseconv:", printable(text)+"; see phaseconv --help")
		return exitUsage
	case errors.Is(err, errGate):
		return exitFailed
	case errors.As(err, &use):
		fmt.Fprintln(messages, "phaseconv:", printable(describe(use)))
		return exitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(messages, "phaseconv: interrupted; nothing was left behind")
	default:
		fmt.Fprintln(messages, "phaseconv:", printable(err.Error()))
	}
	return exitFailed
}

// A checkedWriter remembers the first error of its writer: what prints tables need not ask.
type checkedWriter struct {
	w   io.Writer
	err error
}

func (c *checkedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.err == nil {
		c.err = err
	}
	return n, err
}

// flagNames are the flags of option fields that are not called like them.
var flagNames = map[string]string{
	"Calibration": "calib", "CalibrationTokens": "calib-tokens", "Evaluation": "eval", "Exceptions": "outliers",
	"Formats": "format", "OutType": "outtype", "MaxKLD": "max-kld", "Cache": "cache-type-k",
	"SplitSize": "split-max-size", "FFN": "ffn", "BitsKV": "bits-kv",
}

// describe puts the flag's name into an error about an option: TargetCtx is --target-ctx.
func describe(e *option.Error) string {
	if e.Field == "" {
		return e.Error()
	}
	name, ok := flagNames[e.Field]
	if !ok {
		var b strings.Builder
		for i, r := range e.Field {
			if unicode.IsUpper(r) && i > 0 {
				b.WriteByte('-')
			}
			b.WriteRune(unicode.ToLower(r))
		}
		name = b.String()
	}
	return e.Describe("--" + name)
}

// usageError says in our words what the library that reads the command line says of flags: with
// two dashes, and without the names of functions.
func usageError(_ context.Context, _ *cli.Command, err error, _ bool) error {
	text := goParse.ReplaceAllString(oneDash.ReplaceAllString(err.Error(), "$1--$2"), "")
	return usagef("%s", text)
}

var (
	oneDash = regexp.MustCompile(`(not defined: |for flag )-(\w)`)
	goParse = regexp.MustCompile(`strconv\.\w+: parsing "[^"]*": `)
)

// root builds the command tree.
func root(stdout, stderr io.Writer) *cli.Command {
	app := &cli.Command{
		Name:      "phaseconv",
		Usage:     "make language models whose KV cache survives very few bits",
		Version:   buildinfo.Version,
		Writer:    stdout,
		ErrWriter: stderr,
		// Errors are printed once, by Run, and never end the process from inside.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		OnUsageError:   usageError,
		Suggest:        true,

		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: completion,

		Commands: []*cli.Command{
			convertCommand(stdout, stderr), verifyCommand(stdout, stderr),
			auditCommand(stdout, stderr), adviseCommand(stdout, stderr), recallCommand(stdout, stderr),
			ladderCommand(stdout, stderr),
			inspectCommand(stdout, stderr), rotationsCommand(stdout, stderr), engineCommand(stdout, stderr),
			generateCommand(stdout, stderr), benchCommand(stdout, stderr), reportCommand(stdout, stderr), cardCommand(stdout),
			releaseCommand(stdout, stderr), claimsCommand(stdout),
			docsCommand(stdout), versionCommand(stdout),
		},
		Action: func(_ context.Context, c *cli.Command) error {
			if c.Args().Present() {
				return usagef("unknown command %q; see phaseconv --help", c.Args().First())
			}
			return cli.ShowRootCommandHelp(c)
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageError
	}
	return app
}

func usagef(format string, args ...any) error {
	return &option.Error{Err: fmt.Errorf(format, args...)}
}

// firstSet returns the first of the flags that is given, or "".
func firstSet(c *cli.Command, flags ...string) string {
	for _, f := range flags {
		if c.IsSet(f) {
			return f
		}
	}
	return ""
}

// goWith refuses flags that say something about another one which is not given: they would do nothing.
func goWith(c *cli.Command, other string, flags ...string) error {
	if f := firstSet(c, flags...); f != "" && !c.IsSet(other) {
		return usagef("--%s goes with --%s", f, other)
	}
	return nil
}

// writable refuses a file that cannot be made, before the work whose result it is to hold.
func writable(c *cli.Command, flag string) error {
	path := c.String(flag)
	if path == "" {
		return nil
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		return usagef("--%s %s: there is no folder %s", flag, path, filepath.Dir(path))
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return usagef("--%s %s: this is a folder", flag, path)
	}
	return nil
}

// one returns the only positional argument.
func one(c *cli.Command, what string) (string, error) {
	if c.Args().Len() != 1 {
		return "", usagef("%s: expected one %s, got %d arguments", c.Name, what, c.Args().Len())
	}
	return c.Args().First(), nil
}

// maxText is how many bytes a text may have. It is kept in memory, and a thousandth of this is
// enough to fit and to measure.
const maxText = 1 << 30

// text loads a text file, or returns the embedded one when no file is named.
func text(path string, embedded []byte, name string) (ppl.Text, error) {
	if path == "" {
		return ppl.Text{Name: name, Data: embedded}, nil
	}
	if strings.HasPrefix(path, embeddedPrefix) {
		return embeddedKind(path)
	}
	data, err := format.ReadFile(path, maxText)
	if err != nil {
		return ppl.Text{}, &option.Error{Err: err}
	}
	return fileText(filepath.Base(path), data), nil
}

// fileText says by a file's name what is in it.
func fileText(name string, data []byte) ppl.Text {
	t := ppl.Text{Name: name, Data: data}
	if strings.EqualFold(filepath.Ext(name), ".jsonl") {
		t.Chat, t.Kind = true, "chat"
	}
	return t
}

// embeddedPrefix begins the names of texts that come with the program.
const embeddedPrefix = "embedded:"

// embeddedKind returns one of the texts to measure on that come with the program.
func embeddedKind(name string) (ppl.Text, error) {
	var names []string
	for _, k := range texts.Kinds() {
		if k.Name == name {
			return ppl.Text{Name: k.Name, Data: k.Data, Chat: k.Chat, Kind: k.Kind}, nil
		}
		names = append(names, k.Name)
	}
	return ppl.Text{}, usagef("%s does not come with the program; there are %s", name, strings.Join(names, ", "))
}

func calibrationText(path string) (ppl.Text, error) {
	if strings.HasPrefix(path, embeddedPrefix) {
		return ppl.Text{}, usagef("--calib %s: the texts of that name are to measure on", path)
	}
	return text(path, texts.Calibration, texts.CalibrationName)
}

func evaluationText(path string) (ppl.Text, error) {
	return text(path, texts.Evaluation, texts.EvaluationName)
}

// notes returns a function that prints what is worth knowing and is no error.
func notes(stderr io.Writer) func(text string) {
	return func(text string) { say(stderr, "phaseconv: note: %s\n", text) }
}

// printNotes prints what is to know of how a model was read; nil has nothing.
func printNotes(stderr io.Writer, c *checkpoint.Checkpoint) {
	if c == nil {
		return
	}
	for _, n := range c.Notes() {
		notes(stderr)(n)
	}
}

func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// show prints a result as JSON, where that is asked for, or by print, and fails with errGate where the
// result did not pass.
func show(c *cli.Command, w io.Writer, result any, passed bool, print func()) error {
	if c.Bool("json") {
		if err := printJSON(w, result); err != nil {
			return err
		}
	} else {
		print()
	}
	if !passed {
		return errGate
	}
	return nil
}

// recorded returns the command line for the manifest: the flags that were set and that a result
// depends on, without folders, which say something about the machine and nothing about the
// model. However a conversion was executed, its manifest is the same.
func recorded(c *cli.Command, args ...string) []string {
	out := []string{"phaseconv", c.Name}
	for _, a := range args {
		if ref, err := hub.ParseRef(a); hub.Is(a) && err == nil {
			out = append(out, ref.String()) // no folder: it says where the model is for everyone
			continue
		}
		out = append(out, base(a))
	}
	for _, f := range c.Flags {
		name := f.Names()[0]
		if !c.IsSet(name) || immaterial(f) {
			continue
		}
		value := base(fmt.Sprint(c.Value(name)))
		if name == "out" {
			value = "OUT" // nothing depends on it, and the same conversion has the same manifest
		}
		out = append(out, "--"+name+"="+value)
	}
	return out
}

// immaterial says that no result depends on a flag: where and when work is done, and how it is
// shown.
func immaterial(f cli.Flag) bool {
	if x, ok := f.(cli.CategorizableFlag); ok && x.GetCategory() == categoryUnits {
		return true
	}
	return slices.Contains([]string{"threads", "json", "rpc", "devices", "gpu-layers", "engine"}, f.Names()[0])
}

func base(s string) string {
	if strings.ContainsRune(s, filepath.Separator) {
		return filepath.Base(filepath.Clean(s))
	}
	return s
}

func threadsFlag() cli.Flag {
	return &cli.IntFlag{Name: "threads", Usage: "processor threads; results do not depend on it", DefaultText: "all",
		Validator: func(n int) error {
			if n < 0 {
				return usagef("--threads %d: it cannot be negative; 0 is all that the machine offers", n)
			}
			return nil
		}}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print machine-readable results to standard output"}
}

func seedFlag() cli.Flag {
	return &cli.Uint64Flag{Name: "seed", Usage: "seed of every random number", Value: 1}
}
