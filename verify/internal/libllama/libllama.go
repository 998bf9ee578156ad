//go:build linux && (amd64 || arm64)

// Package libllama runs models in stock llama.cpp, through its shared library and
// without cgo. It is a module of its own, so that phaseconv does not depend on it:
//
//	cd verify/internal/libllama && PHASECONV_LIBLLAMA=DIR go test -mod=mod ./...
//
// DIR holds libllama.so and libggml*.so of llama.cpp v0.5.0: a CPU build's
// build/bin, or bins/linux-x64 of the npm package @node-llama-cpp/linux-x64,
// version 3.22.1. Without PHASECONV_LIBLLAMA the tests are skipped and say so.
// Set PHASECONV_MODEL to a Hugging Face folder or a GGUF file of float weights to test it too.
package libllama

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// Env names the folder with the libraries.
const Env = "PHASECONV_LIBLLAMA"

// A Library is llama.cpp's, loaded into this process. One process loads one.
type Library struct {
	modelLoad   func(path string, p modelParams) uintptr
	modelFree   func(model uintptr)
	modelVocab  func(model uintptr) uintptr
	vocabTokens func(vocab uintptr) int32
	newContext  func(model uintptr, p contextParams) uintptr
	free        func(ctx uintptr)
	memory      func(ctx uintptr) uintptr
	memoryClear func(memory uintptr, data bool)
	decode      func(ctx uintptr, b batch) int32
	logits      func(ctx uintptr, i int32) *float32
	systemInfo  func() string

	mu  sync.Mutex
	log strings.Builder
}

// logInfo is the level of ggml_log_level from which messages are kept: information,
// which says what a cache is made of.
const logInfo = 2

// maxLog bounds the messages that are kept; a broken model could give any number.
const maxLog = 1 << 20

// find returns the one file in dir that matches a pattern: build trees name
// libllama.so, the npm package libllama.v0.5.0.so.
func find(dir string, patterns ...string) (string, error) {
	for _, p := range patterns {
		if m, err := filepath.Glob(filepath.Join(dir, p)); err == nil && len(m) == 1 {
			return m[0], nil
		}
	}
	return "", fmt.Errorf("%s: no %s there; %s names the folder with llama.cpp's shared libraries", dir,
		strings.Join(patterns, " or "), Env)
}

// Open loads llama.cpp from a folder. It refuses a release whose structs may be
// laid out in another way than this package's.
func Open(dir string) (*Library, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// In the order of their dependencies, which the loader need not find by itself then.
	var handles []uintptr
	for _, patterns := range [][]string{
		{"libggml-base.so"}, {"libggml.so", "libggml.v*.so"}, {"libllama.so", "libllama.v*.so"},
	} {
		path, err := find(dir, patterns...)
		if err != nil {
			return nil, err
		}
		h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		handles = append(handles, h)
	}
	ggml, llama := handles[1], handles[2]
	l := &Library{}
	var (
		loadAll     func(dir string)
		devices     func() uint64
		logSet      func(f, user uintptr)
		backendInit func()
		forModel    func() returnedModelParams
		forContext  func() returnedContextParams
	)
	for _, f := range []struct {
		handle uintptr
		name   string
		to     any
	}{
		{ggml, "ggml_backend_load_all_from_path", &loadAll},
		{ggml, "ggml_backend_dev_count", &devices},
		{llama, "llama_log_set", &logSet},
		{llama, "llama_backend_init", &backendInit},
		{llama, "llama_model_default_params", &forModel},
		{llama, "llama_context_default_params", &forContext},
		{llama, "llama_model_load_from_file", &l.modelLoad},
		{llama, "llama_model_free", &l.modelFree},
		{llama, "llama_model_get_vocab", &l.modelVocab},
		{llama, "llama_vocab_n_tokens", &l.vocabTokens},
		{llama, "llama_init_from_model", &l.newContext},
		{llama, "llama_free", &l.free},
		{llama, "llama_get_memory", &l.memory},
		{llama, "llama_memory_clear", &l.memoryClear},
		{llama, "llama_decode", &l.decode},
		{llama, "llama_get_logits_ith", &l.logits},
		{llama, "llama_print_system_info", &l.systemInfo},
	} {
		// RegisterLibFunc would panic where the library lacks the function.
		p, err := purego.Dlsym(f.handle, f.name)
		if err != nil {
			return nil, fmt.Errorf("%s: %s is missing: %w", dir, f.name, err)
		}
		purego.RegisterFunc(f.to, p)
	}
	if err := checkDefaults(forModel(), forContext()); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	logSet(purego.NewCallback(l.message), 0)
	// A build with its backends linked in has devices already; one with a library
	// per instruction set picks the best here.
	if devices() == 0 {
		loadAll(dir)
	}
	if devices() == 0 {
		return nil, fmt.Errorf("%s: no backend of llama.cpp could be loaded: %s", dir, l.messages())
	}
	backendInit()
	return l, nil
}

// message is called by llama.cpp with a zero-terminated line of its log.
func (l *Library) message(level int32, text *byte, _ uintptr) uintptr {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level >= logInfo && text != nil && l.log.Len() < maxLog {
		n := 0
		for *(*byte)(unsafe.Add(unsafe.Pointer(text), n)) != 0 {
			n++
		}
		l.log.Write(unsafe.Slice(text, n))
	}
	return 0
}

