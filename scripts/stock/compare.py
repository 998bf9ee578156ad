#!/usr/bin/env python3
"""Compares phaseconv's emulation of llama.cpp's cache types with llama.cpp.

    LLAMA_CPP_BIN=~/llama.cpp/build/bin scripts/stock/compare.py --text wiki.test.raw \
        --out docs/stock-cache.md --work DIR MODEL.gguf ...

For every model and pair of cache types it runs llama-perplexity, with the
model's own F16 caches as the base, and `phaseconv advise` on the same file and
text, and writes both KLDs with their errors. It fails if a pair of KLDs differs
by more than two standard errors. Only a CPU build is comparable: --weights says
what the models hold, because with other types than F32 llama.cpp also rounds the
inputs of every matrix product, and so do we. Both docs/stock-cache.md (F32) and
docs/stock-cache-published.md (quantised files as published) are made by this.

Results of llama-perplexity are kept in the work folder, so that a second run
measures only phaseconv. Standard library only.
"""
import argparse
import hashlib
import json
import os
import re
import subprocess
import sys

# Pairs "K V", and a third word for a run with LLAMA_ATTN_ROT_DISABLE=1.
REQUIRED = ["q8_0 f16", "q4_0 f16", "f16 q8_0", "f16 q4_0", "q8_0 q8_0", "q4_0 q4_0"]
UNROTATED = ["q4_0 f16 off", "q4_0 q4_0 off"]
OTHERS = ["bf16 bf16", "q8_0 q4_0", "q4_1 q4_1", "q5_0 q5_0", "q5_1 q5_1", "iq4_nl iq4_nl"]


def numbers(log):
    """Reads the statistics that llama-perplexity prints."""
    def find(pattern):
        m = re.search(pattern + r"\s*:\s*([-\d.]+)\s*±\s*([\d.]+)", log)
        if not m:
            raise SystemExit("llama-perplexity printed no %r:\n%s" % (pattern, log[-2000:]))
        return float(m.group(1)), float(m.group(2))
    ratio, ratio_err = find(r"Mean PPL\(Q\)/PPL\(base\)")
    kld, err = find(r"Mean    KLD")
    top, _ = find(r"Same top p")
    return {"ppl_ratio": ratio, "ppl_ratio_err": ratio_err, "kld": kld, "kld_err": err, "same_top": top / 100}


