//go:build (linux || darwin) && (amd64 || arm64)

// Package libllama runs models in stock llama.cpp, through its shared libraries and without
// cgo: it loads them, finds out how their structs are laid out, makes contexts, and stops a
// graph at chosen nodes.
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
)

// A Library is llama.cpp's, loaded into this process. One process loads one.
type Library struct {
	// Files are the libraries that were loaded, of the backends the whole folder's.
	Files []string

	handles []uintptr
	layout  Layout
	model   params
	modelAt modelLayout
	context params
	ctxAt   contextLayout

	version, ggmlVersion, ggmlCommit, systemInfo func() string

	modelLoad   func(path string, p params) uintptr
	modelFree   func(model uintptr)
	modelVocab  func(model uintptr) uintptr
	modelInt    map[string]func(model uintptr) int32
	metaStr     func(model uintptr, key string, buf *byte, n uint64) int32
	vocabTokens func(vocab uintptr) int32
	vocabBOS    func(vocab uintptr) int32
	vocabAddBOS func(vocab uintptr) bool
	tokenize    func(vocab uintptr, text *byte, n int32, out *int32, most int32, special, parse bool) int32
	newContext  func(model uintptr, p params) uintptr
	free        func(ctx uintptr)
	memory      func(ctx uintptr) uintptr
	memoryClear func(memory uintptr, data bool)
	decode      func(ctx uintptr, b batch) int32
	logits      func(ctx uintptr, i int32) *float32
	ask         map[string]func(ctx uintptr) uint32

	opDesc    func(t uintptr) uintptr
	nbytes    func(t uintptr) uint64
	tensorGet func(t uintptr, data unsafe.Pointer, off, n uint64)
	tensorSet func(t uintptr, data unsafe.Pointer, off, n uint64)
	devCount  func() uint64
	devGet    func(i uint64) uintptr
	devName   func(dev uintptr) string
	devDesc   func(dev uintptr) string
	devMemory func(dev uintptr, free, total *uint64)
	devType   func(dev uintptr) int32
	regByName func(name string) uintptr
	regProc   func(reg uintptr, name string) uintptr
	regAdd    func(reg uintptr)
	opNames   map[uintptr]string
	mu        sync.Mutex
	lines     strings.Builder
	logged    func(text string)
}

// suffix of shared libraries.
var suffix = map[string]string{"linux": ".so", "darwin": ".dylib"}[runtime.GOOS]

// names lists the files that are loaded, in the order of their dependencies, so that the loader
// need not find them by itself. Build trees name libllama.so, packages libllama.v0.5.0.so.
func names() [][]string {
	v := func(n string) []string {
		return []string{n + suffix, n + ".v*" + suffix, n + ".b*" + suffix, n + suffix + ".*"}
	}
	return [][]string{v("libggml-base"), v("libggml"), v("libllama")}
}

// find returns the first file in dir that matches one of the patterns.
func find(dir string, patterns []string) (string, error) {
	for _, p := range patterns {
		if m, err := filepath.Glob(filepath.Join(dir, p)); err == nil && len(m) > 0 {
			return m[0], nil
		}
	}
	return "", fmt.Errorf("%s: no %s there, which libllama needs; take all libraries of a release of llama.cpp", dir, patterns[0])
}

// maxLog bounds the messages that are kept; a broken model could give any number.
const maxLog = 1 << 20

// Levels of ggml_log_level from which messages are kept and shown.
const (
	logInfo  = 2
	logWarn  = 3
	logError = 4
)

// Open loads llama.cpp from a folder, finds its layouts and connects to RPC servers (HOST:PORT).
// logged, which may be nil, is told warnings and errors of the library as they come.
func Open(dir string, servers []string, logged func(text string)) (*Library, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	l := &Library{logged: logged, opNames: map[uintptr]string{}}
	for _, patterns := range names() {
		path, err := find(dir, patterns)
		if err != nil {
			return nil, err
		}
		h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		l.handles, l.Files = append(l.handles, h), append(l.Files, path)
	}
	backends, err := filepath.Glob(filepath.Join(dir, "libggml-*"+suffix))
	if err != nil {
		return nil, err
	}
	for _, b := range backends {
		if b != l.Files[0] {
			l.Files = append(l.Files, b)
		}
	}
	if err := l.functions(); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := l.start(dir, servers); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := l.probe(); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return l, nil
}

