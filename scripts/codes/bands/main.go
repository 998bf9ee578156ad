// Command bands measures how the divergence of 1-bit keys grows along a long window,
// for artifacts of one model that were fitted alike but for their anchors, say. It
// prints a table in Markdown: KL divergence from float keys per band of positions.
//
//	bands -text text.txt [-ctx 8192] [-threads 2] ARTIFACT...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bands:", err)
		os.Exit(1)
	}
}

// first position that is measured: earlier predictions hardly have a context.
const first = 64

func run() error {
	file := flag.String("text", "", "text to measure on")
	ctx := flag.Int("ctx", 8192, "length of the window")
	threads := flag.Int("threads", 0, "threads, 0 for all")
	flag.Parse()
	data, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	fmt.Print("| positions |")
	for _, dir := range flag.Args() {
		fmt.Printf(" %s |", filepath.Base(dir))
	}
	fmt.Print("\n|---|")
	var all [][]float64 // [artifact][token]
	for _, dir := range flag.Args() {
		fmt.Print("---|")
		kld, err := measure(dir, ppl.Text{Name: *file, Data: data}, *ctx, *threads)
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		all = append(all, kld)
	}
	fmt.Println()
	for lo, hi := first, 512; lo < *ctx-1; lo, hi = hi, 2*hi {
		hi = min(hi, *ctx-1)
		fmt.Printf("| %d to %d |", lo, hi-1)
		for _, kld := range all {
			mean, err := ppl.MeanErr(kld[lo-first : hi-first])
			fmt.Printf(" %.3f ± %.3f |", mean, err)
		}
		fmt.Println()
	}
	return nil
}

func measure(dir string, text ppl.Text, n, threads int) ([]float64, error) {
	checks := &contract.Checker{}
	a, err := contract.Open(context.Background(), dir, "", checks)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, errors.New("not an artifact, or damaged; phaseconv verify says what is wrong")
	}
	defer a.Model.Close()
	cfg, s := a.Model.Config, a.Sidecar
	cache, err := kvcache.NewCodes(cfg, s.Codes, kvcache.Policy{Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent})
	if err != nil {
		return nil, err
	}
	w, err := ppl.Tokenize(context.Background(), a.Model, text, n, 1)
	if err != nil {
		return nil, err
	}
	res, err := ppl.Compare(context.Background(), refmodel.New(cfg, a.Model, threads), ppl.From(w.Tokens, first), refmodel.Options{},
		&refmodel.Variant{}, &refmodel.Variant{Cache: cache})
	if err != nil {
		return nil, err
	}
	return res.Divergences[0].KLD, nil
}
