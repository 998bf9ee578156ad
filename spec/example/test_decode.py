"""Holds decode.py to the golden vectors and, if there are some, to real artifacts.

PHASECONV_ARTIFACT  folder made by phaseconv convert --format both
PHASECONV_GROUPS    another one, with --code joint
PHASECONV_SOURCE    the Hugging Face folder they were made from
PHASECONV_VECTORS   folder with gguf.json and safetensors.json, what
                    go run ./rotations/internal/vectors -sidecar FILE prints for the two sidecars,
                    and the same of the artifact with groups as groups.*.json
"""
import glob
import hashlib
import json
import os
import struct
import tempfile
import unittest

import numpy as np

import decode as ref
import ffn

HERE = os.path.dirname(os.path.abspath(__file__))
VECTORS = os.path.join(HERE, "..", "vectors")
ENV = {k: os.environ.get("PHASECONV_" + k) for k in ("ARTIFACT", "GROUPS", "SOURCE", "VECTORS")}
U = np.uint64


def f32(text):
    return np.array([int(x, 16) for x in text.split()], np.uint32).view(np.float32)


def f16(text):
    return np.array([int(x, 16) for x in text.split()], np.uint16).view(np.float16).astype(np.float32)


def u32(lines):
    return np.array([[int(x, 16) for x in line.split()] for line in lines], np.uint32)


def number(seed, i):
    """vectors.md, section 2."""
    with np.errstate(over="ignore"):
        z = U(seed) + (np.asarray(i, U) + U(1)) * U(0x9E3779B97F4A7C15)
        z = (z ^ z >> U(30)) * U(0xBF58476D1CE4E5B9)
        z = (z ^ z >> U(27)) * U(0x94D049BB133111EB)
        return z ^ z >> U(31)