// messages returns what llama.cpp has logged since the last call.
func (l *Library) messages() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.log.String()
	l.log.Reset()
	return s
}

// SystemInfo names the instruction sets that llama.cpp uses.
func (l *Library) SystemInfo() string { return l.systemInfo() }

// Model is a loaded model; Close it.
type Model struct {
	// Vocab is the number of tokens, the length of a row of logits.
	Vocab int

	l *Library
	p uintptr
}

// Load opens a GGUF file. The error holds what llama.cpp said.
func (l *Library) Load(path string) (*Model, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	l.messages()
	p := modelDefaults
	p.GPULayers = 0
	// Weights as the file has them: packed copies would take memory for a second time.
	p.ExtraBuffers = false
	m := l.modelLoad(path, p)
	if m == 0 {
		return nil, fmt.Errorf("llama.cpp does not load %s: %s", path, errorLines(l.messages()))
	}
	return &Model{Vocab: int(l.vocabTokens(l.modelVocab(m))), l: l, p: m}, nil
}

// Close frees the model, whose contexts must have been closed.
func (m *Model) Close() {
	m.l.modelFree(m.p)
	m.p = 0
}

// Options of a context.
type Options struct {
	// Ctx is the number of tokens of a window.
	Ctx int
	// K and V are the cache types.
	K, V gguf.Type
	// Flash asks for flash attention, llama.cpp's default on a CPU and what
	// quantised caches need. Without it float32 caches give plain float32 attention.
	Flash   bool
	Threads int // 0: all that the machine offers
}

// Context is a model with a KV cache; Close it.
type Context struct {
	// Log is what llama.cpp said when it made the cache.
	Log string

	m       *Model
	p       uintptr
	ctx     int
	outputs []int8
}

// Context makes a KV cache. The error holds llama.cpp's reason, such as a block
// size that does not divide head_dim.
func (m *Model) Context(o Options) (*Context, error) {
	if o.Ctx <= 0 {
		return nil, fmt.Errorf("a context of %d tokens holds nothing", o.Ctx)
	}
	if (o.K.Quantized() || o.V.Quantized()) && !o.Flash {
		// llama.cpp holds block sizes against head_dim with flash attention only.
		return nil, fmt.Errorf("quantised caches (K %s, V %s) need flash attention", o.K, o.V)
	}
	m.l.messages()
	p := contextDefaults
	p.Ctx, p.Batch, p.Ubatch = uint32(o.Ctx), uint32(o.Ctx), uint32(o.Ctx)
	p.TypeK, p.TypeV = int32(o.K), int32(o.V)
	p.Flash = 0
	if o.Flash {
		p.Flash = 1
	}
	threads := o.Threads
	if threads <= 0 {
		threads = runtime.NumCPU()
	}
	p.Threads, p.ThreadsBatch = int32(threads), int32(threads)
	c := m.l.newContext(m.p, p)
	if c == 0 {
		return nil, fmt.Errorf("llama.cpp makes no context with K %s, V %s: %s", o.K, o.V, errorLines(m.l.messages()))
	}
	return &Context{Log: m.l.messages(), m: m, p: c, ctx: o.Ctx}, nil
}

// Close frees the context.
func (c *Context) Close() {
	c.m.l.free(c.p)
	c.p = 0
}

// Window runs tokens from an empty cache, in one batch, and calls row with the
// logits of each position from first on. The slice is valid during the call.
func (c *Context) Window(tokens []int32, first int, row func(i int, logits []float32) error) error {
	if len(tokens) == 0 || len(tokens) > c.ctx || first < 0 || first >= len(tokens) {
		return fmt.Errorf("%d tokens from %d in a context of %d", len(tokens), first, c.ctx)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= c.m.Vocab {
			return fmt.Errorf("token %d is id %d, the vocabulary has %d", i, t, c.m.Vocab)
		}
	}
	c.m.l.memoryClear(c.m.l.memory(c.p), true)
	c.outputs = append(c.outputs[:0], make([]int8, len(tokens))...)
	for i := first; i < len(tokens); i++ {
		c.outputs[i] = 1
	}
	b := batch{N: int32(len(tokens)), Token: &tokens[0], Outputs: &c.outputs[0]}
	c.m.l.messages()
	// The call sees addresses only: the garbage collector learns of them here.
	rc := c.m.l.decode(c.p, b)
	runtime.KeepAlive(tokens)
	runtime.KeepAlive(c.outputs)
	if rc != 0 {
		return fmt.Errorf("llama_decode returned %d: %s", rc, errorLines(c.m.l.messages()))
	}
	for i := first; i < len(tokens); i++ {
		p := c.m.l.logits(c.p, int32(i))
		if p == nil {
			return fmt.Errorf("llama.cpp has no logits of position %d: %s", i, errorLines(c.m.l.messages()))
		}
		if err := row(i, unsafe.Slice(p, c.m.Vocab)); err != nil {
			return err
		}
	}
	return nil
}

// errorLines returns the end of a log, where the reason of a failure stands.
func errorLines(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "\n")
}
