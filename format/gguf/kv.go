package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Kind is the type of a metadata value. The values are the ids in files.
type Kind uint32

// The kinds of metadata values.
const (
	KindUint8   Kind = 0
	KindInt8    Kind = 1
	KindUint16  Kind = 2
	KindInt16   Kind = 3
	KindUint32  Kind = 4
	KindInt32   Kind = 5
	KindFloat32 Kind = 6
	KindBool    Kind = 7
	KindString  Kind = 8
	KindArray   Kind = 9
	KindUint64  Kind = 10
	KindInt64   Kind = 11
	KindFloat64 Kind = 12
)

const numKinds = 13

var kindNames = [numKinds]string{"uint8", "int8", "uint16", "int16", "uint32", "int32",
	"float32", "bool", "string", "array", "uint64", "int64", "float64"}

// kindSize is the encoded size of a scalar; 0 for strings and arrays.
var kindSize = [numKinds]int{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}

// String returns the kind's name, such as "uint32".
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// A KV is one key-value pair of a file's metadata. It holds the value as the
// file encodes it, so that writing a pair that was read changes no byte. Make
// new pairs with Value and Array.
type KV struct {
	Key  string
	kind Kind
	// raw is the value without key and kind. An array is its element kind
	// (uint32), its length (uint64) and its elements. It has been checked to be
	// complete, so decoding cannot run off its end.
	raw []byte
}

// Scalar lists the Go types of metadata values.
type Scalar interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64 | bool | string
}

// Value makes a pair with a single value, for example
// Value("general.alignment", uint32(64)).
func Value[T Scalar](key string, v T) KV {
	k := kindOf(v)
	return KV{Key: key, kind: k, raw: appendScalar(nil, any(v))}
}

// Array makes a pair with an array. An empty array keeps its element type; note
// that gguf-py refuses to write such arrays and llama.cpp reads them.
func Array[T Scalar](key string, v []T) KV {
	var zero T
	elem := kindOf(zero)
	raw := make([]byte, 0, 12+len(v)*max(kindSize[elem], 16))
	raw = binary.LittleEndian.AppendUint32(raw, uint32(elem))
	raw = binary.LittleEndian.AppendUint64(raw, uint64(len(v)))
	for _, x := range v {
		raw = appendScalar(raw, any(x))
	}
	return KV{Key: key, kind: KindArray, raw: raw}
}

func kindOf(v any) Kind {
	switch v.(type) {
	case uint8:
		return KindUint8
	case int8:
		return KindInt8
	case uint16:
		return KindUint16
	case int16:
		return KindInt16
	case uint32:
		return KindUint32
	case int32:
		return KindInt32
	case uint64:
		return KindUint64
	case int64:
		return KindInt64
	case float32:
		return KindFloat32
	case float64:
		return KindFloat64
	case bool:
		return KindBool
	}
	return KindString
}

func appendScalar(b []byte, v any) []byte {
	le := binary.LittleEndian
	switch v := v.(type) {
	case uint8:
		return append(b, v)
	case int8:
		return append(b, byte(v))
	case uint16:
		return le.AppendUint16(b, v)
	case int16:
		return le.AppendUint16(b, uint16(v))
	case uint32:
		return le.AppendUint32(b, v)
	case int32:
		return le.AppendUint32(b, uint32(v))
	case uint64:
		return le.AppendUint64(b, v)
	case int64:
		return le.AppendUint64(b, uint64(v))
	case float32:
		return le.AppendUint32(b, math.Float32bits(v))
	case float64:
		return le.AppendUint64(b, math.Float64bits(v))
	case bool:
		if v {
			return append(b, 1)
		}
		return append(b, 0)
	case string:
		return append(le.AppendUint64(b, uint64(len(v))), v...)
	}
	return b
}

// Kind returns the kind of the value, KindArray for arrays.
func (kv KV) Kind() Kind { return kv.kind }

// Elem returns the kind of an array's elements, and false if kv is no array.
func (kv KV) Elem() (Kind, bool) {
	if kv.kind != KindArray || len(kv.raw) < 12 {
		return 0, false
	}
	return Kind(binary.LittleEndian.Uint32(kv.raw)), true
}

// Len returns the number of elements of an array, and 1 for any other value.
func (kv KV) Len() int {
	if _, ok := kv.Elem(); !ok {
		return 1
	}
	return int(binary.LittleEndian.Uint64(kv.raw[4:]))
}

