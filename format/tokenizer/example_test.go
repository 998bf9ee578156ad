package tokenizer_test

import (
	"fmt"
	"log"

	"github.com/phaseconv/phaseconv/format/tokenizer"
)

func Example() {
	vocab, err := tokenizer.ReadHF("testdata/austen-moe")
	if err != nil {
		log.Fatal(err)
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		log.Fatal(err)
	}
	ids := tok.Encode("She was nobody, with either father or sister.", tokenizer.Plain)
	for _, id := range ids {
		fmt.Printf("%s|", tok.Piece(id))
	}
	fmt.Printf("\n%s\n", tok.Decode(ids))
	// Output:
	// She| was| no|body|,| with| e|ither| father| or| sister|.|
	// She was nobody, with either father or sister.
}