// register binds functions; it names the first that is missing. (purego.RegisterLibFunc would
// panic.)
func (l *Library) register(fs map[string]any) error {
	for name, f := range fs {
		if !l.bind(name, f) {
			return fmt.Errorf("the function %s is missing from these libraries: they are older than July 2025, or of several "+
				"releases; take all libraries of one later release", name)
		}
	}
	return nil
}

func (l *Library) bind(name string, f any) bool {
	for _, h := range l.handles {
		if p, err := purego.Dlsym(h, name); err == nil && p != 0 {
			purego.RegisterFunc(f, p)
			return true
		}
	}
	return false
}

func (l *Library) functions() error {
	var forModel, forContext func() returned
	if err := l.register(map[string]any{
		"llama_print_system_info": &l.systemInfo, "llama_model_default_params": &forModel,
		"llama_context_default_params": &forContext, "llama_model_load_from_file": &l.modelLoad,
		"llama_model_free": &l.modelFree, "llama_model_get_vocab": &l.modelVocab, "llama_model_meta_val_str": &l.metaStr,
		"llama_vocab_n_tokens": &l.vocabTokens, "llama_vocab_bos": &l.vocabBOS, "llama_vocab_get_add_bos": &l.vocabAddBOS,
		"llama_tokenize": &l.tokenize, "llama_init_from_model": &l.newContext, "llama_free": &l.free,
		"llama_get_memory": &l.memory, "llama_memory_clear": &l.memoryClear, "llama_decode": &l.decode,
		"llama_get_logits_ith": &l.logits, "ggml_op_desc": &l.opDesc, "ggml_nbytes": &l.nbytes,
		"ggml_backend_tensor_get": &l.tensorGet, "ggml_backend_tensor_set": &l.tensorSet,
		"ggml_backend_dev_count": &l.devCount, "ggml_backend_dev_get": &l.devGet, "ggml_backend_dev_name": &l.devName,
		"ggml_backend_dev_description": &l.devDesc, "ggml_backend_dev_memory": &l.devMemory,
		"ggml_backend_dev_type": &l.devType, "ggml_backend_reg_by_name": &l.regByName,
		"ggml_backend_reg_get_proc_address": &l.regProc, "ggml_backend_register": &l.regAdd,
	}); err != nil {
		return err
	}
	l.modelInt, l.ask = map[string]func(uintptr) int32{}, map[string]func(uintptr) uint32{}
	for _, n := range []string{"n_layer", "n_embd", "n_ctx_train", "rope_type"} {
		f := new(func(uintptr) int32)
		if err := l.register(map[string]any{"llama_model_" + n: f}); err != nil {
			return err
		}
		l.modelInt[n] = *f
	}
	for _, n := range []string{"n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads"} {
		f := new(func(uintptr) uint32)
		if err := l.register(map[string]any{"llama_" + n: f}); err != nil {
			return err
		}
		l.ask[n] = *f
	}
	// Names of releases came in 2025 and 2026; without them the digests of the files tell.
	for name, f := range map[string]*func() string{
		"llama_version": &l.version, "ggml_version": &l.ggmlVersion, "ggml_commit": &l.ggmlCommit,
	} {
		if !l.bind(name, f) {
			*f = func() string { return "" }
		}
	}
	m, c := forModel(), forContext()
	l.model, l.context = m.P, c.P
	if m.Spare != (returned{}).Spare || c.Spare != (returned{}).Spare {
		return fmt.Errorf("parameter structs of this release are longer than %d bytes", unsafe.Sizeof(m.P))
	}
	var err error
	if l.modelAt, err = findModel(&l.model); err != nil {
		return err
	}
	l.ctxAt, err = findContext(&l.context)
	return err
}