// Encoded returns the value as the file stores it, without key and kind. The
// caller must not change it.
func (kv KV) Encoded() []byte { return kv.raw }

// Value returns the value as the Go type of its kind: uint8 to float64, bool,
// string, a slice of one of these, or []any for an array of arrays. It returns
// nil for a KV that is not from a file, Value or Array.
func (kv KV) Value() any {
	if !kv.complete() {
		return nil
	}
	v, _ := decode(kv.kind, kv.raw)
	return v
}

// complete is false for a KV that did not come from a file, Value or Array.
func (kv KV) complete() bool {
	if kv.kind >= numKinds {
		return false
	}
	switch kv.kind {
	case KindString:
		return len(kv.raw) >= 8
	case KindArray:
		return len(kv.raw) >= 12
	}
	return len(kv.raw) == kindSize[kv.kind]
}

// String formats the pair for people; long values are cut.
func (kv KV) String() string {
	if !kv.complete() {
		return kv.Key + " (invalid)"
	}
	return kv.Key + " = " + kv.Text()
}

// Text formats the value for people, without the key; long values are cut. The
// value of a zero KV is "(invalid)".
func (kv KV) Text() string {
	const maxText, maxElems = 60, 5
	clip := func(s string) string {
		if len(s) > maxText {
			return strconv.Quote(s[:maxText]) + "..."
		}
		return strconv.Quote(s)
	}
	switch elem, isArray := kv.Elem(); {
	case !kv.complete():
		return "(invalid)"
	case kv.kind == KindString:
		return clip(string(kv.raw[8:]))
	case !isArray:
		return fmt.Sprint(kv.Value())
	default:
		var b strings.Builder
		fmt.Fprintf(&b, "%s[%d]", elem, kv.Len())
		rest := kv.raw[12:]
		for i := range min(kv.Len(), maxElems) {
			var v any
			if v, rest = decode(elem, rest); elem == KindString {
				v = clip(v.(string))
			}
			fmt.Fprintf(&b, "%s%v", [2]string{" ", ", "}[min(i, 1)], v)
		}
		if kv.Len() > maxElems {
			b.WriteString(", ...")
		}
		return b.String()
	}
}

// decode takes one value of kind k off the front of b, which is known to hold it.
func decode(k Kind, b []byte) (v any, rest []byte) {
	le := binary.LittleEndian
	switch k {
	case KindUint8:
		return b[0], b[1:]
	case KindInt8:
		return int8(b[0]), b[1:]
	case KindUint16:
		return le.Uint16(b), b[2:]
	case KindInt16:
		return int16(le.Uint16(b)), b[2:]
	case KindUint32:
		return le.Uint32(b), b[4:]
	case KindInt32:
		return int32(le.Uint32(b)), b[4:]
	case KindFloat32:
		return math.Float32frombits(le.Uint32(b)), b[4:]
	case KindBool:
		return b[0] != 0, b[1:]
	case KindString:
		n := le.Uint64(b)
		return string(b[8 : 8+n]), b[8+n:]
	case KindUint64:
		return le.Uint64(b), b[8:]
	case KindInt64:
		return int64(le.Uint64(b)), b[8:]
	case KindFloat64:
		return math.Float64frombits(le.Uint64(b)), b[8:]
	}
	elem, n := Kind(le.Uint32(b)), int(le.Uint64(b[4:]))
	b = b[12:]
	switch elem {
	case KindUint8:
		return decodeArray[uint8](elem, n, b)
	case KindInt8:
		return decodeArray[int8](elem, n, b)
	case KindUint16:
		return decodeArray[uint16](elem, n, b)
	case KindInt16:
		return decodeArray[int16](elem, n, b)
	case KindUint32:
		return decodeArray[uint32](elem, n, b)
	case KindInt32:
		return decodeArray[int32](elem, n, b)
	case KindFloat32:
		return decodeArray[float32](elem, n, b)
	case KindBool:
		return decodeArray[bool](elem, n, b)
	case KindString:
		return decodeArray[string](elem, n, b)
	case KindUint64:
		return decodeArray[uint64](elem, n, b)
	case KindInt64:
		return decodeArray[int64](elem, n, b)
	case KindFloat64:
		return decodeArray[float64](elem, n, b)
	}
	return decodeArray[any](elem, n, b)
}

