package llama

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/phaseconv/phaseconv/verify/engine/wire"
)

// Start is what a Worker is started with.
type Start struct {
	// Program is the worker, Dir the folder of the libraries; "" looks for them.
	Program, Dir string
	// RPC are servers, HOST:PORT, whose devices are used too.
	RPC []string
	// NoRotation switches llama.cpp's attention rotation off.
	NoRotation bool
}

// A Worker is the program that runs llama.cpp's library. It does one job at a time. A worker that
// died answers no job any more; what the library said last is in the error.
type Worker struct {
	Library Library

	start Start
	cmd   *exec.Cmd
	conn  *wire.Conn
	in    io.Closer
	log   tail
	died  chan struct{}
	// patches counts those of With, references those of Compare, for their names.
	patches, references int
	// DecodeCPU is what the forward passes of Measure have taken, CPU all that the worker had taken at the
	// end of the last one, in seconds of all threads.
	DecodeCPU, CPU float64
	// scratch are folders of temporary files.
	scratch []string
	mu      sync.Mutex
	dead    error
}

// Received is how many bytes have come from the worker.
func (w *Worker) Received() int64 { return w.conn.Received() }

// lastLog is how much of the worker's output is kept: its last lines become the error when it
// dies.
const lastLog = 64 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b); n > lastLog {
		t.b = append([]byte(nil), t.b[n-lastLog:]...)
	}
	return len(p), nil
}

// dumps begin what Go says of a signal: registers and stacks, which tell users nothing.
var dumps = []string{"SIGABRT: abort", "fatal error: ", "unexpected fault address", "SIGSEGV: ", "SIGBUS: " +
	"", "SIGILL: ", "SIGFPE: "}

// lines returns the last n lines that are not empty, of a dump only the first.
func (t *tail) lines(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for line := range strings.SplitSeq(string(t.b), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
		if slices.ContainsFunc(dumps, func(d string) bool { return strings.HasPrefix(line, d) }) {
			break
		}
	}
	return strings.Join(out[max(0, len(out)-n):], "\n")
}

// closeTime is how long a worker may take to end by itself.
const closeTime = time.Second

// NewWorker starts the worker and has it load the library.
func NewWorker(ctx context.Context, s Start) (*Worker, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var err error
	if s.Program == "" {
		if s.Program, err = FindWorker(); err != nil {
			return nil, err
		}
	}
	if s.Dir, err = FindLibrary(s.Dir); err != nil {
		return nil, err
	}
	w := &Worker{start: s, died: make(chan struct{})}
	requests, toWorker, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	fromWorker, results, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, requests.Close(), toWorker.Close())
	}
	w.cmd = exec.Command(s.Program, WorkerProtocol)
	w.cmd.ExtraFiles = []*os.File{requests, results}
	w.cmd.Stdout, w.cmd.Stderr = &w.log, &w.log
	// Backends fuse operations over nodes that are read here; and without cgo a variable that a
	// running program sets does not reach C.
	w.cmd.Env = append(os.Environ(), "GGML_CUDA_DISABLE_FUSION=1", "GGML_VK_DISABLE_FUSION=1",
		"GGML_METAL_FUSION_DISABLE=1",
		"GGML_NO_BACKTRACE=1", "GOTRACEBACK=none") // of an assertion its own line says enough
	if s.NoRotation {
		w.cmd.Env = append(w.cmd.Env, "LLAMA_ATTN_ROT_DISABLE=1")
	}
	detach(w.cmd)
	if err := w.cmd.Start(); err != nil {
		return nil, errors.Join(err, requests.Close(), toWorker.Close(), fromWorker.Close(), results.Close())
	}
	// The worker has these ends; here they would keep the pipes open when it dies.
	if err := errors.Join(requests.Close(), results.Close()); err != nil {
		return nil, err
	}
	w.in, w.conn = toWorker, wire.New(fromWorker, toWorker)
	go func() {
		err := w.cmd.Wait()
		w.mu.Lock()
		w.dead = fmt.Errorf("the engine's worker (%s) ended: %w", WorkerName, orEnded(err))
		w.mu.Unlock()
		close(w.died)
		fromWorker.Close() //nolint:errcheck // read only
	}()
	if _, err = w.call(ctx, KindOpen, Open{Dir: s.Dir, RPC: s.RPC}, &w.Library, nil, nil); err != nil {
		w.Close()
		return nil, err
	}
	w.Library.Dir = s.Dir
	return w, nil
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("without a result")
	}
	return err
}

// Close ends the worker.
func (w *Worker) Close() {
	w.in.Close() //nolint:errcheck // it may be gone
	select {
	case <-w.died:
	case <-time.After(closeTime):
		w.kill()
	}
	for _, dir := range w.scratch {
		os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	}
	w.scratch = nil
}

func (w *Worker) kill() {
	w.cmd.Process.Kill() //nolint:errcheck // it may be gone
	<-w.died
}

// failed describes why a worker answers no more.
func (w *Worker) failed(err error) error {
	select {
	case <-w.died:
	case <-time.After(closeTime):
		// It sent what is no frame, or closed its pipe, and lives on.
		w.kill()
		return fmt.Errorf("the engine's worker does not answer as it should: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.dead
	if len(w.start.RPC) > 0 {
		out = fmt.Errorf("%w; it ends when an RPC server does, so see whether %s still run", out,
			strings.Join(w.start.RPC, " and "))
	}
	if last := w.log.lines(6); last != "" {
		out = fmt.Errorf("%w; its last lines:\n%s", out, last)
	}
	return out
}

// call does one job. result gets the result's body, each progress frame, other every frame of
// another kind. When ctx ends, the worker is killed.
func (w *Worker) call(ctx context.Context, kind string, request, result any, each func(done, total int),
	other func(f *wire.Frame) error, blobs ...[]byte) ([][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { w.cmd.Process.Kill() }) //nolint:errcheck // it may be gone
	defer stop()
	fail := func(err error) ([][]byte, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, w.failed(err)
	}
	if err := w.conn.Send(kind, request, blobs...); err != nil {
		return fail(err)
	}
	for {
		f, err := w.conn.Receive()
		if err != nil {
			return fail(err)
		}
		switch f.Kind {
		case KindResult:
			if result != nil {
				if err := f.Decode(result); err != nil {
					return nil, err
				}
			}
			return f.Blobs, nil
		case KindError:
			var x Failure
			if err := f.Decode(&x); err != nil {
				return nil, err
			}
			return nil, errors.New(x.Message)
		case KindProgress:
			var p Progress
			if err := f.Decode(&p); err != nil {
				return nil, err
			}
			if each != nil {
				each(p.Done, p.Total)
			}
		default:
			if other == nil {
				return nil, fmt.Errorf("the worker sent a frame of kind %q, which job %s does not have", f.Kind, kind)
			}
			if err := other(f); err != nil {
				// The job goes on in the worker: nobody can use it any more.
				w.kill()
				return nil, err
			}
		}
	}
}
