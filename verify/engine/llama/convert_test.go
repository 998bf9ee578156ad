package llama_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// converted converts a small model and returns the result.
func converted(t *testing.T, src, out string, engines engine.Engines) *convert.Result {
	t.Helper()
	o := convert.DefaultOptions()
	o.Source, o.Out, o.Report, o.Threads = src, out, false, 1
	o.Formats = []checkpoint.Container{checkpoint.GGUF}
	o.Code, o.Alloc, o.Ctx, o.Chunks, o.CalibrationTokens = codec.SRHT, "uniform", 128, 4, 512
	o.Cache, o.TargetCtx, o.CacheTokens = &kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeF16, Rotation: true}, 128, 1024
	o.Calibration = ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration}
	o.Evaluation = ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}
	o.Engines, o.Tool = engines, "test"
	r, err := convert.Convert(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tinyFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "model.gguf")
	tiny.New(t, "llama", tiny.Options{Seed: 5, Hidden: 128, HeadDim: 32, Context: 512}).GGUF(t, path)
	return path
}

// TestConvert: a conversion that llama.cpp computes passes its contract, names its engine, and measures on
// held-out text what the own pass and its emulation of caches do, up to rounding. (The own pass searches on
// probes, llama.cpp on whole windows, so what they choose may differ.)
func TestConvert(t *testing.T) {
	w := start(t, llama.Start{})
	src, dir := tinyFile(t), t.TempDir()
	own := converted(t, src, filepath.Join(dir, "own"), nil)
	r := converted(t, src, filepath.Join(dir, "llama"), &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}})
	if id := r.Manifest.Engine; id == nil || id.Engine != engine.Llama || id.Libraries == "" ||
		own.Manifest.Engine != nil {
		t.Errorf("the manifests name engines %+v and %+v", own.Manifest.Engine, id)
	}
	if !r.Verify.OK || r.Verify.Engine == nil {
		t.Errorf("verified %+v", r.Verify.Contract)
	}
	a, b := own.Manifest.Fusion, r.Manifest.Fusion
	if len(b.Tried) < 4 {
		t.Errorf("%d candidates were tried", len(b.Tried))
	}
	// The stock caches of the result are llama.cpp's too, not emulated: near, and not the same number.
	for i := range min(2, len(b.Measured)) { // those of the source
		x, y := a.Measured[i], b.Measured[i]
		t.Logf("%s/%s, converted %v: %g, %g", y.KType, y.VType, y.Converted, x.KLD, y.KLD)
		if y.KType != "f16" && (x.KLD == y.KLD || math.Abs(x.KLD-y.KLD) > 0.2*x.KLD) {
			t.Errorf("own: KLD %g with %s keys, in llama.cpp %g", x.KLD, y.KType, y.KLD)
		}
	}
	p, q := own.Verify.PPL, r.Verify.PPL
	if math.Abs(p.Ratio-q.Ratio) > 0.05*p.Ratio {
		t.Errorf("1-bit keys multiply perplexity by %g, in llama.cpp by %g", p.Ratio, q.Ratio)
	}
}

// An rpcServer is llama.cpp's on a free port of this machine.
type rpcServer struct {
	at  string // HOST:PORT
	cmd *exec.Cmd
}

// server starts one.
func server(t *testing.T) *rpcServer {
	t.Helper()
	if _, err := os.Stat(filepath.Join(os.Getenv(libraryEnv), "rpc-server")); err != nil {
		t.Skip("NOT TESTED: no rpc-server beside the libraries")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rpcServer{at: l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	s.restart(t)
	return s
}

func (s *rpcServer) end() {
	if s.cmd != nil {
		s.cmd.Process.Kill() //nolint:errcheck // it may have ended
		s.cmd.Wait()         //nolint:errcheck // it was killed
	}
}

// restart ends the server if it runs and starts it again at its port.
func (s *rpcServer) restart(t *testing.T) {
	t.Helper()
	s.end()
	_, port, err := net.SplitHostPort(s.at)
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(filepath.Join(os.Getenv(libraryEnv), "rpc-server"), "-H", "127.0.0.1", "-p", port, "-t", "1")
	s.cmd.Dir = os.Getenv(libraryEnv)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if c, err := net.Dial("tcp", s.at); err == nil {
			c.Close() //nolint:errcheck // only tried
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the RPC server does not listen")
}

// TestRPC: conversions that two RPC servers compute have the bytes of those computed here, and joint codes measure the
// same, with rows replaced at nodes and in the caches.
func TestRPC(t *testing.T) {
	if os.Getenv(libraryEnv) == "" {
		start(t, llama.Start{}) // skips
	}
	servers := []string{server(t).at, server(t).at}
	src, dir, klds := tinyFile(t), t.TempDir(), map[int][]float64{}
	for name, s := range map[string]llama.Start{"here": {}, "rpc": {RPC: servers}} {
		w := start(t, s)
		e := &llama.Engines{Worker: w, Place: llama.Place{Threads: 1, GPULayers: -1}}
		if n := len(e.Identity().Devices); name == "rpc" && n < 3 {
			t.Errorf("%d devices", n)
		}
		converted(t, src, filepath.Join(dir, name), e)
		for _, recent := range []int{0, 16} {
			r, err := convert.Convert(t.Context(), jointOptions(src, filepath.Join(dir, name, "joint", fmt.Sprint(recent)),
				bits.PartsBoth, recent, e))
			if err != nil {
				t.Fatal(err)
			}
			klds[recent] = append(klds[recent], r.Verify.KLD.Mean)
		}
		w.Close()
	}
	for recent, k := range klds {
		if k[0] != k[1] {
			t.Errorf("joint codes, recent %d: KLD %v", recent, k)
		}
	}
	for _, f := range []string{"model.gguf", "model.phase.gguf", "phaseconv.fold", "joint/16/model.phase.gguf"} {
		a, err := os.ReadFile(filepath.Join(dir, "here", f))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "rpc", f))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(a, b) {
			t.Errorf("%s differs", f)
		}
	}
	// A server that goes away is an error of the job, in bounded time, and nothing is left.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := llama.NewWorker(ctx, llama.Start{Dir: os.Getenv(libraryEnv), Program: builtWorker,
		RPC: []string{"127.0.0.1:1"}}); err == nil {
		t.Error("a server that is not there was found")
	} else {
		t.Log(err)
	}
}