def matrix(a, base=None, tensors=None):
    """The numbers of a matrix object, float32 [rows, columns], digest checked."""
    rows, n = a["shape"]
    r, c = np.arange(rows)[:, None], np.arange(n)[None, :]
    f = a.get("formula", {})
    seed, rule = f.get("seed", 0), f.get("rule")
    if tensors is not None:
        m = np.frombuffer(tensors[a["tensor"]][2], "<f4").reshape(rows, n)
    elif rule is None:
        m = np.stack([f32(x) for x in a["hex"]])
    elif rule == "zeros":
        m = np.zeros((rows, n))
    elif rule == "identity":
        m = np.eye(rows, n)
    elif rule == "uniform":
        e = f.get("exponent", 0) - 23 - (c % f["column_mod"] if "column_mod" in f else 0) - (r // f["row_step"] if "row_step" in f else 0)
        m = ((number(seed, r * n + c) >> U(40)).astype(np.int64) - 2**23) * 2.0**e
    elif rule == "unsigned":
        m = (number(seed, r * n + c) >> U(40)) * 2.0**-24
    elif rule == "hadamard":
        ones = np.array([[bin(i & j).count("1") for j in range(n)] for i in range(rows)])
        m = (1 - 2.0 * ((ones + (number(seed, c) >> U(63)).astype(int)) % 2)) * np.float32(1 / np.sqrt(n))
    elif rule == "reflector":
        axis = (number(seed, np.arange(n)) >> U(61)).astype(np.int64) - 4
        p = (5 * r + 3) % n
        m = -(2.0 * axis[p] * axis[c]) / (axis**2).sum() + (p == c)
        m = m * (1 - 2.0 * (number(seed, n + r) >> U(63)).astype(int)) + 0.0
    elif rule == "weighted":
        m = base * (1 + (c % 4) / 2).astype(np.float32)
    m = m.astype(np.float32)
    assert hashlib.sha256(m.astype("<f4").tobytes()).hexdigest() == a["sha256"], f"{a.get('formula', a.get('tensor'))}: digest"
    return m


def fma(a, b, c):
    """float32 a b + c, rounded once: in float64 the product is exact, and the sum is rounded to odd."""
    p, c = a.astype(np.float64) * b, c.astype(np.float64)
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    bits = s.view(np.uint64)
    inexact = (error != 0) & (bits & U(1) == 0)
    away = (error > 0) == (s > 0)
    odd = np.where(inexact, np.where(away, bits + U(1), bits - U(1)), bits)
    return odd.view(np.float64).astype(np.float32)


def chain(rows, x):
    """Products of x, [n, d], with rows, [b, d]: chains of fused multiply-adds."""
    z = np.zeros((len(x), len(rows)), np.float32)
    for j in range(x.shape[1]):
        z = fma(np.broadcast_to(rows[:, j], z.shape), x[:, j:j + 1].astype(np.float64), z)
    return z


def encode(keys, mean, dec, enc, gain=1.0):
    """The reference encoder, code.md, section 7: words and alpha."""
    z = chain(dec if enc is None else enc, keys - mean)
    b, n = len(dec), len(keys)
    s, alpha = np.ones((n, b), np.float32), np.zeros(n)
    if enc is None:
        s[~(z >= 0)] = -1
        for k in range(n):
            total = 0.0
            for v in np.abs(z[k]).tolist():
                total += v
            alpha[k] = total / b
    else:
        gram = np.zeros((b, b))
        for j in range(keys.shape[1]):
            gram += np.outer(enc[:, j].astype(np.float64), dec[:, j])
        gram = gram.astype(np.float32)
        gram = np.float32(0.5) * (gram + gram.T)
        for k in range(n):
            s[k], alpha[k] = search(z[k], gram)
    words = np.zeros((n, (b + 31) // 32), np.uint32)
    for i in range(b):
        words[:, i // 32] |= (s[:, i] > 0).astype(np.uint32) << np.uint32(i % 32)
    return words, np.minimum(alpha * gain, 65504).astype(np.float32).astype(np.float16).view(np.uint16)


def search(z, gram):
    b = len(z)
    z = [float(x) for x in z]
    diagonal = [float(x) for x in np.diag(gram)]
    s, g, num, den = np.ones(b, np.float32), np.zeros(b, np.float32), 0.0, 0.0
    for i in range(b):
        gi, gii = float(g[i]), diagonal[i]
        up, down = (num + z[i], den + 2 * gi + gii), (num - z[i], den - 2 * gi + gii)
        if i == 0:
            plus = z[i] >= 0
        else:
            least = 1e-6 * (den + gii)
            plus = down[1] <= least or up[1] > least and up[0] * up[0] * down[1] >= down[0] * down[0] * up[1]
        s[i] = 1 if plus else -1
        num, den = up if plus else down
        g = g + s[i] * gram[i]
    last, i = b, 0
    for _ in range(8 * b):
        si = float(s[i])
        n = num - 2 * si * z[i]
        e = den - 4 * si * float(g[i]) + 4 * diagonal[i]
        if e > 1e-6 * den and n * n * den > num * num * e * (1 + 1e-9):
            num, den, last = n, e, i
            g = g - np.float32(2 * si) * gram[i]
            s[i] = -s[i]
        elif i == last:
            break
        i += 1
        if i == b:
            i = 0
            if last == b:
                break
    if num < 0:
        num, s = -num, -s
    return s, num / den if den > 0 else 0.0


class Golden(unittest.TestCase):
    def load(self, name):
        with open(os.path.join(VECTORS, name)) as f:
            return json.load(f)

    def test_generator(self):
        g = self.load("generator.json")
        for x in g["numbers"]:
            self.assertEqual(f"{int(number(x['seed'], x['i'])):016x}", x["value"])
        base = next(matrix(a) for a in g["arrays"] if a["formula"]["rule"] == "uniform")
        for a in g["arrays"]:
            np.testing.assert_array_equal(matrix(a, base), np.stack([f32(x) for x in a["hex"]]))

    def test_edge(self):
        e = self.load("edge.json")
        d = e["head_dim"]
        for x in e["keys"]:
            words, alpha = encode(f32(x["key"])[None], np.zeros(d, np.float32), np.eye(d, dtype=np.float32), None)
            self.assertEqual((f"{words[0, 0]:08x}", f"{alpha[0]:04x}"), (x["words"], x["alpha"]), x["why"])

    def test_scores(self):
        for x in self.load("scores.json")["cases"]:
            b, n, words = x["signs"], x["keys"], u32(x["words"])
            check_stored(self, u32(x["stored"]), words)
            q, scales, want = f32(x["query"]), f16(x["scales"]), f32(x["scores"])
            s = ref.signs(words, b)
            exact = f32(x["offset"]).astype(float) + scales.astype(float) * (s.astype(float) @ q)
            self.assertEqual(len(exact), n)
            np.testing.assert_array_equal(exact.astype(np.float32), want, f"{b} signs")

    def test_heads(self):
        files = sorted(glob.glob(os.path.join(VECTORS, "head-*.json")))
        self.assertGreater(len(files), 15)
        for path in files:
            with self.subTest(os.path.basename(path)):
                with open(path) as f:
                    check_head(self, json.load(f))


    def test_groups(self):
        files = sorted(glob.glob(os.path.join(VECTORS, "group-*.json")))
        self.assertGreater(len(files), 7)
        for path in files:
            with self.subTest(os.path.basename(path)):
                with open(path) as f:
                    check_group(self, json.load(f))

    def test_group_files(self):
        """The reader of this folder finds in both containers what groups.json names."""
        want = self.load("groups.json")
        for name in want["files"]:
            got = ref.Sidecar(os.path.join(VECTORS, name))
            self.assertEqual(len(got.layers), len(want["layers"]))
            for y, z in zip(got.layers, want["layers"]):
                self.assertEqual([y[k] for k in ("heads", "head_dim", "value_dim")], [z[k] for k in ("heads", "head_dim", "value_dim")])
                self.assertEqual([g[0] for g in y["groups"]], [g["parts"] for g in z["groups"]])
                for g, v in zip(y["groups"], z["groups"]):
                    _, starts, mean, dec, enc, gain, part_gain = g
                    self.assertEqual(starts[-1], len(mean))
                    np.testing.assert_array_equal(mean, matrix(v["mean"])[0])
                    np.testing.assert_array_equal(dec, matrix(v["decode"]))
                    for x, key in ((enc, "encode"), (gain, "gain"), (part_gain, "part_gain")):
                        self.assertEqual(x is None, key not in v)
                        if x is not None:
                            np.testing.assert_array_equal(x, matrix(v[key], dec) if key == "encode" else f32(v[key]))

    def test_group_refuses(self):
        meta, tensors = ref.read_model(os.path.join(VECTORS, "groups.sidecar"))
        text, name = meta["phaseconv.groups"], "blk.0.kv_code.0.decode"
        kind, shape, data = tensors[name]
        bad = [({**meta, "phaseconv." + k: v}, tensors) for k, v in {
            "version": "3", "layers": "4", "head_dim": "8", "exceptions": "0", "groups": "[]", "basis": "pre_rope", "sink": "-1"}.items()]
        bad += [({**meta, "phaseconv.version": "1"}, tensors)]
        bad += [({k: v for k, v in meta.items() if k != key}, tensors) for key in meta if key != "format"]
        for old, new in (("heads\":3", "heads\":4"), ("heads\":3", "heads\":2"), ("heads\":3", "heads\":3.0"), ("head_dim\":8", "head_dim\":10"),
                         ("value_dim\":6", "value_dim\":0"), ("\"k2\",\"v2\"", "\"v2\",\"k2\""), ("\"k2\"", "\"k02\""), ("\"k2\"", "\"k1\""),
                         ("\"k2\"", "\"x2\""), ("[\"v0\"],", ""), ("\"groups\":[]", "\"groups\":[[]]"), ("\"groups\":[]", "\"more\":1,\"groups\":[]"),
                         ("heads\":3", "heads\":3,\"heads\":3")):
            self.assertIn(old, text)
            bad.append(({**meta, "phaseconv.groups": text.replace(old, new, 1)}, tensors))
        bad += [(meta, {**tensors, "blk.2.kv_code.0.mean": tensors["blk.0.kv_code.1.mean"]}), (meta, {k: v for k, v in tensors.items() if k != name}),
                (meta, {**tensors, name: (kind, shape, b"\0\0\x80\x7f" + data[4:])}), (meta, {**tensors, name: ("F16", shape, data)}),
                (meta, {**tensors, name: (kind, shape, b"\xff\xff\x7f\x7f" * (len(data) // 4))}),
                (meta, {**tensors, "blk.0.kv_code.0.below": ("F32", (40, 32), b"\0" * 40 * 32 * 4)}),
                (meta, {**tensors, "blk.1.kv_code.0.below": ("F32", (40, 24), b"\0" * 40 * 24 * 4)}),
                (meta, {**tensors, "blk.0.kv_code.0.part_gain": ("F32", (4,), b"\0\0\x80\x3f" * 3 + b"\0\0\x88\x41")})]
        refuses(self, meta, tensors, bad)

    def test_ffn(self):
        """Rotations of FFN inputs in both containers; rows and inputs rotated with them, products, rows as signs."""
        want = self.load("ffn.json")
        for name in want["files"]:
            got = ffn.FFNRotations(os.path.join(VECTORS, name))
            self.assertEqual((list(got.layers), got.keys["ffn.seed"], got.measured[0]["cos1bit"]), ([1], str(2**64 - 1), 0.75))
            self.assertEqual(len(want["cases"]), 4)
            for c in want["cases"]:
                of = got.layers[1][c["tensor"] == "blk.1.ffn_neurons.rotation"][c["expert"]]
                np.testing.assert_array_equal(of, np.stack([matrix(b) for b in c["rotation"]]))
                rows, x = matrix(c["rows"]), f32(c["input"])[None]
                np.testing.assert_array_equal(ffn.rotate(of.astype("f8"), x).astype("f4")[0], f32(c["rotated"]))
                exact = f32(c["products"])
                np.testing.assert_array_equal((rows.astype("f8") @ x[0]).astype("f4"), exact)
                # Of float32 rotations: 1e-6 of the lengths is what sums of 8 products err by.
                both = (ffn.rotate(of, rows) @ ffn.rotate(of, x)[0])
                self.assertLess(abs(both - exact).max(), 1e-6 * np.linalg.norm(rows, axis=1).max() * np.linalg.norm(x))
                signs, alpha = ffn.encode_rows(of, rows)
                np.testing.assert_array_equal(alpha.astype("f4"), f16(c["alpha"]))
                np.testing.assert_array_equal(signs, ref.signs(u32(c["words"]), rows.shape[1]))
                coded = (alpha * (signs @ ffn.rotate(of.astype("f8"), x)[0])).astype("f4")
                np.testing.assert_allclose(coded, f32(c["coded"]), rtol=1e-6)  # the order of a sum in float64

    def test_ffn_refuses(self):
        meta, tensors = ref.read_model(os.path.join(VECTORS, "ffn.sidecar"))
        name = "blk.1.ffn_neurons.rotation"
        kind, shape, data = tensors[name]
        bad = [({**meta, "phaseconv." + k: v}, tensors) for k, v in {
            "ffn.version": "2", "ffn.layers": "1", "ffn.block": "4", "ffn.basis": "mine", "ffn.rows": "-1", "source.sha256": "x", "more": "1"}.items()]
        bad += [({k: v for k, v in meta.items() if k != key}, tensors) for key in meta if key != "format"]
        bad += [({**meta, "phaseconv.ffn.basis": "shared"}, tensors), (meta, {name: tensors[name]}), (meta, {**tensors, "blk.1.x": tensors[name]}),
                (meta, {**tensors, name: (kind, (1, 1, 8, 16), data)}), (meta, {**tensors, name: (kind, shape, data[4:] + data[:4])}),
                (meta, {**tensors, name: (kind, shape, b"\0\0\x80\x7f" + data[4:])})]
        refuses(self, meta, tensors, bad, ffn.FFNRotations)


def refuses(test, meta, tensors, bad, reader=ref.Sidecar):
    """The reader takes a file of meta and tensors and none of the bad ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s.safetensors")
        for i, (m, t) in enumerate([(meta, tensors)] + bad):
            head, body = {"__metadata__": m}, b""
            for n, (k, s, x) in t.items():
                head[n] = {"dtype": k, "shape": list(s), "data_offsets": [len(body), len(body) + len(x)]}
                body += x
            head = json.dumps(head).encode()
            with open(path, "wb") as f:
                f.write(struct.pack("<Q", len(head)) + head + body)
            if i == 0:
                reader(path)
            else:
                with test.assertRaises((ValueError, KeyError), msg=f"case {i}"):
                    reader(path)


def check_group(test, v, tensors=None):
    """A group from the vectors of a sequence to scores and sums."""
    mean, dec = matrix(v["mean"], tensors=tensors)[0], matrix(v["decode"], tensors=tensors)
    enc = matrix(v["encode"], dec, tensors) if "encode" in v else None
    for key in ("gain", "part_gain"):
        if tensors is not None and (stored := tensors.get(v["decode"]["tensor"].replace("decode", key))):
            np.testing.assert_array_equal(np.frombuffer(stored[2], "<f4"), f32(v[key]))
    x, words, alpha, d, b = matrix(v["vectors"]), u32(v["words"]), f16(v["alpha"]), v["head_dim"], v["signs"]
    sizes = [d if p[0] == "k" else v["value_dim"] for p in v["parts"]]
    starts = np.cumsum([0] + sizes).tolist()
    part_gain = f32(v["part_gain"]) if "part_gain" in v else None
    folded = ref.fold((v["parts"], starts, mean, dec, enc, None, part_gain))
    first, end = v["sink"], len(x) - v["recent"]
    check_stored(test, u32(v["stored"]), words)
    np.testing.assert_array_equal(ref.transposed(words, b).reshape(-1, 32), u32(v["transposed"]))
    none = np.zeros((len(words), 0))
    hats = ref.decode(words, alpha, mean, folded, none.astype(int), none)
    dim = v.get("rope_dim", d)
    angle = v["rope_theta"] ** (-2 * np.arange(dim // 2) / max(dim, 1))
    blocks = {b["start"]: (f32(b["cos"]), f32(b["sin"])) for b in v.get("blocks", [])}
    keys = [i for i, p in enumerate(v["parts"]) if p[0] == "k"]
    values = [i for i, p in enumerate(v["parts"]) if p[0] == "v"]
    queries, scores = [matrix(v["queries"]), np.stack([f32(s) for s in v["scores"]])] if keys else [None, None]
    below = np.zeros((1, x.shape[1]))
    below_words, below_alpha = np.zeros((len(words), 1), np.uint32), np.zeros(len(words))
    if "below" in v:
        below, below_words, below_alpha = matrix(v["below"], tensors=tensors), u32(v["below_words"]), f16(v["below_alpha"])
    p = below_alpha[:, None] * (ref.signs(below_words, len(below)).astype(float) @ below.astype(float))
    turned = x[first:end].copy()
    exact = x.astype(np.float16).astype(float)
    for n in range(first, end):
        start = n - n % v["anchor"] if v["anchor"] and keys and dim else 0
        turn = lambda y: y
        if start:
            cos, sin = blocks[start]
            np.testing.assert_allclose(cos, np.cos(start * angle), atol=1e-7)
            np.testing.assert_allclose(sin, np.sin(start * angle), atol=1e-7)
            turn = lambda y: ref.turn_back(y, cos, sin, v["pair_layout"])
        row = slice(n - first, n - first + 1)
        for i, k in enumerate(keys):
            at = slice(starts[k], starts[k + 1])
            turned[row, at] = turn(turned[row, at])
            q = turn(queries[i:i + 1])
            got = ref.score(q, words[row], alpha[row], mean[at], folded[:, at], none[row].astype(int), none[row])[0, 0] + (q[0].astype(float) @ p[n - first, at])
            room = 1e-12 * ((abs(q) @ abs(mean[at]))[0] + alpha[n - first] * (abs(folded[:, at]) @ abs(q[0])).sum()) + 1e-7 * abs(got)
            test.assertLessEqual(abs(got - scores[i, n]), room)
    if "below" in v:
        np.testing.assert_allclose(hats[-1] + p[-1], f32(v["decoded"]), rtol=1e-5, atol=1e-5)
        turned = turned - p.astype(np.float32)
    else:
        np.testing.assert_array_equal(hats[-1], f32(v["decoded"]))
    for n in [*range(first), *range(end, len(x))]:
        for i, k in enumerate(keys):
            np.testing.assert_allclose(queries[i].astype(float) @ exact[n, starts[k]:starts[k + 1]], scores[i, n], rtol=1e-6, atol=1e-6)
    got_words, got_alpha = encode(turned, mean, dec, enc, float(f32(v.get("gain", "3f800000"))[0]))
    np.testing.assert_array_equal(got_words, words)
    np.testing.assert_array_equal(got_alpha, alpha.astype(np.float16).view(np.uint16))
    for i, k in enumerate(values):
        at, a = slice(starts[k], starts[k + 1]), matrix(v["weights"])[i:i + 1]
        kept = np.r_[0:first, end:len(x)]
        got = ref.sums(a[:, first:end], words, alpha, mean[at], folded[:, at])[0] + a[0, first:end].astype(float) @ p[:, at] + a[0, kept].astype(float) @ exact[kept, at]
        np.testing.assert_allclose(got, f32(v["sums"][i]), rtol=1e-6, atol=1e-5)


def check_stored(test, stored, words):
    """The interchange layout: blocks of 16 keys, word by word."""
    flat, width = stored.reshape(-1), words.shape[1]
    for n, key in enumerate(words):
        for w, word in enumerate(key):
            test.assertEqual(flat[n // 16 * 16 * width + 16 * w + n % 16], word)
    test.assertEqual(np.count_nonzero(flat), np.count_nonzero(words))


def except_(keys, hats, count):
    """The reference encoder's exceptions, code.md, section 7."""
    rest = keys - hats
    at = np.sort(np.argsort(-abs(rest), axis=1, kind="stable")[:, :count], axis=1)
    return at, np.clip(np.take_along_axis(rest, at, 1), -65504, 65504).astype(np.float16)


def check_head(test, v, tensors=None):
    """One KV head from keys to scores."""
    mean, dec = matrix(v["mean"], tensors=tensors)[0], matrix(v["decode"], tensors=tensors)
    enc = matrix(v["encode"], dec, tensors) if "encode" in v else None
    keys, queries = matrix(v["keys"]), matrix(v["queries"])
    words, alpha, scores = u32(v["words"]), f16(v["alpha"]), np.stack([f32(x) for x in v["scores"]])
    d, b, layout = v["head_dim"], v["signs"], v["pair_layout"]
    gain = float(f32(v.get("gain", "3f800000"))[0])
    if tensors is not None and (stored := tensors.get(v["decode"]["tensor"].replace("decode", "gain"))):
        test.assertEqual(np.frombuffer(stored[2], "<f4")[0], gain)
    check_stored(test, u32(v["stored"]), words)
    count = v.get("exceptions", 0)
    at_, values = [np.array([[int(x, 16) for x in line.split()] for line in v.get(name, [""] * len(words))], kind).reshape(len(words), count)
                   for name, kind in (("coordinates", np.int64), ("values", np.uint16))]
    values = values.view(np.float16)
    hats = ref.decode(words, alpha, mean, dec, at_, values)
    for x in v["decoded"]:
        np.testing.assert_array_equal(hats[x["key"]], f32(x["k_hat"]))
    angle = v["rope_theta"] ** (-2 * np.arange(d // 2) / d)
    at = 0
    for block in v["blocks"]:
        part = slice(at, at + block["keys"])
        k, q = keys[part], queries
        if v["anchor"]:
            for n in (at, at + block["keys"] - 1):
                position = v["first_position"] + n
                test.assertEqual(block["start"], position - position % v["anchor"])
            cos, sin = f32(block["cos"]), f32(block["sin"])
            np.testing.assert_allclose(cos, np.cos(block["start"] * angle), atol=1e-7)
            np.testing.assert_allclose(sin, np.sin(block["start"] * angle), atol=1e-7)
            k, q = ref.turn_back(k, cos, sin, layout), ref.turn_back(q, cos, sin, layout)
        got_words, got_alpha = encode(k, mean, dec, enc, gain)
        np.testing.assert_array_equal(got_words, words[part])
        np.testing.assert_array_equal(got_alpha, alpha[part].astype(np.float16).view(np.uint16))
        x_at, x_values = except_(k, ref.decode(words[part], alpha[part], mean, dec, at_[part, :0], values[part, :0]), count)
        np.testing.assert_array_equal(x_at, at_[part])
        np.testing.assert_array_equal(x_values.view(np.uint16), values[part].view(np.uint16))
        turned, offset = chain(dec, q), chain(mean[None], q)[:, 0]
        np.testing.assert_array_equal(turned, np.stack([f32(x) for x in block["transformed"]]))
        np.testing.assert_array_equal(offset, f32(block["offsets"]))
        got = ref.score(q, words[part], alpha[part], mean, dec, at_[part], values[part])
        for h in range(len(q)):
            # Rounding to float32, and sums of float64 in another order.
            room = 1e-7 * abs(got[h]) + 1e-12 * ((abs(q[h]) * abs(mean)).sum() + alpha[part] * (abs(dec) @ abs(q[h])).sum())
            test.assertTrue((abs(got[h] - scores[h, part]) <= room).all())
        # Decoding the keys and multiplying is the same.
        other = q.astype(float) @ hats[part].astype(float).T
        np.testing.assert_allclose(other, scores[:, part], atol=1e-3)
        at += block["keys"]
    test.assertEqual(at, len(keys))


VALUES = ["attn_v.weight", "attn_v.bias"]
SIX = ["attn_q.weight", "attn_q.bias", "attn_q_norm.weight", "attn_k.weight", "attn_k.bias", "attn_k_norm.weight"]


def weights_digest(tensors, layers, names):
    """sidecar.md, section 6, for either container."""
    h = hashlib.sha256()
    for l in range(layers):
        for part in names:
            name = f"blk.{l}.{part}"
            module, kind = part.removeprefix("attn_").split(".")
            hf = f"model.layers.{l}.self_attn.{module if module.endswith('norm') else module + '_proj'}.{kind}"
            if (found := tensors.get(name) or tensors.get(hf)) is not None:
                kind, shape, data = found
                h.update(f"{name}\0{kind}\0{'x'.join(map(str, shape))}\0".encode() + data)
    return h.hexdigest()


def source_digest(folder, files):
    lines = [hashlib.sha256(open(os.path.join(folder, f), "rb").read()).hexdigest() + "  " + f + "\n" for f in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@unittest.skipUnless(all(ENV.values()), "PHASECONV_ARTIFACT, _GROUPS, _SOURCE and _VECTORS name no artifacts")
class Artifact(unittest.TestCase):
    def setUp(self):
        self.paths = {"gguf": ("model.gguf", "model.phase.gguf"), "safetensors": ("model.safetensors", "phaseconv.sidecar")}
        self.folders = [{k: [os.path.join(folder, x) for x in v] for k, v in self.paths.items()}
                        for folder in (ENV["ARTIFACT"], ENV["GROUPS"])]
        self.paths = self.folders[0]

    def test_vectors(self):
        for i, paths in enumerate(self.folders):
            for container, (_, sidecar) in paths.items():
                with open(os.path.join(ENV["VECTORS"], ["", "groups."][i] + container + ".json")) as f:
                    vectors = json.load(f)
                self.assertEqual(len(vectors), 2)
                for v in vectors:
                    [check_head, check_group][i](self, v, ref.read_model(sidecar)[1])

    def test_digests(self):
        for model, sidecar in [pair for paths in self.folders for pair in paths.values()]:
            s = ref.Sidecar(sidecar)
            layers, names = (s.keys["layers"], SIX) if str(s.keys["version"]) == "1" else (len(s.layers), SIX + VALUES)
            self.assertEqual(weights_digest(ref.read_model(model)[1], layers, names), s.keys["weights.sha256"])
            self.assertEqual(source_digest(ENV["SOURCE"], ["config.json", "model.safetensors"]), s.keys["source.sha256"])

    def test_layouts(self):
        """The two sidecars of one conversion differ in the order of dimensions and the weights' digest only."""
        a, b = [ref.Sidecar(self.paths[k][1]) for k in ("gguf", "safetensors")]
        self.assertEqual((a.keys["pair_layout"], b.keys["pair_layout"]), ("interleaved", "half"))
        i, d = np.arange(a.keys["head_dim"]), a.keys["head_dim"]
        place = 2 * (i % (d // 2)) + i // (d // 2)
        for x, y in zip(sum(a.codes, []), sum(b.codes, [])):
            for m, n in zip(x, y):
                if m is not None:
                    np.testing.assert_array_equal(m if len(m) == 1 else m[..., place], n)
        self.assertFalse(np.array_equal(x[1], y[1]))
        self.compare_keys(a, b)

    def test_group_layouts(self):
        """The same of groups, of which keys alone are turned by RoPE."""
        for paths in self.folders[1:]:
            a, b = [ref.Sidecar(paths[k][1]) for k in ("gguf", "safetensors")]
            moved = 0
            for y, z in zip(a.layers, b.layers):
                for g, w in zip(y["groups"], z["groups"]):
                    place = np.arange(len(g[2]))
                    for p, start in zip(g[0], g[1]):
                        if p[0] == "k":
                            d = y["head_dim"]
                            place[start:start + d] = start + 2 * (np.arange(d) % (d // 2)) + np.arange(d) // (d // 2)
                    for m, n in zip(g[2:5], w[2:5]):
                        if m is not None:
                            np.testing.assert_array_equal(m[..., place], n)
                            moved += not np.array_equal(m, n)
                    self.assertEqual(g[0], w[0])
                    np.testing.assert_array_equal(g[6], w[6])
            self.assertEqual(moved > 0, any(p[0] == "k" for y in a.layers for g in y["groups"] for p in g[0]))
            self.compare_keys(a, b)

    def compare_keys(self, a, b):
        same = set(a.keys) - {"pair_layout", "weights.sha256", "version"}
        self.assertEqual({k: a.keys[k] for k in same}, {k: b.keys[k] for k in same})

    def test_refuses(self):
        meta, tensors = ref.read_model(self.paths["safetensors"][1])
        name = "blk.0.k_code.0.decode"
        kind, shape, data = tensors[name]
        bad = [({**meta, "phaseconv." + k: v}, tensors) for k, v in {
            "version": "3", "basis": "pre_rope", "exceptions": "129", "anchor": "-1", "head_dim": "3", "layers": "4097", "new": "1",
            "pair_layout": "neox", "weights.sha256": "0" * 63, "source.sha256": "G" * 64, "recent": "1 "}.items()]
        bad += [({k: v for k, v in meta.items() if k != key}, tensors) for key in meta if key != "format"]
        bad += [(meta, {**tensors, "extra": tensors[name]}), (meta, {**tensors, name: (kind, shape, b"\0\0\x80\x7f" + data[4:])}),
                (meta, {**tensors, name: ("F16", shape, data)}), (meta, {k: v for k, v in tensors.items() if k != name})]
        refuses(self, meta, tensors, bad)


if __name__ == "__main__":
    unittest.main()
