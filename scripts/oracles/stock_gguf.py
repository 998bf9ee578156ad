#!/usr/bin/env python3
"""Compares our GGUF files of the tiny models of all families with stock llama.cpp: its logits for
them, and the files that its own converter makes from the same checkpoints, tensor by tensor. Prints
a table, one line a model.

    LLAMA_CPP_BIN=FOLDER LLAMA_CPP_SOURCE=TREE python scripts/oracles/stock_gguf.py [MODEL...]

LLAMA_CPP_SOURCE is a source tree of llama.cpp: its headers, converter and gguf-py are used. LLAMA_CPP_BIN is
the folder of libllama.so, two folders below the tree of its headers if there is no LLAMA_CPP_SOURCE.
Either variable may be missing: then half of the comparison is left out, and the table says so.
(Logits are compared by TestTinyFiles of verify/internal/libllama too.) MODELs are those to compare, all
without any. PHASECONV_TINY_GGUF may name a folder of our files that is there already (see
TestGGUFOracle).

Needs go, cc and numpy; the comparison of converters needs torch, transformers and safetensors as well
and is left out, said so, without. With neither variable nothing is compared, and the exit status is 77.
Exit status 1 means that a difference was found which is not explained below.
"""
import glob
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback

BINARIES, SOURCE = os.environ.get("LLAMA_CPP_BIN", ""), os.environ.get("LLAMA_CPP_SOURCE", "")
if not BINARIES and not SOURCE:
    print("SKIPPED: neither LLAMA_CPP_BIN nor LLAMA_CPP_SOURCE is set, so NOTHING was compared with stock llama.cpp", file=sys.stderr)
    sys.exit(77)

import numpy as np

REPO = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
TESTDATA = os.path.join(REPO, "verify", "refmodel", "testdata")
# F32 files are compared for all models, other types for one of each kind of tensor.
ALL_TYPES = ("gptoss", "gptoss-mxfp4", "qwen2moe", "llama-bias", "llama-hd80", "gemma3", "qwen3moe", "olmoe")

# ggml computes GELU by a table of F16 numbers for F16 arguments, and rounds the inputs of products with
# quantised matrices, even in F32 files. Then its logits are compared with our own pass that does
# the same. Now and then a rounding falls the other way, which moves all logits of a token: a step of F16
# is 5e-4 of a number. A mistake would move most tokens, so the limit is for the token in the middle; the
# largest of all may be five times as much.
ROUNDED_LIMIT = 1e-3  # of the logits' standard deviation

