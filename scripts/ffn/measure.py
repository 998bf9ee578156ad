#!/usr/bin/env python3
"""Measures what "convert --ffn" does for stock llama-quantize, in stock llama.cpp.

    scripts/ffn/measure.py --llama BIN --text HELD.txt --fit FIT.txt --work DIR MODEL [--types q4_0,q3_k,q2_k] [--modes auto]

BIN is a folder with libllama; a worker phaseconv-llama must lie beside phaseconv. MODEL, a float checkpoint, is written as F32 without
changes, then converted for each type and mode (fitted to --tokens of FIT in windows of --fit-ctx) and quantised; so is the unchanged
file. All are measured against the unchanged F32 file, on --chunks windows of --ctx tokens of HELD; with --float so is the F32 file of each
conversion, whose distance from the source, beside what re-rounding costs, phaseconv measures anyway ("function").
With --artifact OUT, which "phaseconv convert MODEL -o OUT --ffn ... --weights TYPE" wrote, nothing is converted: OUT's file and the
unchanged one are quantised to that type and measured, and what is printed is shown by "phaseconv report OUT PRINTED.json" and by the
card of "phaseconv release OUT PRINTED.json".
Standard library only. What was measured is kept in DIR/measured.json, and the same command goes on from it; models are removed. A
conversion that changes nothing is not measured again.
"""
import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys

