// Command forward times the forward pass that "phaseconv verify" measures with, for
// float keys or for 1-bit keys alone, and prints one line of JSON: seconds, tokens
// per second and perplexity. scripts/bench/llama.sh holds it against llama-perplexity.
//
//	forward -model model.gguf -text text.txt [-ctx 512] [-chunks 16] [-threads 2]
//	forward -artifact DIR -text text.txt ...    1-bit keys of an artifact
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "forward:", err)
		os.Exit(1)
	}
}

func run() error {
	model := flag.String("model", "", "checkpoint to run with float keys")
	artifact := flag.String("artifact", "", "artifact to run with its 1-bit keys")
	file := flag.String("text", "", "text to measure on")
	ctx, chunks := flag.Int("ctx", 512, "context length"), flag.Int("chunks", 16, "windows")
	threads := flag.Int("threads", 0, "threads, 0 for all")
	flag.Parse()
	data, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	start := time.Now()
	c, variant, err := open(*model, *artifact)
	if err != nil {
		return err
	}
	defer c.Close()
	w, err := ppl.Tokenize(context.Background(), c, ppl.Text{Name: *file, Data: data}, *ctx, *chunks)
	if err != nil {
		return err
	}
	res, err := ppl.Compare(context.Background(), refmodel.New(c.Config, c, *threads), w, refmodel.Options{}, variant)
	if err != nil {
		return err
	}
	seconds := time.Since(start).Seconds()
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"keys": map[bool]string{true: "float", false: "1-bit"}[variant.Cache == nil], "seconds": seconds,
		"tokens_per_second": float64(len(w.Tokens)*w.Ctx) / seconds, "ppl": res.Base.PPL,
	})
}

func open(model, artifact string) (*checkpoint.Checkpoint, *refmodel.Variant, error) {
	if model != "" {
		c, err := checkpoint.Open(model)
		return c, &refmodel.Variant{}, err
	}
	checks := &contract.Checker{}
	a, err := contract.Open(context.Background(), artifact, "", checks)
	if err != nil {
		return nil, nil, err
	}
	if a == nil {
		return nil, nil, errors.New("not an artifact, or damaged; phaseconv verify says what is wrong")
	}
	s := a.Sidecar
	cache, err := kvcache.NewCodes(a.Model.Config, s.Codes, kvcache.Policy{Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent})
	return a.Model, &refmodel.Variant{Cache: cache}, err
}