func decodeArray[T any](elem Kind, n int, b []byte) (any, []byte) {
	out := make([]T, n)
	for i := range out {
		var v any
		v, b = decode(elem, b)
		out[i] = v.(T)
	}
	return out, b
}

// checkName applies the rules that reader and writer share. A zero byte would cut
// the name short in C programs and make two names equal.
func checkName(what, name string, maxLen int) error {
	switch {
	case name == "":
		return fmt.Errorf("the %s is empty", what)
	case len(name) > maxLen:
		return fmt.Errorf("the %s has %d bytes, at most %d are allowed", what, len(name), maxLen)
	case !utf8.ValidString(name):
		return fmt.Errorf("the %s %q is not UTF-8", what, name)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("the %s %q contains a zero byte", what, name)
	}
	return nil
}

// lookup finds a pair by key.
func (f *File) lookup(key string) (KV, error) {
	i, ok := f.kvIndex[key]
	if !ok {
		return KV{}, &FormatError{File: f.Path, Key: key, Offset: -1, Err: ErrKeyNotFound}
	}
	if kv := f.KVs[i]; kv.complete() {
		return kv, nil
	}
	return KV{}, &FormatError{File: f.Path, Key: key, Offset: -1, Msg: "the value is incomplete"}
}

// mistyped is the error of a getter that found another kind of value.
func (f *File) mistyped(kv KV, want string) error {
	got := kv.kind.String()
	if elem, ok := kv.Elem(); ok {
		got = "an array of " + elem.String()
	}
	return &FormatError{File: f.Path, Key: kv.Key, Offset: -1, Msg: fmt.Sprintf("the value is %s, expected %s", got, want)}
}

// KV returns the pair with the given key.
func (f *File) KV(key string) (KV, bool) {
	i, ok := f.kvIndex[key]
	if !ok {
		return KV{}, false
	}
	return f.KVs[i], true
}

// String returns a string value. A missing key gives an error that wraps
// ErrKeyNotFound, another kind of value a plain *FormatError; this holds for all
// getters.
func (f *File) String(key string) (string, error) {
	kv, err := f.lookup(key)
	if err != nil {
		return "", err
	}
	if kv.kind != KindString {
		return "", f.mistyped(kv, "a string")
	}
	return string(kv.raw[8:]), nil
}

// Bool returns a bool value.
func (f *File) Bool(key string) (bool, error) {
	kv, err := f.lookup(key)
	if err != nil {
		return false, err
	}
	if kv.kind != KindBool {
		return false, f.mistyped(kv, "bool")
	}
	return kv.raw[0] != 0, nil
}

// Uint returns the value of any integer kind that is not negative.
func (f *File) Uint(key string) (uint64, error) {
	kv, err := f.lookup(key)
	if err != nil {
		return 0, err
	}
	u, neg, ok := integer(kv.kind, kv.raw)
	if !ok || neg {
		return 0, f.mistypedInt(kv, ok, "an integer of 0 or more")
	}
	return u, nil
}

// Int returns the value of any integer kind that fits.
func (f *File) Int(key string) (int64, error) {
	kv, err := f.lookup(key)
	if err != nil {
		return 0, err
	}
	u, neg, ok := integer(kv.kind, kv.raw)
	if !ok || !neg && u > math.MaxInt64 {
		return 0, f.mistypedInt(kv, ok, "an integer of at most 63 bits")
	}
	return int64(u), nil
}

// Float returns a float32 or float64 value; a float32 is widened exactly.
func (f *File) Float(key string) (float64, error) {
	kv, err := f.lookup(key)
	if err != nil {
		return 0, err
	}
	switch kv.kind {
	case KindFloat32, KindFloat64:
		return float(kv.kind, kv.raw), nil
	}
	return 0, f.mistyped(kv, "a float")
}

// Strings returns an array of strings.
func (f *File) Strings(key string) ([]string, error) {
	kv, b, err := f.elements(key, "an array of strings", func(k Kind) bool { return k == KindString })
	if err != nil {
		return nil, err
	}
	// One string holds all elements; vocabularies have several 100,000.
	all := string(b)
	out := make([]string, kv.Len())
	at := 0
	for i := range out {
		n := int(binary.LittleEndian.Uint64(b[at:]))
		out[i] = all[at+8 : at+8+n]
		at += 8 + n
	}
	return out, nil
}