class Stock:
    """llama-perplexity, its results kept in a folder."""

    def __init__(self, a, model):
        self.a, self.model = a, model
        key = hashlib.sha256(f"{os.path.realpath(model)} {os.path.realpath(a.text)} {a.ctx} {a.chunks}".encode()).hexdigest()
        self.stem = os.path.join(a.work, os.path.basename(model) + "." + key[:8])
        try:
            with open(self.stem + ".json") as f:
                self.kept = json.load(f)
        except FileNotFoundError:
            self.kept = {}

    def perplexity(self, *args, off=False):
        env = dict(os.environ)
        if off:
            env["LLAMA_ATTN_ROT_DISABLE"] = "1"
        cmd = [os.path.join(self.a.bin, "llama-perplexity"), "-m", self.model, "-f", self.a.text, "-c", str(self.a.ctx),
               "--chunks", str(self.a.chunks), "-t", str(self.a.threads), "--no-warmup", *args]
        p = subprocess.run(cmd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if p.returncode:
            raise SystemExit(f"{' '.join(cmd)}\n{p.stdout[-2000:]}")
        return p.stdout

    def keep(self, key, value):
        self.kept[key] = value
        with open(self.stem + ".json", "w") as f:
            json.dump(self.kept, f, indent=1)

    def base(self):
        """The perplexity with F16 caches; also writes the logits to compare with."""
        logits = self.stem + ".logits"
        if "base" not in self.kept or not os.path.exists(logits):
            log = self.perplexity("--save-all-logits", logits + ".tmp")
            os.replace(logits + ".tmp", logits)
            m = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", log)
            self.keep("base", [float(m.group(1)), float(m.group(2))])
        return self.kept["base"]

    def measure(self, pair):
        if pair not in self.kept:
            self.base()
            k, v, *off = pair.split()
            log = self.perplexity("-ctk", k, "-ctv", v, "--kl-divergence-base", self.stem + ".logits", "--kl-divergence", off=bool(off))
            self.keep(pair, numbers(log))
        return self.kept[pair]


def ours(a, model, pairs):
    """Runs phaseconv advise over the pairs and returns their rows."""
    out = {}
    for off in (False, True):
        want = [p for p in pairs if (len(p.split()) == 3) == off]
        if not want:
            continue
        cmd = [*a.phaseconv.split(), "advise", model, "--json", "--text", a.text, "--ctx", str(a.ctx), "--chunks", str(a.chunks),
               "--pairs", ",".join("/".join(p.split()[:2]) for p in want), "--cache-rotation", "off" if off else "on", "--half-sums",
               "--backend", "cpu", "--max-kld", "1000"]  # only measured: every pair passes
        p = subprocess.run(cmd, stdout=subprocess.PIPE, text=True)
        if p.returncode:
            raise SystemExit(f"{' '.join(cmd)} failed")
        res = json.loads(p.stdout)
        out["base_ppl"] = res["base_ppl"][0]
        for row in res["rows"]:
            out[row["k_type"] + " " + row["v_type"] + (" off" if off else "")] = row
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+")
    p.add_argument("--text", required=True)
    p.add_argument("--out", help="the table, in Markdown (default: standard output)")
    p.add_argument("--work", required=True, help="folder for logits and results of llama-perplexity")
    p.add_argument("--bin", default=os.environ.get("LLAMA_CPP_BIN"), help="folder with llama-perplexity (LLAMA_CPP_BIN)")
    p.add_argument("--phaseconv", default="go run ./cmd/phaseconv", help="how to run phaseconv")
    p.add_argument("--ctx", type=int, default=512)
    p.add_argument("--chunks", type=int, default=4)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--weights", default="F32 weights", help="what the page says of the models")
    p.add_argument("--others", type=int, default=1, help="also measure the other types, on this many models")
    p.add_argument("--stock-only", action="store_true", help="fill the work folder and stop")
    a = p.parse_args()
    if not a.bin:
        p.error("set LLAMA_CPP_BIN or --bin")
    os.makedirs(a.work, exist_ok=True)
    lines, bases, bad = [], [], []
    for i, model in enumerate(a.models):
        pairs = REQUIRED + UNROTATED + (OTHERS if i < a.others else [])
        stock = Stock(a, model)
        theirs = {pair: stock.measure(pair) for pair in pairs}
        stock.base()
        if a.stock_only:
            continue
        mine = ours(a, model, pairs)
        bases.append("| %s | %.4f ± %.4f | %.4f |" % (os.path.basename(model).removesuffix(".gguf"), *stock.base(), mine["base_ppl"]))
        for pair in pairs:
            k, v, *off = pair.split()
            s, m = theirs[pair], mine[pair]
            # The two programs round differently in the last bit, which turns roundings
            # of the cache in deep layers: to that extent their errors are independent.
            both = (s["kld_err"] ** 2 + m["kld_err"] ** 2) ** 0.5
            off_by = (m["kld"] - s["kld"]) / max(both, 1e-9)
            if abs(off_by) > 2:
                bad.append(f"{model} {pair}")
            lines.append("| %s | %s | %s | %s | %.6f ± %.6f | %.6f ± %.6f | %+.2f | %.4f | %.4f | %.1f %% | %.1f %% |" % (
                os.path.basename(model).removesuffix(".gguf"), k, v, "off" if off else "on",
                s["kld"], s["kld_err"], m["kld"], m["kld_err"], off_by,
                s["ppl_ratio"], m["ppl_ratio"], 100 * s["same_top"], 100 * m["same_top"]))
    if a.stock_only:
        return
    text = "\n".join([
        "# Stock cache types: emulation and llama.cpp", "",
        f"Written by `scripts/stock/compare.py`: {a.chunks} windows of {a.ctx} tokens of {os.path.basename(a.text)}, {a.weights}.",
        "KLD is against the same model with F16 caches. *llama.cpp* is llama-perplexity of a CPU build, *phaseconv* is",
        "`phaseconv advise` on the same file; the difference is in units of both standard errors together.",
        "The rules that the emulation follows stand at `kvcache.Stock`. llama-perplexity compares perplexities with those in its",
        "logits file, which ends 16 below each token's largest logit: where the text has a less likely token its ratio is too large.",
        "Where matrices are quantised, both programs round the inputs of products, and whatever moves a number draws these errors",
        "anew: that is a floor under every row.", "",
        "| model | K | V | rotation | KLD llama.cpp | KLD phaseconv | difference | PPL ratio llama.cpp | phaseconv | same top llama.cpp | phaseconv |",
        "|---|---|---|---|---|---|---|---|---|---|---|", *lines, "",
        "Perplexity with F16 caches, the base of the table:", "",
        "| model | llama.cpp | phaseconv |", "|---|---|---|", *bases, ""])
    if a.out:
        with open(a.out, "w") as f:
            f.write(text)
    else:
        print(text)
    if bad:
        sys.exit("beyond two standard errors: " + ", ".join(bad))


if __name__ == "__main__":
    main()