func (l *Library) start(dir string, servers []string) error {
	var (
		loadAll     func(dir string)
		logSet      func(f, user uintptr)
		backendInit func()
	)
	if err := l.register(map[string]any{
		"ggml_backend_load_all_from_path": &loadAll, "llama_log_set": &logSet, "llama_backend_init": &backendInit,
	}); err != nil {
		return err
	}
	logSet(purego.NewCallback(l.message), 0)
	// A build with its backends linked in has devices already; one with a library for each
	// instruction set picks the best here.
	if l.devCount() == 0 {
		loadAll(dir)
	}
	if l.devCount() == 0 {
		return fmt.Errorf("no backend could be loaded: %s", l.Messages())
	}
	if err := l.connect(servers); err != nil {
		return err
	}
	backendInit()
	return nil
}

// connect makes the devices of RPC servers devices of this process.
func (l *Library) connect(servers []string) error {
	if len(servers) == 0 {
		return nil
	}
	reg := l.regByName("RPC")
	if reg == 0 {
		return fmt.Errorf("these libraries have no RPC backend (libggml-rpc%s): build llama.cpp with "+
			"-DGGML_RPC=ON", suffix)
	}
	p := l.regProc(reg, "ggml_backend_rpc_add_server")
	if p == 0 {
		return fmt.Errorf("the RPC backend of these libraries has no ggml_backend_rpc_add_server")
	}
	var add func(endpoint string) uintptr
	purego.RegisterFunc(&add, p)
	for _, s := range servers {
		r := add(s)
		if r == 0 {
			return fmt.Errorf("RPC server %s does not answer; start llama.cpp's rpc-server of the same release there: "+
				"%s", s,
				LastLines(l.Messages()))
		}
		l.regAdd(r)
	}
	return nil
}

// message is called by llama.cpp with a zero-terminated piece of its log, from any thread.
func (l *Library) message(level int32, text *byte, _ uintptr) uintptr {
	if text == nil {
		return 0
	}
	s := cstr(uintptr(unsafe.Pointer(text)))
	l.mu.Lock()
	if level >= logInfo && l.lines.Len() < maxLog {
		l.lines.WriteString(s)
	}
	l.mu.Unlock()
	if (level == logWarn || level == logError) && l.logged != nil {
		l.logged(s)
	}
	return 0
}

// Messages returns what llama.cpp has logged since the last call.
func (l *Library) Messages() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.lines.String()
	l.lines.Reset()
	return s
}

// LastLines returns the end of a log, where the reason of a failure stands.
func LastLines(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "\n")
}

// opName is the name of a tensor's operation. Names are constants of the library, so each is
// read once.
func (l *Library) opName(t Tensor) string {
	p := l.opDesc(t.p)
	s, ok := l.opNames[p]
	if !ok {
		s = cstr(p)
		l.opNames[p] = s
	}
	return s
}

// Release names the release: llama.cpp's own version, ggml's version and commit, "" where the
// library does not tell.
func (l *Library) Release() (llama, ggml, commit string) {
	return l.version(), l.ggmlVersion(), l.ggmlCommit()
}

// SystemInfo names the instruction sets and options that llama.cpp uses.
func (l *Library) SystemInfo() string { return strings.TrimSpace(l.systemInfo()) }

// TensorLayout is what probing found.
func (l *Library) TensorLayout() Layout { return l.layout }

// A Device is what the library can compute on.
type Device struct {
	Name, Description string
	Kind              string // cpu, gpu, igpu, accel
	Free, Total       uint64 // bytes of memory
	p                 uintptr
}

var deviceKinds = []string{"cpu", "gpu", "igpu", "accel", "meta"}

// Devices lists the library's devices and those of RPC servers.
func (l *Library) Devices() []Device {
	var out []Device
	for i := range l.devCount() {
		p := l.devGet(i)
		d := Device{Name: l.devName(p), Description: l.devDesc(p), p: p}
		l.devMemory(p, &d.Free, &d.Total)
		if k := l.devType(p); k >= 0 && int(k) < len(deviceKinds) {
			d.Kind = deviceKinds[k]
		}
		out = append(out, d)
	}
	return out
}

// ModelOptions say how a file is loaded.
type ModelOptions struct {
	// Devices are names of Devices, in the order in which layers are given to them; none:
	// all that are not the CPU. CPU alone: "CPU".
	Devices []string
	// GPULayers is how many layers go to devices, from the last on; negative: all.
	GPULayers int
	// Map maps the file instead of reading it: weights cannot be changed then.
	Map bool
}

