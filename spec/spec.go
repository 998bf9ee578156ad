// Package spec holds the names and numbers of the phaseconv format, versions 1 and 2:
// metadata keys, tensor names, limits, and the shapes of the manifest and of the
// reports as JSON. The normative text lies beside it. The package imports nothing
// of phaseconv, so that other programs can use it alone.
package spec

// Versions of the format that this package describes. A reader refuses every other.
// Writers use the lowest that can say what they have to.
const (
	// Version is that of files with one code per KV head, for keys alone, and of folds.
	Version = 1
	// VersionGroups is that of files with groups: codes of the keys and values of several
	// heads together.
	VersionGroups = 2
)

// Names of the files of an artifact.
const (
	ManifestName    = "phaseconv.json"
	GGUFModelName   = "model.gguf"
	GGUFSidecarName = "model.phase.gguf"
	// These are safetensors files, but do not say so by their ending: loaders read
	// every *.safetensors of a folder as weights.
	SafetensorsSidecarName = "phaseconv.sidecar"
	FoldName               = "phaseconv.fold"
	// FormerFoldName is what programs before 0.2 called the fold. The manifest says
	// which name an artifact has.
	FormerFoldName = "phaseconv.fold.safetensors"
	// CardName is the model card, which stands beside an artifact and not in its manifest;
	// SourceCardName is the source's, copied.
	CardName       = "README.md"
	SourceCardName = "README.source.md"

	// ProvenanceName is the statement of provenance of a release, SignatureName the signature of all
	// files that OpenSSF's model-signing writes beside them.
	ProvenanceName = "phaseconv.intoto.json"
	SignatureName  = "model.sig"
	// ConfigObject is the object that a converted config.json carries.
	ConfigObject = "phaseconv"
)

// Architecture is general.architecture of a sidecar GGUF.
const Architecture = "phaseconv"

// Sidecar keys. In a GGUF sidecar they are typed metadata; in a safetensors
// sidecar they are strings in __metadata__, numbers in decimal.
const (
	KeyVersion            = "phaseconv.version"
	KeyCode               = "phaseconv.code"       // how the code was made, informative
	KeyLayers             = "phaseconv.layers"     // layers that own keys
	KeyHeads              = "phaseconv.head_count" // KV heads per layer
	KeyHeadDim            = "phaseconv.head_dim"
	KeyAnchor             = "phaseconv.anchor"
	KeySink               = "phaseconv.sink"
	KeyRecent             = "phaseconv.recent"
	KeyExceptions         = "phaseconv.exceptions"
	KeyBasis              = "phaseconv.basis"
	KeyPairLayout         = "phaseconv.pair_layout"
	KeyRope               = "phaseconv.rope"
	KeySourceSHA256       = "phaseconv.source.sha256"
	KeyWeightsSHA256      = "phaseconv.weights.sha256"
	KeyCalibrationSHA256  = "phaseconv.calibration.sha256"
	KeyCalibrationTokens  = "phaseconv.calibration.tokens"
	KeyCalibrationContext = "phaseconv.calibration.context"
	KeyTool               = "phaseconv.tool"
	// KeyGroups lists layers and their groups as JSON. Version 2 has it instead of the
	// three numbers of a layer's shape and the exceptions.
	KeyGroups = "phaseconv.groups"
)

// FoldList is the key of a fold file that lists the edited tensors.
const FoldList = "phaseconv.fold"

// FoldResidual is the key of a fold file with the size of identity G1's rotation and of its
// Hadamard blocks.
const FoldResidual = "phaseconv.fold.residual"

// ModelPrefix begins the keys that a converted model GGUF carries; readers that
// do not know them ignore keys under "general.".
const ModelPrefix = "general."

// BasisPostRope is the only basis of version 1: codes apply to keys after RoPE.
const BasisPostRope = "post_rope"

// Limits of both versions. A reader refuses what exceeds them.
const (
	MaxLayers  = 1 << 12
	MaxHeads   = 1 << 12
	MaxHeadDim = 1 << 12
	MaxBits    = 1 << 11 // signs per key
	// MaxBitsPerNumber bounds the signs of a key by its length d: at most 8 d.
	MaxBitsPerNumber = 1 << 3
	MaxAnchor        = 1 << 20
	MaxSink          = 1 << 20
	MaxRecent        = 1 << 20
	// MaxExceptionDim is the largest head_dim of keys with exceptions: their
	// coordinates take 8 bits.
	MaxExceptionDim = 1 << 8
	// MaxGroupDim bounds the numbers of a group's vector. A code of as many signs has
	// matrices of 16 MiB.
	MaxGroupDim = 1 << 11
	// MaxGroupsText bounds the JSON of the key phaseconv.groups in bytes.
	MaxGroupsText = 1 << 20
)

// DefaultGroupDim is the largest vector of a group that writers make unless they are
// told otherwise: encoders and anchors cost a runtime time that grows with its square.
const DefaultGroupDim = 512
