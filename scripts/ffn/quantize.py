#!/usr/bin/env python3
"""Measures what folds of exact identities do for stock llama-quantize.

    LLAMA_CPP_BIN=~/llama.cpp/build/bin scripts/ffn/quantize.py --text wiki.test.raw --fit wiki.valid.raw \
        --work DIR [--dither] MODEL.gguf > table.md

MODEL should hold F32, F16 or BF16 weights. Each variant (the file as it is; G1 with
no rotation, Hadamard, random-sign Hadamard; G4 from weights alone and from
activations on --fit) is written by ffn/fold as F32, quantised to each type and
measured against the logits of the unfolded F32 file. The control "G1 none" unties the
head and folds the gains, nothing else. Results are kept in the work folder; models
are removed when measured. Standard library only.
"""
import argparse
import json
import os
import re
import subprocess
import sys

VARIANTS = {
    "as published": [], "G1 none (gains only)": ["-g1", "none"], "G1 Hadamard": ["-g1", "hadamard"], "G1 signs + Hadamard": ["-g1", "srht"],
    "G4 from weights": ["-g4", "weights"], "G4 from activations": ["-g4", "text"], "G1 signs + Hadamard, G4": ["-g1", "srht", "-g4", "text"],
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--text", required=True, help="text to measure on")
    p.add_argument("--fit", required=True, help="text for activations, another one")
    p.add_argument("--work", required=True)
    p.add_argument("--bin", default=os.environ.get("LLAMA_CPP_BIN"), help="folder of llama-quantize and llama-perplexity")
    p.add_argument("--fold", default="go run -C scripts ./ffn/fold", help="how to run ffn/fold")
    p.add_argument("--types", default="Q4_0,Q3_K_M,Q2_K")
    p.add_argument("--variants", default="", help="numbers of variants, such as 0,2 (default: all)")
    p.add_argument("--pure", action="store_true", help="one type for all matrices")
    p.add_argument("--embeddings", default="", help="type of the token embeddings, such as q8_0: without a tied head they get fewer bits")
    p.add_argument("--dither", action="store_true", help="take the weights off the grid of a 4-bit source first: see ffn/fold")
    p.add_argument("--ctx", type=int, default=512)
    p.add_argument("--chunks", type=int, default=4)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    if not a.bin:
        p.error("set LLAMA_CPP_BIN or --bin")
    os.makedirs(a.work, exist_ok=True)
    stem = os.path.join(a.work, os.path.basename(a.model).removesuffix(".gguf") + (".dither" if a.dither else "") + (".pure" if a.pure else "") + ("." + a.embeddings if a.embeddings else ""))
    try:
        with open(stem + ".json") as f:
            kept = json.load(f)
    except FileNotFoundError:
        kept = {}

    def run(*cmd):
        r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if r.returncode:
            raise SystemExit(f"{' '.join(cmd)}\n{r.stdout[-2000:]}")
        return r.stdout

    def perplexity(model, last, *args):
        for _ in range(8):  # its logger may lose the last lines when it ends
            log = run(*perplexity_command(model), *args)
            if re.search(last, log):
                return log
        raise SystemExit("llama-perplexity printed no %r:\n%s" % (last, log[-2000:]))

    def perplexity_command(model):
        return (os.path.join(a.bin, "llama-perplexity"), "-m", model, "-f", a.text, "-c", str(a.ctx), "--chunks", str(a.chunks),
                "-t", str(a.threads), "--no-warmup")

    def keep(key, value):
        kept[key] = value
        with open(stem + ".json", "w") as f:
            json.dump(kept, f, indent=1)

    def fold(name, out):
        flags = VARIANTS[name] + (["-text", os.path.abspath(a.fit)] if "text" in VARIANTS[name] else []) + (["-dither"] if a.dither else [])
        run(*a.fold.split(), "-in", os.path.abspath(a.model), "-out", os.path.abspath(out), "-threads", str(a.threads), *flags)

    logits, full, small = stem + ".logits", stem + ".f32.gguf", stem + ".q.gguf"
    names = list(VARIANTS)
    chosen = [names[int(i)] for i in a.variants.split(",")] if a.variants else names
    types = a.types.split(",")
    if "base" not in kept or not os.path.exists(logits):
        fold("as published", full)
        m = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", perplexity(full, "Final estimate", "--save-all-logits", logits))
        keep("base", [float(m.group(1)), float(m.group(2))])
        os.remove(full)
    for name in chosen:
        # With F32, the last one shows that stock llama.cpp computes the same function.
        todo = [t for t in (["F32"] if name == names[-1] else []) + types if f"{name} {t}" not in kept]
        if not todo:
            continue
        fold(name, full)
        for typ in todo:
            model = full
            if typ != "F32":
                run(os.path.join(a.bin, "llama-quantize"), *(["--pure"] if a.pure else []),
                    *(["--token-embedding-type", a.embeddings] if a.embeddings else []), full, small, typ, str(a.threads))
                model = small
            log = perplexity(model, "Same top p:", "--kl-divergence-base", logits, "--kl-divergence")
            found = {}
            for key, pattern in {"ppl": r"Mean PPL\(Q\)\s*:\s*([-\d.]+)", "ratio": r"Mean PPL\(Q\)/PPL\(base\)\s*:\s*([-\d.]+)\s*±\s*(-?nan|[\d.]+)",
                                 "kld": r"Mean    KLD\s*:\s*([-\d.]+)\s*±\s*([\d.]+)", "top": r"Same top p\s*:\s*([-\d.]+)"}.items():
                m = re.search(pattern, log)
                if not m:
                    raise SystemExit("llama-perplexity printed no %s:\n%s" % (key, log[-2000:]))
                found[key] = [0.0 if "nan" in x else float(x) for x in m.groups()]  # the error of a ratio of one
            found["bytes"] = os.path.getsize(model)
            keep(f"{name} {typ}", found)
            print(name, typ, found, file=sys.stderr, flush=True)
            if model == small:
                os.remove(small)
        os.remove(full)
    print("Perplexity of the F32 file: %.4f ± %.4f\n" % tuple(kept["base"]))
    print("| type | weights | MB | PPL | ratio | KLD | same top |\n|---|---|---|---|---|---|---|")
    for typ in ["F32"] + types:
        for name in chosen:
            x = kept.get(f"{name} {typ}")
            if not x:
                continue
            print("| %s | %s | %.1f | %.3f | %.4f ± %.4f | %.5f ± %.5f | %.1f %% |" % (
                typ, name, x["bytes"] / 1e6, x["ppl"][0], *x["ratio"], *x["kld"], x["top"][0]))


if __name__ == "__main__":
    main()