// A Model is a loaded file; Close it.
type Model struct {
	Vocab int // tokens

	l *Library
	p uintptr
}

// Load opens a GGUF file into memory of its devices. Weights can be changed, so files are not
// mapped, and kept as they are stored, not repacked. The error holds what llama.cpp said.
func (l *Library) Load(path string, o ModelOptions) (*Model, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	p := l.model
	layers := o.GPULayers
	var devices []uintptr
	for _, name := range o.Devices {
		if strings.EqualFold(name, "cpu") && len(o.Devices) == 1 {
			layers = 0
			break
		}
		d, err := l.device(name)
		if err != nil {
			return nil, err
		}
		devices = append(devices, d.p)
	}
	if len(devices) > 0 {
		devices = append(devices, 0)
		*p.ptr(modelDevices) = uintptr(unsafe.Pointer(&devices[0]))
	}
	if layers < 0 {
		layers = 1 << 20 // all; a negative number means that in late releases only
	}
	*p.u32(modelGPULayers) = uint32(int32(layers))
	switch {
	case o.Map: // the library's default
	case l.modelAt.LoadMode != 0:
		*p.u32(l.modelAt.LoadMode) = 0
	default:
		*p.u8(l.modelAt.UseMmap) = 0
	}
	*p.u8(l.modelAt.Extra) = 0
	l.Messages()
	m := l.modelLoad(path, p)
	runtime.KeepAlive(devices)
	if m == 0 {
		return nil, fmt.Errorf("llama.cpp does not load %s: %s", path, LastLines(l.Messages()))
	}
	return &Model{Vocab: int(l.vocabTokens(l.modelVocab(m))), l: l, p: m}, nil
}

func (l *Library) device(name string) (Device, error) {
	var all []string
	for _, d := range l.Devices() {
		if d.Name == name {
			return d, nil
		}
		all = append(all, d.Name)
	}
	return Device{}, fmt.Errorf("there is no device %s; the library has %s", name, strings.Join(all, ", "))
}

// Close frees the model, whose contexts must have been closed.
func (m *Model) Close() {
	if m.p != 0 {
		m.l.modelFree(m.p)
		m.p = 0
	}
}

// Layers is the number of the model's layers; like Hidden and Context, as llama.cpp has it.
func (m *Model) Layers() int { return int(m.l.modelInt["n_layer"](m.p)) }

// Hidden is the length of a hidden state.
func (m *Model) Hidden() int { return int(m.l.modelInt["n_embd"](m.p)) }

// Context is the context that the model was made for.
func (m *Model) Context() int { return int(m.l.modelInt["n_ctx_train"](m.p)) }

// Meta returns a metadata key as text, "" where it is absent.
func (m *Model) Meta(key string) string {
	b := make([]byte, 1<<12)
	n := m.l.metaStr(m.p, key, &b[0], uint64(len(b)))
	if n < 0 {
		return ""
	}
	return string(b[:min(int(n), len(b)-1)])
}

// BOS returns the token that begins a text, and whether the tokenizer adds it.
func (m *Model) BOS() (int32, bool) {
	v := m.l.modelVocab(m.p)
	return m.l.vocabBOS(v), m.l.vocabAddBOS(v)
}

// Tokenize encodes a text, with BOS in front where the tokenizer adds it. With special, the text
// names special tokens itself, as a rendered conversation does, and nothing is added.
func (m *Model) Tokenize(text []byte, special bool) ([]int32, error) {
	if len(text) == 0 {
		return nil, fmt.Errorf("an empty text has no tokens")
	}
	out := make([]int32, len(text)+8)
	v := m.l.modelVocab(m.p)
	n := m.l.tokenize(v, &text[0], int32(len(text)), &out[0], int32(len(out)), !special, special)
	runtime.KeepAlive(text)
	if n < 0 || int(n) > len(out) {
		return nil, fmt.Errorf("llama_tokenize returned %d: %s", n, LastLines(m.l.Messages()))
	}
	return out[:n], nil
}
