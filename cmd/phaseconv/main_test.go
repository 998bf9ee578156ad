package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/phaseconv/phaseconv/internal/hubtest"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"phaseconv": main,
		// The same with a disk on which no file may grow beyond 64 KiB.
		"phaseconv-small-disk": func() { limitFiles(64 << 10); main() },
	})
}

// TestScripts runs testdata/script, each in a folder of its own and a process for
// each command. Scripts have these commands beside the usual ones:
//
//	tiny FAMILY DIR [name=value ...]    writes a small random model as a folder
//	tinygguf FAMILY FILE [name=value]   the same as a GGUF file
//	exits CODE phaseconv ARGS           runs and compares the exit code
//	refuses CODE REGEXP phaseconv ARGS  and: stdout is empty, stderr is one line
//	                                    that matches, no file is there that was
//	                                    not there before
//	json KEY ...                        stdout of the last command is one JSON
//	                                    value with these keys (a.b for nested ones)
//	poke FILE OFFSET HEX                changes bytes; a negative offset counts
//	                                    from the end
//	cut FILE N                          cuts N bytes off the end
//	repl FILE OLD NEW                   replaces all of a text; there must be one
//	waitfor GLOB                        until a file of this pattern is there; with !
//	                                    it must not be there now
//	copytree FROM TO, fifo FILE, link TO FILE, mountfs DIR SIZE|ro
func TestScripts(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("AUSTEN", filepath.Join(root, "testdata", "austen-moe"))
			e.Setenv("GOGC", "400") // as in package tiny
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "posix": // named pipes and limits on file sizes
				return posix, nil
			case "mount":
				return canMount(), nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"tiny":     func(ts *testscript.TestScript, _ bool, a []string) { model(ts, t, a).HF(tb{t, ts}, ts.MkAbs(a[1])) },
			"tinygguf": func(ts *testscript.TestScript, _ bool, a []string) { model(ts, t, a).GGUF(tb{t, ts}, ts.MkAbs(a[1])) },
			"exits":    exits,
			"refuses":  refuses,
			"json":     hasKeys,
			"poke":     poke,
			"cut":      cut,
			"repl":     repl,
			"copytree": func(ts *testscript.TestScript, _ bool, a []string) {
				ts.Check(os.CopyFS(ts.MkAbs(a[1]), os.DirFS(ts.MkAbs(a[0]))))
			},
			"hub":  func(ts *testscript.TestScript, _ bool, a []string) { startHub(ts, t, a) },
			"fifo": func(ts *testscript.TestScript, _ bool, a []string) { fifo(ts, ts.MkAbs(a[0])) },
			"link": func(ts *testscript.TestScript, _ bool, a []string) {
				ts.Check(os.Symlink(ts.MkAbs(a[0]), ts.MkAbs(a[1])))
			},
			"mountfs": mountfs,
			"waitfor": waitfor,
		},
	})
}

// tb lets package tiny fail a script.
type tb struct {
	testing.TB
	ts *testscript.TestScript
}

func (tb) Helper()                     {}
func (b tb) Fatal(a ...any)            { b.ts.Fatalf("%s", fmt.Sprint(a...)) }
func (b tb) Fatalf(f string, a ...any) { b.ts.Fatalf(f, a...) }

// startHub is "hub ORG/NAME DIR [TOKEN]": a server that has a folder's files as a model of the hub, and an
// empty cache.
func startHub(ts *testscript.TestScript, t *testing.T, a []string) {
	h := hubtest.New(t)
	h.AddFolder(tb{t, ts}, a[0], ts.MkAbs(a[1]))
	if len(a) > 2 {
		h.Token = a[2]
	}
	ts.Setenv("HF_ENDPOINT", h.URL)
	ts.Setenv("HF_HOME", ts.MkAbs("hfhome"))
}

