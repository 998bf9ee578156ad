package command

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/internal/tiny"
)

// numbers is what every flag that takes a number is given.
var numbers = []string{"0", "-1", "3", "2147483648", "9223372036854775807", "-9223372036854775808",
	"18446744073709551615", "99999999999999999999",
	"1e308", "1e-320", "NaN", "Inf", "-Inf", "", "x"}

// words is what flags that take a text are given: nothing that names a file that is there.
var words = []string{"", " ", "x", "0", "-1/0", "1/0", "0/1", "2/1", "1/99999999999999999999", "NaN", "x/y", "x\x00y"}

// TestFlagSweep gives every flag of every command numbers that are none, and words
// without a meaning. Whatever comes, the program ends by itself: good, or with exit code
// 2 and one sentence about the flag where a number is wrong. The flags come from the command
// tree, so new ones are covered.
func TestFlagSweep(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tiny.HF(t, "src", "llama", tiny.Options{Seed: 1, Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 32, Hidden: 32, FFN: 32,
		Context: 128})
	tiny.HF(t, "two", "llama", tiny.Options{Seed: 1, Heads: 1, KVHeads: 1, HeadDim: 32, Hidden: 32, FFN: 32, Context: 128})
	// Texts so short that all of them is little.
	for name, word := range map[string]string{"calib.txt": "the river and the stone ",
		"held.txt": "a field of barley in the wind "} {
		if err := os.WriteFile(name, []byte(strings.Repeat(word, 20)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	small := []string{"--ctx", "64", "--chunks", "1", "--threads", "1"}
	fitted := append([]string{"--calib", "calib.txt", "--calib-tokens", "64"}, small...)
	at := 0
	out := func() string { at++; return fmt.Sprint("out", at) }
	if code, said := try(append([]string{"convert", "src", "-o", "art", "--code", "frame", "--report=false", "--eval", "held.txt"},
		fitted...)); code != 0 {
		t.Fatalf("%d: %s", code, said)
	}
	// How each command is called; flags that mean nothing alone get what they go with.
	base := map[string]func() []string{
		"convert": func() []string {
			return append([]string{"src", "-o", out(), "--report=false", "--code", "srht", "--eval", "held.txt"}, fitted...)
		},
		"verify": func() []string { return append([]string{"art", "--text", "held.txt"}, small...) },
		"audit":  func() []string { return append([]string{"src", "--code", "srht", "--text", "held.txt"}, fitted...) },
		"advise": func() []string {
			return append([]string{"src", "--pairs", "f16/f16", "--text", "held.txt"}, small...) // which passes every gate
		},
		"ladder": func() []string {
			return append([]string{"two", "--until", "RW0", "--fit", "calib.txt", "--fit-chunks", "1", "--eval", "held.txt",
				"--queries", "16"}, small...)
		},
		"ladder show":      func() []string { return []string{"art"} },
		"inspect":          func() []string { return []string{"art/model.gguf"} },
		"rotations export": func() []string { return []string{"art", "-o", out()} },
		"rotations apply":  func() []string { return []string{"art", "--base", "src", "-o", out()} },
		"rotations check":  func() []string { return []string{"art"} },
		"rotations diff":   func() []string { return []string{"art", "art"} },
		"rotations ffn":    func() []string { return []string{"src", "-o", out() + ".ffn", "--threads", "1"} },
		"bench":            func() []string { return []string{"--seconds", "0.0001", "--keys", "64"} },
		"generate":         func() []string { return []string{"art", "-p", "It is", "-n", "2", "--threads", "1"} },
		"engine probe":     func() []string { return nil },
		"release":          func() []string { return []string{"art", "-o", out()} },
		"recall": func() []string {
			return []string{"two", "--ctx", "64", "--samples", "1", "--depths", "0.5", "--pairs", "q8_0/q8_0", "--text", "held.txt",
				"--threads", "1"}
		},
		"report": func() []string {
			return append([]string{"art", "-o", out(), "--measure", "--text", "held.txt", "--calib", "calib.txt",
				"--calib-tokens", "64"}, small...)
		},
		"card":    func() []string { return []string{"art", "-o", "-"} },
		"claims":  func() []string { return nil },
		"docs":    func() []string { return nil },
		"version": func() []string { return nil },
	}
	with := map[string][]string{
		"target-ctx": {"--cache-type-k", "q4_0", "--cache-tokens", "128"}, "cache-tokens": {"--cache-type-k", "q4_0",
			"--target-ctx", "64"},
		"audit target-ctx": {}, // without --gains, which takes no texts
		"bits":             {"--code", "frame"}, "ffn-block": {"--ffn"}, "units": {"--plan"},
	}
	var walk func(path []string, c *cli.Command)
	walk = func(path []string, c *cli.Command) {
		for _, x := range c.Commands {
			walk(append(path, x.Name), x)
		}
		name := strings.Join(path, " ")
		args, known := base[name]
		if !known {
			if len(c.Commands) == 0 {
				t.Errorf("the sweep does not know how to call %q", name)
			}
			return
		}
		for _, f := range c.Flags {
			flag, values, number := f.Names()[0], words, false
			extra, own := with[name+" "+flag]
			if !own {
				extra = with[flag]
			}
			switch f.(type) {
			case *cli.IntFlag, *cli.Uint64Flag, *cli.FloatFlag, *cli.IntSliceFlag, *cli.FloatSliceFlag:
				values, number = numbers, true
			case *cli.StringFlag, *cli.StringSliceFlag, *cli.GenericFlag:
			case *cli.BoolFlag:
				values = []string{"maybe", ""}
			default:
				t.Errorf("%s --%s: the sweep does not know flags of type %T", name, flag, f)
			}
			for _, v := range values {
				call := append(append(append(append([]string{}, path...), args()...), extra...), "--"+flag+"="+v)
				code, said := try(call)
				last := said[strings.LastIndex(strings.TrimSpace(said), "\n")+1:]
				switch {
				case strings.Contains(said, "panic: ") || strings.Contains(said, "runtime error"):
					t.Errorf("%q: %s", call, said)
				case code == 1 && strings.Contains(last, "interrupted"):
				case number && code == 1, code < 0 || code > 2:
					t.Errorf("%q: exit code %d: %s", call, code, last)
				case code != 0 && !strings.HasPrefix(last, "phaseconv: "):
					t.Errorf("%q: says %q", call, last)
				case number && code == 2 && !strings.Contains(last, flag):
					t.Errorf("%q: does not name the flag: %s", call, last)
				case strings.Contains(last, ".partial"):
					t.Errorf("%q: names a hidden folder: %s", call, last)
				}
			}
		}
	}
	var b bytes.Buffer
	walk(nil, root(&b, &b))
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// try runs the program in this process and returns its exit code and what it says on
// stderr; a panic is what it says.
func try(args []string) (code int, said string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// What is measured is large, whatever the flags say; and here is no library.
	if args[0] == "bench" || args[0] == "engine" {
		cancel()
	}
	var stdout, stderr bytes.Buffer
	defer func() {
		if p := recover(); p != nil {
			code, said = -1, fmt.Sprintf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	code = Run(ctx, append([]string{"phaseconv"}, args...), &stdout, &stderr)
	return code, stderr.String()
}