# Keys that one side alone writes, and why that is right.
OURS_ONLY = {
    "vocab_size": "stock writes it for llama only; readers take it from the tokens",
    "rope.dimension_count": "the reader's default, spelt out",
    "rope.freq_base": "the reader's default, which stock leaves out for gemma2",
    "attention.key_length": "the reader's default where config.json has no head_dim",
    "attention.value_length": "as key_length",
    "rope.scaling.attn_factor": "what stock readers heed instead of yarn_attn_factor, which stock writes",
    "expert_shared_count": "stock writes it where readers heed it; every mixture with a shared expert has it here",
    "expert_shared_feed_forward_length": "as expert_shared_count",
    "attention.sliding_window_pattern": "the reader's default is every 6th layer full; ours may be any",
}
# Keys that stock readers of these architectures do not heed.
STOCK_ONLY = {"nextn_predict_layers", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
OURS_ONLY_GENERAL = {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"}
STOCK_ONLY_GENERAL = {"general.size_label", "general.basename", "general.version", "general.finetune"}


def build(out):
    """Builds what asks the library for logits."""
    binaries, exe = os.path.abspath(BINARIES), os.path.join(out, "stock_logits")
    source = os.path.abspath(SOURCE or os.path.join(BINARIES, "..", ".."))
    # Packages without links have a release in the names (libllama.v0.5.0.so).
    libraries = [sorted(glob.glob(f"{binaries}/{n}.so") or glob.glob(f"{binaries}/{n}.v*.so"))[0] for n in ("libllama", "libggml", "libggml-base")]
    subprocess.run(["cc", "-O1", "-o", exe, os.path.join(REPO, "scripts", "oracles", "stock_logits.c"),
                    "-I" + os.path.join(source, "include"), "-I" + os.path.join(source, "ggml", "include"),
                    *libraries, "-Wl,-rpath," + binaries], check=True)
    return exe


def compare_logits(exe, folder, name):
    """Runs our F32 file in stock llama.cpp. Returns a row's numbers and whether they are good: the largest
    difference, relative to the logits' deviation, from transformers' logits (without the window
    where GGUF has none, as our own test compares them), the largest and that of the token in the middle
    from our pass when it rounds as ggml does, and the limit of the one of them that counts."""
    with open(os.path.join(TESTDATA, name, "golden.json"), encoding="utf-8") as f:
        golden = json.load(f)
    with open(os.path.join(TESTDATA, name, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    rounds = "hidden_activation" in config.get("text_config", config) or "mxfp4" in name
    ids = np.array(golden["tokens"], dtype=np.int32)
    run = subprocess.run([exe, os.path.join(folder, name + ".f32.gguf"), str(ids.shape[0]), str(ids.shape[1])],
                         input=ids.tobytes(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if run.returncode != 0:
        lines = run.stderr.decode(errors="replace").strip().splitlines()
        return f"does not run (status {run.returncode}): {lines[0] if lines else ''} | | |", False
    std, diffs = golden["stats"]["std"], []
    for kind in ("logits", "rounded"):
        want = np.fromfile(os.path.join(folder, f"{name}.f32.{kind}"), "<f4")
        diffs.append(np.abs(np.frombuffer(run.stdout, "<f4") - want).reshape(ids.size, -1).max(1) / std)
    exact, worst, middle = diffs[0].max(), diffs[1].max(), np.median(diffs[1])
    limit = ROUNDED_LIMIT if rounds else max(4 * golden["stats"]["rounding"] / std, 2e-5)
    good = middle <= limit and worst <= 5 * limit if rounds else exact <= limit
    return f"{exact:.1e} | {worst:.1e} | {middle:.1e} | {limit:.1e}{' (middle)' if rounds else ''}", good


class Converter:
    """The stock converter, imported once; each conversion runs in a fork."""

    # Families whose tokenizer is always of one kind, which ours is not.
    OWN_VOCABULARY = {"phi": ["Phi3MiniModel"], "glm": ["Glm4Model", "Glm4MoeModel"], "hunyuan": ["HunYuanMoEModel"],
                      "ernie": ["Ernie4_5Model"], "gemma": ["Gemma2Model", "Gemma3Model", "Gemma4Model"],
                      "mistral3": ["Mistral3Model"]}

    def __init__(self, source):
        self.script = os.path.join(source, "convert_hf_to_gguf.py")
        sys.path[:0] = [source, os.path.join(source, "gguf-py")]
        base = importlib.import_module("conversion.base")
        # It knows tokenizers by a hash of what they do with one text; ours is a GPT-2 splitter with
        # its own vocabulary.
        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
        for module, classes in self.OWN_VOCABULARY.items():
            for c in classes:
                setattr(getattr(importlib.import_module("conversion." + module), c), "set_vocab",
                        lambda self: self._set_vocab_gpt2())

    def convert(self, model, out, outtype):
        """Returns None, or the last line of what it said if it failed."""
        log = out + ".log"
        if os.path.exists(out):
            os.remove(out)  # of the model before
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                sys.argv = [self.script, model, "--outfile", out, "--outtype", outtype]
                runpy.run_path(self.script, run_name="__main__")
            except BaseException as e:  # a fork must not go on as its parent
                if not isinstance(e, SystemExit) or e.code:
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status == 0 and os.path.exists(out):
            return None
        with open(log, encoding="utf-8", errors="replace") as f:
            return (f.read().strip().splitlines() or [f"status {status}"])[-1]


def read(gguf, path):
    r = gguf.GGUFReader(path)
    keys = {k: (tuple(t.name for t in f.types), f.contents()) for k, f in r.fields.items() if not k.startswith("GGUF.")}
    return keys, {t.name: t for t in r.tensors}


def trimmed(shape):
    """Dimensions of 1 at the end say nothing."""
    shape = [int(n) for n in shape]
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape


def compare_files(gguf, stock, ours):
    """Lists the differences that are not explained above."""
    a, ta = read(gguf, stock)
    b, tb = read(gguf, ours)
    arch = a["general.architecture"][1]
    out = []
    for k in sorted(set(a) | set(b)):
        short = k.removeprefix(arch + ".")
        if k not in b:
            if k not in STOCK_ONLY_GENERAL and short not in STOCK_ONLY:
                out.append(f"key {k}: stock only, {a[k][1]}")
        elif k not in a:
            if short not in OURS_ONLY and k not in OURS_ONLY_GENERAL and not k.startswith("general.phaseconv."):
                out.append(f"key {k}: ours only, {b[k][1]}")
        elif a[k] != b[k] and k != "general.name":
            out.append(f"key {k}: stock {a[k]}, ours {b[k]}")
    for k in sorted(set(ta) | set(tb)):
        if k not in tb or k not in ta:
            out.append(f"tensor {k}: {'stock' if k in ta else 'ours'} only")
        elif ta[k].tensor_type != tb[k].tensor_type or trimmed(ta[k].shape) != trimmed(tb[k].shape):
            out.append(f"tensor {k}: stock {ta[k].tensor_type.name} {ta[k].shape}, ours {tb[k].tensor_type.name} {tb[k].shape}")
        elif k == "rope_freqs.weight":  # stock computes in float32, we in float64
            if np.abs(ta[k].data / tb[k].data - 1).max() > 4e-7:
                out.append(f"tensor {k}: {ta[k].data} {tb[k].data}")
        elif ta[k].data.tobytes() != tb[k].data.tobytes():
            out.append(f"tensor {k}: bytes differ")
    return out


# Keys that the stock converter cannot do without, though models of the kind have nothing to say there.
STOCK_NEEDS = {"gemma4-unified": {"text_config": {"moe_intermediate_size": None}}}

# Differences in which the stock converter is wrong.
KNOWN = {
    "llama-yarn-top": ["key llama.rope.scaling.original_context_length"],  # transformers heeds the top-level key first
    # 256 K tokens whatever config.json says; a scaling of 1.
    "hunyuan": ["key hunyuan-dense.context_length", "key hunyuan-dense.rope.scaling",
                "key tokenizer.ggml.eos_token_id"],  # eod_token_id, to right what published files say
    # A scaling of none, which is the default; the tokenizer's own size.
    "cohere2": ["key cohere2.rope.scaling.type", "key cohere2.attention.layer_norm_rms_epsilon"],
    # A window of 0, which is none; and the name of what the tensors of divisors say.
    "phi3": ["key phi3.attention.sliding_window", "key phi3.rope.scaling"],
    "phi3-long": ["key phi3.attention.sliding_window", "key phi3.rope.scaling.type"],
    "phi3-short": ["key phi3.attention.sliding_window", "key phi3.rope.scaling.type"],
    "olmoe-tied": ["tensor output.weight: ours only"],  # stock cannot load its own file
    # Stock writes gate and up of experts as one tensor, and reads both.
    "gemma4-moe": [f"tensor blk.{l}.ffn_{n}_exps.weight" for l in range(4) for n in ("gate_up", "gate", "up")],
}


def stock_source(folder, name, work):
    """The folder that the stock converter reads: ours, with STOCK_NEEDS."""
    source = os.path.join(folder, name + ".hf")
    if name not in STOCK_NEEDS:
        return source
    copy = os.path.join(work, name + ".hf")
    shutil.copytree(source, copy)
    path = os.path.join(copy, "config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    for part, keys in STOCK_NEEDS[name].items():
        config[part].update(keys)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)
    return copy


def compare_converters(converter, folder, name, work):
    """Returns, by type, how many differences are not explained, or what the stock converter said."""
    import gguf
    out, details, source = {}, [], stock_source(folder, name, work)
    for outtype in ("f32", "f16", "bf16", "q8_0") if name in ALL_TYPES else ("f32",):
        stock = os.path.join(work, "stock.gguf")
        error = converter.convert(source, stock, outtype)
        if error:
            out[outtype] = "stock fails"
            details.append(f"{name} {outtype}: the stock converter failed: {error}")
            continue
        diffs = [d for d in compare_files(gguf, stock, os.path.join(folder, f"{name}.{outtype}.gguf"))
                 if not any(d.startswith(k) for k in KNOWN.get(name, []))]
        out[outtype] = f"{len(diffs)} differ" if diffs else "same"
        details += [f"{name} {outtype}: {d}" for d in diffs]
    return out, details


def make_converter():
    missing = [m for m in ("torch", "transformers", "safetensors") if importlib.util.find_spec(m) is None]
    if not SOURCE or missing:
        print("SKIPPED the comparison of converters: " + (f"no {', '.join(missing)}" if missing else "LLAMA_CPP_SOURCE is not set"))
        return None
    return Converter(os.path.abspath(SOURCE))


def compare(folder, work):
    exe = build(work) if BINARIES else None
    if not exe:
        print("SKIPPED the comparison of logits: LLAMA_CPP_BIN is not set")
    converter = make_converter()
    names = sorted(os.path.basename(p).removesuffix(".f32.gguf") for p in glob.glob(os.path.join(folder, "*.f32.gguf")))
    missing = [n for n in sys.argv[1:] if n not in names]
    if missing or not names:
        print(f"nothing was compared: {folder} has no NAME.f32.gguf of {', '.join(missing) or 'any NAME'}; there are: {', '.join(names)}")
        return 1
    names = [n for n in names if n in sys.argv[1:] or len(sys.argv) == 1]
    failed, all_details = 0, []
    print("| model | file of the stock converter | logits: from transformers' | from ours, rounded alike | middle token | limit |\n"
          "|---|---|---|---|---|---|", flush=True)
    for name in names:
        files, logits, bad = "not compared", "not compared | | |", False
        if converter:
            types, details = compare_converters(converter, folder, name, work)
            all_details += details
            bad = bool(details)
            same = [t for t, v in types.items() if v == "same"]
            files = "; ".join(["same " + ", ".join(same)] * bool(same) + [f"{v} {t}" for t, v in types.items() if v != "same"])
        if exe:
            logits, good = compare_logits(exe, folder, name)
            bad = bad or not good
        failed += bad
        print(f"| {name} | {files} | {logits} |{' FAIL' if bad else ''}", flush=True)
    for d in all_details:
        print(d)
    print(f"{len(names)} models compared, {failed} failed")
    return failed


def main():
    with tempfile.TemporaryDirectory() as work:
        kept = os.environ.get("PHASECONV_TINY_GGUF")
        if not kept:
            subprocess.run(["go", "test", "-count=1", "-run", "^TestGGUFOracle$", "./convert/write"], cwd=REPO, check=True,
                           env={**os.environ, "PHASECONV_KEEP_GGUF": work})
        return compare(kept or work, work) > 0


if __name__ == "__main__":
    sys.exit(main())
