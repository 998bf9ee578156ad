"""Matrix products of phaseconv beside OpenBLAS, the one inside numpy's wheels.

  python scripts/bench/blas.py [THREADS] [SECONDS]

For AVX-512 and AVX2, and for shapes of SmolLM2-135M, Qwen2.5-0.5B and a 7B model,
prints the best rate of either in turns, and their ratio. OpenBLAS computes
A @ W.T for a W that it packs in each call, phaseconv packs W once, as its forward
pass does. Needs numpy, Go and this repository.
"""
import os
import subprocess
import sys
import tempfile

SHAPES = {
    "SmolLM2-135M": [(512, 576, 576), (512, 192, 576), (512, 1536, 576), (512, 576, 1536)],
    "Qwen2.5-0.5B": [(512, 896, 896), (512, 128, 896), (512, 4864, 896), (512, 896, 4864)],
    "7B": [(512, 4096, 4096), (512, 11008, 4096), (512, 4096, 11008)],
    "odd, small m": [(511, 577, 333), (7, 4096, 4096), (1, 4096, 4096)],
}
TIERS = [("AVX-512", "SkylakeX", ""), ("AVX2", "Haswell", "cpu.avx512f=off")]
ROUNDS = 3


def blas(seconds, shapes):
    """Runs in a process of its own, with OPENBLAS_CORETYPE set."""
    import time
    import numpy as np
    for m, n, k in shapes:
        a = np.random.randn(m, k).astype(np.float32)
        w = np.random.randn(n, k).astype(np.float32)
        c = np.empty((m, n), np.float32)
        best, end = 1e9, time.perf_counter() + seconds
        while time.perf_counter() < end:
            t = time.perf_counter()
            np.matmul(a, w.T, out=c)
            best = min(best, time.perf_counter() - t)
        print(f"{m},{n},{k} {2 * m * n * k / best / 1e9:.2f}")


def main():
    threads = sys.argv[1] if len(sys.argv) > 1 else str(os.cpu_count())
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.5
    top = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    args = [",".join(map(str, s)) for shapes in SHAPES.values() for s in shapes]
    with tempfile.TemporaryDirectory() as tmp:
        tool = os.path.join(tmp, "gemm")
        subprocess.run(["go", "build", "-o", tool, "./bench/gemm"], cwd=os.path.join(top, "scripts"), check=True)
        print(f"| ISA | model | shape | OpenBLAS | phaseconv | ratio |\n|---|---|---|---:|---:|---:|")
        for isa, core, off in TIERS:
            ours, theirs, tier = {}, {}, ""
            for _ in range(ROUNDS):
                env = dict(os.environ, GODEBUG=off, GOMAXPROCS=threads)
                for line in subprocess.run([tool, threads, str(seconds), *args], env=env, check=True, capture_output=True, text=True).stdout.splitlines():
                    tier, shape, rate = line.split()
                    ours[shape] = max(ours.get(shape, 0), float(rate))
                env = dict(os.environ, OPENBLAS_CORETYPE=core, OPENBLAS_NUM_THREADS=threads)
                for line in subprocess.run([sys.executable, __file__, "--blas", str(seconds), *args], env=env, check=True, capture_output=True, text=True).stdout.splitlines():
                    shape, rate = line.split()
                    theirs[shape] = max(theirs.get(shape, 0), float(rate))
            for model, shapes in SHAPES.items():
                for s in shapes:
                    key = ",".join(map(str, s))
                    print(f"| {isa} ({tier}) | {model} | {key.replace(',', ' x ')} | {theirs[key]:.1f} | {ours[key]:.1f} | {ours[key] / theirs[key]:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--blas"]:
        blas(float(sys.argv[2]), [tuple(map(int, s.split(","))) for s in sys.argv[3:]])
    else:
        main()
