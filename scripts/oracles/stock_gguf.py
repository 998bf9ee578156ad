#!/usr/bin/env python3
"""Compares our GGUF files of the tiny models of all families with stock llama.cpp: its logits for
them, and the files that its own converter makes from the same checkpoints.

    LLAMA_CPP_BIN=/path/to/llama.cpp/build/bin  python scripts/oracles/stock_gguf.py [--logits] [MODEL...]
    LLAMA_CPP_SOURCE=/path/to/llama.cpp  python scripts/oracles/stock_gguf.py [MODEL...]

--logits leaves the comparison of converters out; MODELs are those to compare, all without any.
PHASECONV_TINY_GGUF may name a folder of such files that is there already (see TestGGUFOracle).

LLAMA_CPP_BIN is the folder of libllama.so inside a source tree (its headers,
converter and gguf-py are used too). With LLAMA_CPP_SOURCE alone only converters are compared:
logits are by TestTinyFiles of verify/internal/libllama too. Needs go, cc and numpy; the comparison of
converters needs torch, transformers and safetensors as well and says so if it is
left out. Without either variable nothing is compared, and the exit status is 77.

Exit status 1 means that a difference was found which is not explained below.
"""
import glob
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

BINARIES, SOURCE = os.environ.get("LLAMA_CPP_BIN", ""), os.environ.get("LLAMA_CPP_SOURCE", "")
if not BINARIES and not SOURCE:
    print("SKIPPED: neither LLAMA_CPP_BIN nor LLAMA_CPP_SOURCE is set, so NOTHING was compared with stock llama.cpp", file=sys.stderr)
    sys.exit(77)

import numpy as np

REPO = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
TESTDATA = os.path.join(REPO, "verify", "refmodel", "testdata")
# F32 files are compared for all models, other types for one of each kind of tensor.
ALL_TYPES = ("gptoss", "gptoss-mxfp4", "qwen2moe", "llama-bias", "llama-hd80", "gemma3", "qwen3moe", "olmoe")

# ggml computes GELU by a table of F16 values for F16 arguments (GGML_GELU_FP16),
# so models with GELU differ by far more than rounding; a mistake moves them more.
GELU_LIMIT = 0.02  # of the logits' standard deviation

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


def build(binaries, source, out):
    exe = os.path.join(out, "stock_logits")
    subprocess.run(["cc", "-O1", "-o", exe, os.path.join(REPO, "scripts", "oracles", "stock_logits.c"),
                    "-I" + os.path.join(source, "include"), "-I" + os.path.join(source, "ggml", "include"),
                    "-L" + binaries, "-lllama", "-lggml", "-lggml-base", "-Wl,-rpath," + binaries], check=True)
    return exe


def chosen(name):
    only = [a for a in sys.argv[1:] if not a.startswith("--")]
    return not only or name in only


def compare_logits(exe, folder):
    failed = 0
    for path in sorted(glob.glob(os.path.join(folder, "*.f32.gguf"))):
        name = os.path.basename(path)[: -len(".f32.gguf")]
        if not chosen(name):
            continue
        with open(os.path.join(TESTDATA, name, "golden.json"), encoding="utf-8") as f:
            golden = json.load(f)
        with open(os.path.join(TESTDATA, name, "config.json"), encoding="utf-8") as f:
            gelu = "hidden_activation" in json.load(f)
        ids = np.array(golden["tokens"], dtype=np.int32)
        # What our own test compares with: transformers' logits, without the window where GGUF has none.
        want = np.fromfile(os.path.join(folder, name + ".f32.logits"), "<f4").reshape(*ids.shape, -1)
        run = subprocess.run([exe, path, str(ids.shape[0]), str(ids.shape[1])], input=ids.tobytes(), stdout=subprocess.PIPE)
        if run.returncode != 0:
            print(f"FAIL {name}: stock llama.cpp does not run the file (status {run.returncode})")
            failed += 1
            continue
        got = np.frombuffer(run.stdout, "<f4").reshape(want.shape)
        stats = golden["stats"]
        limit = GELU_LIMIT * stats["std"] if gelu else max(4 * stats["rounding"], 2e-5 * stats["std"])
        diff = np.abs(got - want)
        bad = not diff.max() <= limit
        failed += bad
        print(f"{'FAIL' if bad else 'ok  '} {name:18} logits: largest difference {diff.max():.2e}, rms {np.sqrt((diff ** 2).mean()):.1e}, limit {limit:.1e}")
    return failed


