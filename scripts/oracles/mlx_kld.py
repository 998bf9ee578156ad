"""What mlx-lm itself loses with quantised caches, to hold the emulation of `advise --runtime mlx` against.

    python mlx_kld.py PUBLISHED MODEL TEXT [BITS [WINDOWS [CTX]]]

PUBLISHED and MODEL are folders that mlx-lm loads; both may be the same. Prints the KLD of MODEL with caches of
BITS (4; 0 for no quantisation) in groups of 64 from PUBLISHED with plain caches, over the second halves of WINDOWS (2)
windows of CTX (128) tokens of TEXT, cut without a beginning token. Needs mlx[cpu], mlx-lm and tokenizers; on a CPU a window
of 128 tokens of a model of 135M takes some 15 seconds."""
import sys

import mlx.core as mx
import numpy as np
from mlx_lm import load
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from tokenizers import Tokenizer


def log_probabilities(model, tokens, bits):
    cache = [QuantizedKVCache(group_size=64, bits=bits) if bits else KVCache() for _ in model.layers]
    logits = model(mx.array([tokens]), cache=cache)[0].astype(mx.float32)
    out = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(out)
    return np.array(out)


def main(published, model, text, bits=4, windows=2, ctx=128):
    bits, windows, ctx = int(bits), int(windows), int(ctx)
    with open(text, encoding="utf-8") as f:
        tokens = Tokenizer.from_file(published + "/tokenizer.json").encode(f.read(), add_special_tokens=False).ids
    base = load(published)[0]
    other = base if model == published else load(model)[0]
    kld = []
    for w in range(windows):
        window = tokens[w * ctx:(w + 1) * ctx]
        p, q = (log_probabilities(m, window, b)[ctx // 2:-1] for m, b in ((base, 0), (other, bits)))
        kld.extend((np.exp(p) * (p - q)).sum(-1))
    print(f"bits {bits}: KLD {np.mean(kld):.6f} ± {np.std(kld) / len(kld) ** 0.5:.6f} on {len(kld)} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
