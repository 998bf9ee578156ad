package tokenizer

import (
	"encoding/binary"
	"fmt"
	"math"
)

// sentencePieceModel is what is needed of a tokenizer.model file: the protobuf
// message ModelProto of SentencePiece.
type sentencePieceModel struct {
	pieces []sentencePiece

	modelType          int // 1 unigram, 2 BPE, 3 word, 4 char
	unk, bos, eos, pad int32

	charsMap              bool // a normalization table is present
	addDummyPrefix        bool
	removeExtraWhitespace bool
}

type sentencePiece struct {
	text  string
	score float32
	kind  int // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
}

// spTypes maps the piece types of the protobuf to token types; their numbers agree.
var spTypes = [...]int32{1: TypeNormal, 2: TypeUnknown, 3: TypeControl, 4: TypeUserDefined, 5: TypeUnused, 6: TypeByte}

// parseSentencePiece reads a tokenizer.model file.
func parseSentencePiece(file string, data []byte) (*sentencePieceModel, error) {
	m := &sentencePieceModel{modelType: 1, bos: 1, eos: 2, pad: -1, addDummyPrefix: true, removeExtraWhitespace: true}
	err := eachField(file, data, 0, func(num int, x uint64, sub []byte, at int64) error {
		switch num {
		case 1: // pieces
			if len(m.pieces) >= MaxVocab {
				return &FormatError{File: file, Offset: at, Msg: fmt.Sprintf("more than %d pieces", MaxVocab)}
			}
			p := sentencePiece{kind: 1}
			err := eachField(file, sub, at, func(num int, x uint64, sub []byte, at int64) error {
				switch num {
				case 1:
					p.text = string(sub)
				case 2:
					p.score = math.Float32frombits(uint32(x))
				case 3:
					if x < 1 || x >= uint64(len(spTypes)) {
						return &FormatError{File: file, Offset: at, Msg: fmt.Sprintf("piece %d has type %d", len(m.pieces), x)}
					}
					p.kind = int(x)
				}
				return nil
			})
			m.pieces = append(m.pieces, p)
			return err
		case 2: // trainer_spec
			return eachField(file, sub, at, func(num int, x uint64, _ []byte, _ int64) error {
				switch num {
				case 3:
					m.modelType = int(x)
				case 40:
					m.unk = int32(x)
				case 41:
					m.bos = int32(x)
				case 42:
					m.eos = int32(x)
				case 43:
					m.pad = int32(x)
				}
				return nil
			})
		case 3: // normalizer_spec
			return eachField(file, sub, at, func(num int, x uint64, sub []byte, _ int64) error {
				switch num {
				case 2:
					m.charsMap = len(sub) > 0
				case 3:
					m.addDummyPrefix = x != 0
				case 4:
					m.removeExtraWhitespace = x != 0
				}
				return nil
			})
		}
		return nil
	})
	if err == nil && len(m.pieces) == 0 {
		err = &FormatError{File: file, Offset: -1, Msg: "no SentencePiece model: it holds no pieces"}
	}
	return m, err
}

// eachField calls f for each field of a protobuf message that lies at base in
// the file: with x for numbers of any width, with sub for bytes.
func eachField(file string, data []byte, base int64, f func(num int, x uint64, sub []byte, at int64) error) error {
	for i := 0; i < len(data); {
		at := base + int64(i)
		bad := func(what string) error {
			return &FormatError{File: file, Offset: at, Msg: "no SentencePiece model: " + what}
		}
		tag, n := binary.Uvarint(data[i:])
		if n <= 0 || tag>>3 == 0 || tag>>3 > math.MaxInt32 {
			return bad("bad protobuf tag")
		}
		i += n
		var x uint64
		var sub []byte
		switch tag & 7 {
		case 0:
			if x, n = binary.Uvarint(data[i:]); n <= 0 {
				return bad("bad protobuf number")
			}
		case 1:
			if n = 8; len(data)-i < n {
				return bad("truncated")
			}
			x = binary.LittleEndian.Uint64(data[i:])
		case 2:
			size, k := binary.Uvarint(data[i:])
			if k <= 0 || size > uint64(len(data)-i-k) {
				return bad("bad protobuf length")
			}
			sub = data[i+k : i+k+int(size)]
			at = base + int64(i+k)
			n = k + int(size)
		case 5:
			if n = 4; len(data)-i < n {
				return bad("truncated")
			}
			x = uint64(binary.LittleEndian.Uint32(data[i:]))
		default:
			return bad(fmt.Sprintf("protobuf wire type %d", tag&7))
		}
		i += n
		if err := f(int(tag>>3), x, sub, at); err != nil {
			return err
		}
	}
	return nil
}
