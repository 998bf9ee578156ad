package verify_test

import (
	"context"
	"fmt"
	"log"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// What a model loses with two pairs of llama.cpp's cache types.
func ExampleAdvise() {
	model, err := checkpoint.Open("../testdata/austen-moe")
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	advice, err := verify.Advise(context.Background(), model, nil, verify.AdviseOptions{
		Texts: []ppl.Text{{Name: texts.EvaluationName, Data: texts.Evaluation}}, Ctx: []int{64}, Chunks: 1,
		MaxKLD: 0.05, Rotation: true,
		Pairs: []kvcache.CacheTypes{{K: gguf.TypeQ8_0, V: gguf.TypeQ8_0}, {K: gguf.TypeQ4_0, V: gguf.TypeQ4_0}},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range advice.Rows {
		fmt.Printf("K %s, V %s: %.0f bytes a token, lost less than 0.05 nats: %v\n", r.KType, r.VType, r.BytesPerToken,
			r.KLD < 0.05)
	}
	// Output:
	// K q8_0, V q8_0: 2176 bytes a token, lost less than 0.05 nats: true
	// K q4_0, V q4_0: 1152 bytes a token, lost less than 0.05 nats: true
}
