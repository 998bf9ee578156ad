package gguf

// Limits on what a file may claim. They lie far above real models and keep a
// broken or hostile file from costing more than its own size: apart from them,
// every count is checked against the bytes that are left in the file before
// anything is allocated for it.
const (
	// MaxKVs is the largest number of key-value pairs; models have about 40.
	MaxKVs = 1 << 16

	// MaxTensors is the largest number of tensors of a file or split; models have
	// up to a few thousand.
	MaxTensors = 1 << 18

	// MaxKeyLength is the longest key in bytes, as the format states it.
	MaxKeyLength = 1<<16 - 1

	// MaxStringLength is the longest string value in bytes. Chat templates, the
	// longest strings of real files, have some 100 KB.
	MaxStringLength = 1 << 28

	// MaxArrayLength is the largest number of elements of an array. Vocabularies,
	// the longest arrays of real files, have some 500,000.
	MaxArrayLength = 1 << 28

	// MaxArrayDepth is how deep arrays may be nested. llama.cpp reads depth 1 only.
	MaxArrayDepth = 4

	// MaxDims is the number of dimensions of a tensor that ggml has.
	MaxDims = 4

	// MaxTensorName is the longest tensor name in bytes that a file may hold, as
	// the format states it.
	MaxTensorName = 64

	// MaxTensorNameWritten is one byte less: llama.cpp keeps names in 64 bytes with
	// a terminating zero and refuses a file with a longer one.
	MaxTensorNameWritten = 63

	// MaxAlignment is the largest alignment of tensor data; the default is 32.
	MaxAlignment = 1 << 20

	// MaxShards is the largest number of files of a split.
	MaxShards = 1000
)

// DefaultAlignment holds for files without the key general.alignment.
const DefaultAlignment = 32