// Bools returns an array of bools.
func (f *File) Bools(key string) ([]bool, error) {
	kv, b, err := f.elements(key, "an array of bools", func(k Kind) bool { return k == KindBool })
	if err != nil {
		return nil, err
	}
	out := make([]bool, kv.Len())
	for i := range out {
		out[i] = b[i] != 0
	}
	return out, nil
}

// Ints returns an array of any integer kind whose elements all fit.
func (f *File) Ints(key string) ([]int64, error) {
	const want = "an array of integers of at most 63 bits"
	kv, b, err := f.elements(key, want, Kind.isInteger)
	if err != nil {
		return nil, err
	}
	elem, _ := kv.Elem()
	out := make([]int64, kv.Len())
	for i := range out {
		u, neg, _ := integer(elem, b)
		if !neg && u > math.MaxInt64 {
			return nil, &FormatError{File: f.Path, Key: key, Offset: -1, Msg: fmt.Sprintf("element %d is %d, expected %s", i, u,
				want)}
		}
		out[i], b = int64(u), b[kindSize[elem]:]
	}
	return out, nil
}

// Uints returns an array of any integer kind without negative elements.
func (f *File) Uints(key string) ([]uint64, error) {
	const want = "an array of integers of 0 or more"
	kv, b, err := f.elements(key, want, Kind.isInteger)
	if err != nil {
		return nil, err
	}
	elem, _ := kv.Elem()
	out := make([]uint64, kv.Len())
	for i := range out {
		u, neg, _ := integer(elem, b)
		if neg {
			return nil, &FormatError{File: f.Path, Key: key, Offset: -1, Msg: fmt.Sprintf("element %d is %d, expected %s", i,
				int64(u), want)}
		}
		out[i], b = u, b[kindSize[elem]:]
	}
	return out, nil
}

// Floats returns an array of float32 or float64; float32 is widened exactly.
func (f *File) Floats(key string) ([]float64, error) {
	kv, b, err := f.elements(key, "an array of floats", func(k Kind) bool { return k == KindFloat32 || k == KindFloat64 })
	if err != nil {
		return nil, err
	}
	elem, _ := kv.Elem()
	out := make([]float64, kv.Len())
	for i := range out {
		out[i], b = float(elem, b), b[kindSize[elem]:]
	}
	return out, nil
}

// elements finds an array whose element kind ok accepts, and its encoded elements.
func (f *File) elements(key, want string, ok func(Kind) bool) (KV, []byte, error) {
	kv, err := f.lookup(key)
	if err != nil {
		return KV{}, nil, err
	}
	if elem, isArray := kv.Elem(); !isArray || !ok(elem) {
		return KV{}, nil, f.mistyped(kv, want)
	}
	return kv, kv.raw[12:], nil
}

func (f *File) mistypedInt(kv KV, isInt bool, want string) error {
	if !isInt {
		return f.mistyped(kv, want)
	}
	return &FormatError{File: f.Path, Key: kv.Key, Offset: -1, Msg: fmt.Sprintf("the value is %v, expected %s", kv.Value(),
		want)}
}

func (k Kind) isInteger() bool {
	switch k {
	case KindUint8, KindInt8, KindUint16, KindInt16, KindUint32, KindInt32, KindUint64, KindInt64:
		return true
	}
	return false
}

// integer reads an integer of kind k at the front of b. A negative value comes
// back as its 64-bit two's complement with neg set; ok is false for other kinds.
func integer(k Kind, b []byte) (u uint64, neg, ok bool) {
	le := binary.LittleEndian
	var i int64
	switch k {
	case KindUint8:
		return uint64(b[0]), false, true
	case KindUint16:
		return uint64(le.Uint16(b)), false, true
	case KindUint32:
		return uint64(le.Uint32(b)), false, true
	case KindUint64:
		return le.Uint64(b), false, true
	case KindInt8:
		i = int64(int8(b[0]))
	case KindInt16:
		i = int64(int16(le.Uint16(b)))
	case KindInt32:
		i = int64(int32(le.Uint32(b)))
	case KindInt64:
		i = int64(le.Uint64(b))
	default:
		return 0, false, false
	}
	return uint64(i), i < 0, true
}

// float reads a float of kind KindFloat32 or KindFloat64 at the front of b.
func float(k Kind, b []byte) float64 {
	if k == KindFloat32 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(b))
}
