//go:build linux && (amd64 || arm64)

// Command kcache measures stock llama.cpp's key cache types through its library:
// KL divergence and perplexity against a model as published with F16 caches, of
// the published and of a converted file. It prints rows of a Markdown table.
//
//	PHASECONV_LIBLLAMA=DIR go run ./kcache -text wiki.test.raw [-emulate q1_0] NAME PUBLISHED.gguf [CONVERTED.gguf]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/verify/internal/libllama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kcache:", err)
		os.Exit(1)
	}
}

func run() error {
	text := flag.String("text", "", "held-out text, a file")
	o := libllama.CacheOptions{}
	flag.IntVar(&o.Ctx, "ctx", 512, "tokens of a window; the second half is scored")
	flag.IntVar(&o.Chunks, "chunks", 4, "windows")
	flag.IntVar(&o.Threads, "threads", 0, "threads (default: all)")
	emulate := flag.String("emulate", "", "key types to measure phaseconv's emulation of too, like q4_0,q1_0")
	flag.Parse()
	if *text == "" || flag.NArg() < 2 || flag.NArg() > 3 {
		return fmt.Errorf("usage: kcache -text FILE [options] NAME PUBLISHED.gguf [CONVERTED.gguf]")
	}
	for _, name := range strings.FieldsFunc(*emulate, func(r rune) bool { return r == ',' }) {
		k, err := kvcache.ParseStockType(name)
		if err != nil {
			return err
		}
		o.Emulate = append(o.Emulate, k)
	}
	dir := os.Getenv(libllama.Env)
	if dir == "" {
		return fmt.Errorf("set %s to the folder with llama.cpp's shared libraries", libllama.Env)
	}
	name := flag.Arg(0)
	o.Published, o.Converted = flag.Arg(1), flag.Arg(2)
	data, err := os.ReadFile(*text)
	if err != nil {
		return err
	}
	o.Text = ppl.Text{Name: filepath.Base(*text), Data: data}
	l, err := libllama.Open(dir)
	if err != nil {
		return err
	}
	rows, base, err := libllama.CacheTypes(context.Background(), l, o)
	if err != nil {
		return err
	}
	for _, r := range rows {
		weights := "as published"
		if r.Converted {
			weights = "balanced"
		}
		fmt.Printf("| %s | %s | %s |", name, weights, kvcache.TypeName(r.K))
		if r.Refused != "" {
			fmt.Fprintf(os.Stderr, "%s %s\n", name, r.Refused)
			fmt.Println(" refused | | | |")
			continue
		}
		fmt.Printf(" %.6f ± %.6f | %.4f ± %.4f | %.1f %% |", r.KLD, r.KLDErr, r.Ratio, r.RatioErr, 100*r.SameTop)
		if e := r.Emulated; e != nil {
			fmt.Printf(" %.6f ± %.6f |\n", e.KLD, e.KLDErr)
		} else {
			fmt.Println(" |")
		}
	}
	fmt.Fprintf(os.Stderr, "%s: perplexity %.4f with F16 caches, %d windows of %d of %s\n%s\n", name, base.PPL, o.Chunks,
		o.Ctx, o.Text.Name, l.SystemInfo())
	return nil
}