LABELS = {"q4_0": "Q4_0", "q4_k": "Q4_K_M", "q3_k": "Q3_K_M", "q2_k": "Q2_K", "q8_0": "Q8_0", "q1_0": "Q1_0", "q2_0": "Q2_0", "mxfp4": "MXFP4_MOE"}
HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--llama", required=True, help="folder with libllama")
    p.add_argument("--text", required=True, help="text to measure on")
    p.add_argument("--fit", required=True, help="text to fit to, another one")
    p.add_argument("--artifact", default="", help="measure this artifact of MODEL and print JSON for the report")
    p.add_argument("--work", required=True)
    p.add_argument("--phaseconv", default="phaseconv")
    p.add_argument("--types", default="q4_0,q3_k,q2_k")
    p.add_argument("--modes", default="auto", help="of --ffn, such as auto,scale,rotate")
    p.add_argument("--tokens", default="8192", help="tokens that changes are fitted to")
    p.add_argument("--fit-ctx", type=int, default=512)
    p.add_argument("--ctx", type=int, default=512)
    p.add_argument("--chunks", type=int, default=8)
    p.add_argument("--float", action="store_true", help="measure the F32 file of each conversion too")
    p.add_argument("--imatrix", default="", help="importance matrix of MODEL, GGUF; the changed file is given the changed one")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    os.makedirs(a.work, exist_ok=True)
    record = os.path.join(a.work, "measured.json")
    kept = json.load(open(record)) if os.path.exists(record) else {}
    at = lambda name: os.path.join(a.work, name)

    def run(*cmd):
        r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        if r.returncode:
            raise SystemExit(f"{' '.join(cmd)}\n{r.stdout[-1000:]}{r.stderr[-2000:]}")
        return r.stdout

    def keep(key, value):
        kept[key] = value
        with open(record, "w") as f:
            json.dump(kept, f, indent=1)
        print(key, value, file=sys.stderr, flush=True)

    def measure(key, model):
        """Both files in stock libllama with F16 caches; divergence from the unchanged one."""
        out = json.loads(run(a.phaseconv, "advise", plain, model, "--engine", "llama:" + a.llama, "--pairs", "f16/f16", "--text", a.text,
                             "--ctx", str(a.ctx), "--chunks", str(a.chunks), "--threads", str(a.threads), "--max-kld", "1000", "--json"))
        row = next(r for r in out["rows"] if r["converted"])
        tensors = json.loads(run(a.phaseconv, "inspect", model, "--json"))[0]["tensors"]
        weights = sum(math.prod(t["shape"]) for t in tensors)
        keep(key, {"bytes": os.path.getsize(model), "bits": 8 * sum(t["bytes"] for t in tensors) / weights,
                   "runtime": " ".join(out["engine"].get(k, "") for k in ("release", "commit")).strip(), "text": out["texts"][0],
                   "ratio": row["ppl_ratio"], "kld": [row["kld"], row["kld_err"]], "top": row["same_top"]})

    def quantised(key, model, label, imatrix):
        if key in kept:
            return
        run(sys.executable, os.path.join(HERE, "..", "oracles", "stock_quantize.py"), a.llama, model, at("q.gguf"), label,
            *([imatrix] if imatrix else []))
        measure(key, at("q.gguf"))
        os.remove(at("q.gguf"))

    def convert(out, ctx, *flags):
        shutil.rmtree(out, ignore_errors=True)
        return json.loads(run(a.phaseconv, "convert", a.model, "-o", out, "--outtype", "f32", "--balance=false", "--report=false", "--code",
                              "srht", "--calib", a.fit, "--calib-tokens", str(4 * ctx), "--ctx", str(ctx), "--chunks", "2", "--eval", a.text,
                              "--threads", str(a.threads), "--json", *flags))

    def artifact():
        with open(os.path.join(a.artifact, "phaseconv.json")) as f:
            made = json.load(f)
        if not made.get("ffn"):
            raise SystemExit(f"{a.artifact} was made without --ffn")
        name, of = made["ffn"]["weights"], os.path.join(a.artifact, "model.gguf")
        changed = os.path.join(a.artifact, "phaseconv.imatrix")
        quantised(f"{name} unchanged", plain, LABELS[name], a.imatrix)
        quantised(f"{name} {digest(of)}", of, LABELS[name], changed if a.imatrix else "")
        rows = []
        for label, key in ("source", f"{name} unchanged"), ("converted", f"{name} {digest(of)}"):
            x = kept[key]
            rows.append({"name": label, "bits": x["bits"], "kld": x["kld"][0], "kld_err": x["kld"][1], "ppl_ratio": x["ratio"],
                         "same_top": x["top"]})
        return {"file_type": LABELS[name], "runtime": x["runtime"], "text": x["text"], "quantized": rows}

    def digest(path):
        h = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
        return h.hexdigest()

    folder = at("plain")
    plain = os.path.join(folder, "model.gguf")
    if not os.path.exists(plain):
        convert(folder, 64)
    if a.artifact:
        print(json.dumps(artifact(), indent=1))
        return
    for t in a.types.split(","):
        quantised(f"{t} unchanged", plain, LABELS[t], a.imatrix)
        for mode in a.modes.split(","):
            key = f"{t} {mode}"
            if key in kept:
                continue
            said = convert(at("made"), a.fit_ctx, "--ffn", mode, "--weights", t, "--cache-tokens", a.tokens,
                           *(["--imatrix", a.imatrix] if a.imatrix else []))
            with open(os.path.join(at("made"), "phaseconv.json")) as f:
                chosen = json.load(f)["ffn"]
            keep(key + " search", chosen)
            if chosen["chosen"] == chosen["tried"][0]["name"]:
                keep(key, kept[f"{t} unchanged"])
                shutil.rmtree(at("made"))
                continue
            keep(key + " function", said["function"])
            made = os.path.join(at("made"), "model.gguf")
            if a.float:
                measure(key + " f32", made)
            changed = ""
            if a.imatrix:
                shutil.rmtree(at("released"), ignore_errors=True)
                run(a.phaseconv, "release", at("made"), "-o", at("released"), "--name", "model", "--imatrix", a.imatrix)
                made, changed = os.path.join(at("released"), "model.gguf"), os.path.join(at("released"), "phaseconv.imatrix")
            quantised(key, made, LABELS[t], changed)
            shutil.rmtree(at("made"))
            shutil.rmtree(at("released"), ignore_errors=True)
    print("| type | weights | MB | PPL ratio | KLD | same top | chosen |\n|---|---|---|---|---|---|---|")
    for key, x in kept.items():
        if "kld" in x:
            print("| %s | %.1f | %.4f | %.6f ± %.6f | %.1f %% | %s |" % (key.replace(" ", " | ", 1), x["bytes"] / 1e6, x["ratio"], *x["kld"],
                  100 * x["top"], kept.get(key + " search", {}).get("chosen", "")))


if __name__ == "__main__":
    main()
