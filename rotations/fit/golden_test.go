package fit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

var (
	update = flag.Bool("update", false, "write testdata/golden.json")
	small  = flag.Bool("small", false, "check the digests of small matrices only")
)

// hash covers the bits of numbers.
func hash(parts ...any) string {
	h := sha256.New()
	for _, p := range parts {
		if err := binary.Write(h, binary.LittleEndian, p); err != nil {
			panic(err)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// digests computes what testdata/golden.json holds. The matrices of srht and
// random and the encoder are part of the format (a seed and a code mean the same
// to every program); those of learned and frame change with the fits.
func digests(t *testing.T, threads int) map[string]string {
	out := map[string]string{}
	for _, d := range []int{64, 80, 96, 112, 128, 192, 256} {
		for _, kind := range []codec.Kind{"srht", "random"} {
			c, err := codec.DataFree(kind, d, 42, 3, 1)
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprintf("%s %d", kind, d)] = hash(c.Decode)
		}
	}
	r := rand.New(rand.NewPCG(10, 10))
	for _, d := range []int{16, 64} {
		if *small && d > 16 {
			break
		}
		c := make([]float64, d*d) // plain products and sums only: the same bits everywhere
		for range 40 {
			q := keydata.Uniform(r, d)
			for i := range d {
				for j := range d {
					c[i*d+j] += float64(float64(q[i]) * float64(q[j]))
				}
			}
		}
		keys := keydata.Uniform(r, 300*d)
		for i := range keys {
			keys[i] = float32(keys[i]/float32(1+i%d)) + 0.25
		}
		s := &Sample{D: d, Keys: keys, Metric: c, Threads: threads}
		for _, b := range []int{d / 2, d, 2 * d} {
			m := keydata.Uniform(r, b*d)
			code, err := codec.New("frame", d, b, keydata.Uniform(r, d), m, m)
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprintf("encode %d %d", d, b)] = encodedDigest(t, code, keys)
			f, curve := fit(t, "frame", b, s)
			out[fmt.Sprintf("frame %d %d", d, b)] = hash(f.Mean, f.Decode, f.Encode, int32(len(curve)))
			out[fmt.Sprintf("frame %d %d encode", d, b)] = encodedDigest(t, f, keys)
		}
		l, curve := fit(t, "learned", d, s)
		out[fmt.Sprintf("learned %d", d)] = hash(l.Mean, l.Decode, int32(len(curve)))
		out[fmt.Sprintf("learned %d encode", d)] = encodedDigest(t, l, keys)
	}
	return out
}

// TestGolden: the bits are those of testdata/golden.json on every machine, with
// any number of threads. After a change of the fits that is meant, write the file
// anew with -update.
func TestGolden(t *testing.T) {
	const path = "testdata/golden.json"
	if *update {
		b, err := json.MarshalIndent(digests(t, 1), "", " ")
		if err == nil {
			err = os.WriteFile(path, append(b, '\n'), 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]string
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	for _, threads := range []int{1, 4} {
		got := digests(t, threads)
		if len(want) != len(got) && !*small || len(got) < 20 {
			t.Errorf("%d digests, %s has %d", len(got), path, len(want))
		}
		for name, x := range got {
			if want[name] != x {
				t.Errorf("%d threads: %s: digest %s, want %s", threads, name, x, want[name])
			}
		}
	}
}

// TestTiers runs TestGolden in processes that hide instruction sets from the
// kernels. The plain Go kernels are slow, so only with small matrices; to see all,
// set GODEBUG for a run of TestGolden.
func TestTiers(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("tiers are switched off by GODEBUG on amd64 only")
	}
	for _, o := range []string{"cpu.avx512f=off", "cpu.avx512f=off,cpu.avx2=off"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGolden$", "-small")
		cmd.Env = append(os.Environ(), "GODEBUG="+o)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("GODEBUG=%s: %v\n%s", o, err, out)
		}
	}
}

// encodedDigest covers what a code makes of keys: words, scales and decoded keys.
func encodedDigest(t testing.TB, c *codec.Code, keys []float32) string {
	n := len(keys) / c.D
	words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*c.D)
	encode(t, c, keys, words, alpha)
	c.DecodeKeys(hat, words, alpha)
	return hash(words, alpha, hat)
}
