package convert

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// stock is where a conversion for stock caches lies beside another.
func stock(out string) string { return out + ".stock" }

// jointly is where one with joint codes does.
func jointly(out string) string { return out + ".joint" }

// TestDeterminism converts a model with two threads and the vector instructions that the machine
// has, and with one thread and the next smaller set of them, in processes of their own, and compares
// all bytes of the artifacts. With PHASECONV_LONG set it takes the model that comes with the
// repository, and each of one thread, two threads, AVX2 alone and plain Go, which multiplies
// twenty times slower: four minutes on two cores.
func TestDeterminism(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	long := os.Getenv("PHASECONV_LONG") != ""
	if long {
		src = filepath.Join("..", "testdata", "austen-moe")
	} else {
		tiny.HF(t, src, "qwen3_moe", tiny.Options{Seed: 1, DType: "BF16", HeadDim: 32})
	}
	biased := filepath.Join(dir, "biased")
	tiny.HF(t, biased, "qwen2", tiny.Options{Seed: 2, HeadDim: 32, Hidden: 128})
	convert := func(out string, threads int) {
		o := small(src, out)
		o.Threads = threads
		o.CalibrationTokens = max(o.CalibrationTokens, 192) // enough keys for head_dim 128
		// What is measured before the fit must not depend on threads either.
		o.Bits, o.Alloc, o.Policy.Exceptions = 1.25, "sensitivity", 3
		converted(t, o)
		// Gradients, drafts and an allotment come before the fit.
		o = joint(biased, jointly(out))
		o.Threads, o.Joint.Fisher, o.Report, o.Alloc, o.CalibrationTokens = threads, true, false, "sensitivity", 384
		o.Joint.Span, o.Joint.Pairs, o.Joint.ChooseAnchor = 512, true, true
		converted(t, o)
		// Changes for stock caches are searched for, and chosen by measurements.
		o = small(biased, stock(out))
		o.Threads, o.Code, o.Report = threads, "raw", false
		o.Cache, o.WeightEdits, o.TargetCtx, o.CacheTokens = &kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeQ4_0,
			Rotation: true}, plan.EditsApproximate, 32, 256
		res := converted(t, o)
		if f := res.Manifest.Fusion; f == nil || f.Chosen == f.Tried[0].Name {
			t.Errorf("nothing was changed for the caches: %+v", f)
		}
	}
	if out := os.Getenv("PHASECONV_DETERMINISM"); out != "" {
		n, err := strconv.Atoi(os.Getenv("PHASECONV_THREADS"))
		if err != nil {
			t.Fatal(err)
		}
		convert(out, n)
		// The parent must know that the switch did something.
		t.Logf("avx512f %v, avx2 %v", cpu.X86.HasAVX512F, cpu.X86.HasAVX2)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	first := ""
	type variant struct{ name, godebug, threads, says string }
	all := []variant{{"2 threads", "", "2", ""}}
	if long || !cpu.X86.HasAVX2 {
		all = append(all, variant{"1 thread", "", "1", ""})
	}
	if cpu.X86.HasAVX512F {
		all = append(all, variant{"without AVX-512, 1 thread", "cpu.avx512f=off", "1", "avx512f false, avx2 true"})
	}
	if cpu.X86.HasAVX2 && (long || !cpu.X86.HasAVX512F) {
		all = append(all, variant{"plain Go, 1 thread", "cpu.avx512f=off,cpu.avx2=off", "1", "avx512f false, avx2 false"})
	}
	for _, v := range all {
		out := filepath.Join(dir, strings.ReplaceAll(v.name, " ", "-"), "out")
		cmd := exec.CommandContext(context.Background(), exe, "-test.run=^TestDeterminism$", "-test.v")
		cmd.Env = append(os.Environ(), "PHASECONV_DETERMINISM="+out, "PHASECONV_THREADS="+v.threads, "GODEBUG="+v.godebug)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", v.name, err, b)
		}
		if !bytes.Contains(b, []byte(v.says)) {
			t.Errorf("%s: GODEBUG=%s did not switch: %s", v.name, v.godebug, b)
		}
		if first == "" {
			first = out
			if n := len(left(t, out)); n < 7 {
				t.Errorf("only %d files", n)
			}
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			sameTrees(t, first, out)
			sameTrees(t, stock(first), stock(out))
			sameTrees(t, jointly(first), jointly(out))
		})
	}
}