def stock_convert(source, model, out, outtype):
    """The stock converter in a process of its own. It knows tokenizers by a hash of
    what they do with one text; ours is a GPT-2 splitter with its own vocabulary."""
    code = ("import sys, runpy; src = sys.argv[1]; sys.path[:0] = [src, src + '/gguf-py']\n"
            "import conversion.base as b; b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2'\n"
            # Families whose tokenizer is always of one kind, which ours is not.
            "import conversion.phi, conversion.glm, conversion.ernie, conversion.gemma, conversion.hunyuan, conversion.mistral3\n"
            "for c in (conversion.phi.Phi3MiniModel, conversion.glm.Glm4Model, conversion.glm.Glm4MoeModel, conversion.hunyuan.HunYuanMoEModel, conversion.ernie.Ernie4_5Model, conversion.gemma.Gemma2Model,\n"
            "          conversion.gemma.Gemma3Model, conversion.gemma.Gemma4Model, conversion.mistral3.Mistral3Model):\n"
            "    c.set_vocab = lambda self: self._set_vocab_gpt2()\n"
            "sys.argv = ['convert_hf_to_gguf.py'] + sys.argv[2:]\n"
            "runpy.run_path(src + '/convert_hf_to_gguf.py', run_name='__main__')\n")
    run = subprocess.run([sys.executable, "-c", code, source, model, "--outfile", out, "--outtype", outtype],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return None if run.returncode == 0 else run.stdout.strip().splitlines()[-1]


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


def compare_converters(source, folder, stock):
    missing = [m for m in ("torch", "transformers", "safetensors") if importlib.util.find_spec(m) is None]
    if missing:
        print("SKIPPED the comparison of converters: no " + ", ".join(missing))
        return 0
    sys.path.insert(0, os.path.join(source, "gguf-py"))
    import gguf
    failed = 0
    for name in sorted(filter(chosen, {os.path.basename(p).split(".")[0] for p in glob.glob(os.path.join(folder, "*.gguf"))})):
        for outtype in ("f32", "f16", "bf16", "q8_0") if name in ALL_TYPES else ("f32",):
            error = stock_convert(source, os.path.join(folder, name + ".hf"), stock, outtype)
            if error:
                print(f"FAIL {name} {outtype}: the stock converter failed: {error}")
                failed += 1
                continue
            diffs = [d for d in compare_files(gguf, stock, os.path.join(folder, f"{name}.{outtype}.gguf"))
                     if not any(d.startswith(k) for k in KNOWN.get(name, []))]
            failed += bool(diffs)
            print(f"{'FAIL' if diffs else 'ok  '} {name:18} {outtype:5} file: {len(diffs)} unexplained differences")
            for d in diffs:
                print("       " + d)
    return failed


def main():
    source = os.path.abspath(SOURCE or os.path.join(BINARIES, "..", ".."))
    with tempfile.TemporaryDirectory() as folder:
        kept = os.environ.get("PHASECONV_TINY_GGUF")
        if not kept:
            subprocess.run(["go", "test", "-count=1", "-run", "^TestGGUFOracle$", "./convert/write"], cwd=REPO, check=True,
                           env={**os.environ, "PHASECONV_KEEP_GGUF": folder})
        failed = 0
        if BINARIES:
            failed += compare_logits(build(os.path.abspath(BINARIES), source, folder), kept or folder)
        if "--logits" not in sys.argv:
            failed += compare_converters(source, kept or folder, os.path.join(folder, "stock.gguf"))
    print(f"{failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
