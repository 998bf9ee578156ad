package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestKills kills conversions with SIGKILL at random moments, takes each up with
// the same command until one ends by itself, and compares what is there with an
// undisturbed run, to the last byte. PHASECONV_KILLS sets how many kills must have
// hit a run at work; scripts/faults/run.sh does 200.
//
// A third of the conversions run in units and a merge, a third with --resume, and
// a third plainly, so that nothing survives a kill but the folders it must cope
// with.
func TestKills(t *testing.T) {
	t.Parallel()
	want := 6
	if s := os.Getenv("PHASECONV_KILLS"); s != "" {
		var err error
		if want, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "qwen3_moe", tiny.Options{Seed: 1, Layers: 4, HeadDim: 32, KVHeads: 1, DType: "BF16"})
	base := []string{"convert", src, "--format", "both", "--code", "frame", "--calib-tokens", "256", "--ctx", "64",
		"--chunks", "1", "--threads", "1"}
	plain := filepath.Join(dir, "plain", "out")
	begin := time.Now()
	if out, err := exec.Command("phaseconv", append(base, "-o", plain)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	whole := time.Since(begin)
	digest := treeDigest(t, plain)

	// Moments are drawn from a fixed seed; where in the work they fall depends on
	// the machine.
	r := rand.New(rand.NewPCG(1, uint64(want)))
	var kills, conversions, removed, reused, named int
	for kills < want {
		conversions++
		work := filepath.Join(dir, fmt.Sprint("c", conversions))
		out := filepath.Join(work, "out")
		var steps [][]string
		switch conversions % 3 {
		case 0:
			steps = [][]string{{"--unit", "1/2"}, {"--unit", "2/2"}, {"--merge"}}
		case 1:
			steps = [][]string{{"--resume"}}
		case 2:
			steps = [][]string{nil}
		}
		for _, step := range steps {
			args := append(append([]string{}, base...), "-o", out)
			args = append(args, step...)
			for tries := 0; ; tries++ {
				cmd := exec.Command("phaseconv", args...)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				// After some kills a run may end, or a slow machine would never be done.
				if tries < 5 && kills < want {
					timer := time.AfterFunc(time.Duration(r.Int64N(int64(whole))), func() { cmd.Process.Kill() })
					err := cmd.Wait()
					timer.Stop()
					if err == nil {
						break
					}
					if cmd.ProcessState.ExitCode() != -1 { // ended by itself, not by a signal
						t.Fatalf("%v: %v\n%s", args, err, stderr.Bytes())
					}
					kills++
				} else if err := cmd.Wait(); err != nil {
					t.Fatalf("%v after %d kills: %v\n%s", args, tries, err, stderr.Bytes())
				} else {
					removed += strings.Count(stderr.String(), "removed; it was left by a run that was killed")
					break
				}
				removed += strings.Count(stderr.String(), "removed; it was left by a run that was killed")
				if found, _ := filepath.Glob(filepath.Join(out+".work", "layer-*.safetensors")); len(found) > 0 {
					reused++
				}
				if st, err := os.Stat(out); err == nil && st.IsDir() {
					// The name shows a complete artifact or nothing, at every moment. The
					// kill came between the rename and the end.
					named++
					if got := treeDigest(t, out); got != digest {
						t.Fatalf("after a kill the name shows something else:\n%s\nwant\n%s", got, digest)
					}
					break
				}
			}
		}
		if got := treeDigest(t, out); got != digest {
			t.Fatalf("conversion %d (%v):\n%s\nwant\n%s", conversions, steps, got, digest)
		}
		entries, err := os.ReadDir(work)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			// A kill behind the rename may leave the finished layers.
			if e.Name() != "out" && (named == 0 || e.Name() != "out.work") {
				t.Errorf("conversion %d left %s", conversions, e.Name())
			}
		}
		if err := os.RemoveAll(work); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills in %d conversions of %v each; %d found finished layers, %d stale folders were removed, %d kills came after the rename",
		kills, conversions, whole.Round(time.Millisecond), reused, removed, named)
	if want >= 100 && (removed < want/10 || reused < want/10) {
		t.Errorf("too few of the kills hit something: %d stale folders, %d with finished layers", removed, reused)
	}
}

// treeDigest lists names, sizes and digests of a folder's files.
func treeDigest(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out = append(out, fmt.Sprintf("%s %d %x", d.Name(), len(b), sha256.Sum256(b)))
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}