func model(ts *testscript.TestScript, t *testing.T, args []string) *tiny.Model {
	o := tiny.Options{Config: map[string]any{}}
	for _, a := range args[2:] {
		name, value, ok := strings.Cut(a, "=")
		n, err := strconv.Atoi(value)
		switch {
		case !ok:
			ts.Fatalf("%q is not name=value", a)
		case name == "dtype":
			o.DType = value
		case name == "nan": // the tensor of this name gets one at its end
			o.Edit = func(tensor string, x []float32) {
				if tensor == value {
					zero := float32(0)
					x[len(x)-1] = zero / zero
				}
			}
		case strings.HasPrefix(name, "config."):
			var v any
			if json.Unmarshal([]byte(value), &v) != nil {
				v = value
			}
			o.Config[strings.TrimPrefix(name, "config.")] = v
		case err != nil:
			ts.Fatalf("%s: %v", a, err)
		case name == "seed":
			o.Seed = uint64(n)
		case name == "layers":
			o.Layers = n
		case name == "shards":
			o.Shards = n
		case name == "window":
			o.Window = n
		case name == "headdim":
			o.HeadDim = n
		case name == "notokenizer":
			o.NoTokenizer = n != 0
		default:
			ts.Fatalf("no option %s", name)
		}
	}
	return tiny.New(tb{t, ts}, args[0], o)
}

// run returns the exit code of a command.
func run(ts *testscript.TestScript, args []string) int {
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	ts.Fatalf("%s: %v", args[0], err)
	return -1
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ...")
	}
	if got := run(ts, args[1:]); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// progressLine is what may stand on stderr beside the error.
var progressLine = regexp.MustCompile(`^[a-zA-Z0-9 -]+: (done, )?\d+ of \d+(, [0-9.msh]+)?$`)

func refuses(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: refuses CODE REGEXP COMMAND ...")
	}
	want, err := regexp.Compile(args[1])
	ts.Check(err)
	before := tree(ts)
	code := run(ts, args[2:])
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	var lines []string
	for _, l := range strings.Split(strings.TrimSuffix(stderr, "\n"), "\n") {
		if !progressLine.MatchString(l) {
			lines = append(lines, l)
		}
	}
	switch {
	case strconv.Itoa(code) != args[0]:
		ts.Fatalf("exit code %d, want %s", code, args[0])
	case stdout != "":
		ts.Fatalf("stdout is not empty")
	case len(lines) != 1 || !strings.HasPrefix(lines[0], "phaseconv: "):
		ts.Fatalf("stderr is %d lines; one error is wanted", len(lines))
	case !want.MatchString(lines[0]):
		ts.Fatalf("the error does not match %q", want)
	}
	if after := tree(ts); after != before {
		ts.Fatalf("files before:\n%s\nafter:\n%s", before, after)
	}
}

// tree lists what is in the script's folder, with sizes.
func tree(ts *testscript.TestScript) string {
	var out []string
	ts.Check(filepath.WalkDir(ts.Getenv("WORK"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		size := int64(0)
		if st, err := d.Info(); err == nil && !d.IsDir() {
			size = st.Size()
		}
		out = append(out, fmt.Sprintf("%s %d", path, size))
		return nil
	}))
	sort.Strings(out)
	return strings.Join(out, "\n")
}

func hasKeys(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); err != nil {
		ts.Fatalf("stdout is not one JSON value: %v", err)
	}
	for _, key := range args {
		x, ok := v, true
		for _, part := range strings.Split(key, ".") {
			if list, is := x.([]any); is && len(list) > 0 {
				x = list[0]
			}
			m, _ := x.(map[string]any)
			if x, ok = m[part]; !ok {
				break
			}
		}
		if ok == neg {
			ts.Fatalf("key %s: there: %v", key, ok)
		}
	}
}

func poke(ts *testscript.TestScript, neg bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	for i := 0; i < len(args[2]); i += 2 {
		v, err := strconv.ParseUint(args[2][i:i+2], 16, 8)
		ts.Check(err)
		b[at+i/2] = byte(v)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o666))
}

func cut(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.ReadFile(args[0])
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b[:len(b)-n]), 0o666))
}

func repl(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.ReadFile(args[0])
	if !strings.Contains(b, args[1]) {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(b, args[1], args[2])), 0o666))
}

func waitfor(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		found, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		switch {
		case neg && len(found) > 0:
			ts.Fatalf("%v is there", found)
		case neg || len(found) > 0:
			return
		case time.Now().After(deadline):
			ts.Fatalf("%s did not appear", args[0])
		}
	}
}
