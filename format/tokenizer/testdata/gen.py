"""gen.py LLAMA_CPP TEXT: writes the tokenizers and the golden files of this folder.

Oracles: Hugging Face tokenizers, SentencePiece, and llama.cpp (its converter, its llama_tokenize, its regex splitter).
LLAMA_CPP is a checkout with a build in build/ (shared libraries, no tests needed); TEXT is some English text of 200 kB to train on.
Needs PyPI: tokenizers transformers sentencepiece gguf numpy safetensors. No torch: an empty stand-in is enough for the vocabulary.
With PHASECONV_MODELS and PHASECONV_TEXT set (see models_test.go), golden/models.json is written too.
"""
import hashlib, json, os, re, shutil, struct, subprocess, sys, tempfile, unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLD = HERE / "golden"
LLAMA, TEXT = Path(sys.argv[1]), Path(sys.argv[2])
TMP = Path(tempfile.mkdtemp())
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


# ---- texts ----------------------------------------------------------------------------------------------------------

def hostile():
    """(text or bytes, repeat) pairs."""
    t = []
    add = lambda *xs: t.extend((x, 1) for x in xs)
    add("", " ", "  ", "   ", "    x", "x    ", " x ", "a  b   c    d", "\t", "\t\t", " \t \t x", "\n", "\n\n", "\n\n\n\n\nx", " \n", "\n ", " \n x",
        "x \n \n  \n   y", "\r", "\r\n", "\r\n\r\n", "a\r\nb\rc\n\rd", "\r\n  \r\n  x", "\v\f", "x\u0085y", "\u00a0x", "x\u00a0\u00a0y", "\u2003 \u2003x",
        "\u3000\u3000", "\u200b", "\ufeffx", "\u1680 \u2028\u2029", "  \n\t \r\n  \u00a0 !")
    add("1", "12", "123", "1234", "12345678901234567890", "1 2 33 444 5555", "3.14159", "1,000,000.00", "x1y22z333", " 1", "  12", "\u0661\u0662\u0663\u0664",
        "\u0967\u0968\u0969", "\u2160\u2161\u216b", "\u00bd\u00b2\u00b3", "\uff11\uff12\uff13\uff14", "\U0001d7ce\U0001d7cf", "\u4e00\u4e8c\u4e09", "0x1F", "1e-10", "2nd 3RD")
    add("!!!!!!", "!!!!!!!!!!!!!!!!!", "......", "?!?!?!", "------======", "''''''", "``````", '""""', "((()))", "~~~", "$$$ ### @@@", "a!b?c.d,e", "!a", " !a", "! a",
        "foo_bar-baz/qux\\quux", "<<>>", "=>", "::", "//", "/* x */", "a\u2014b\u2026c", "\u00bfqu\u00e9?", "\u3001\u3002\uff01", "\u20ac5 \u00a33 \u00a51", "\u00a9\u00ae\u2122",
        "\u2190\u2191\u2192", "x!\n\ny", "x!\r\n", ",\n", " ,\n\n ", "/\n/", " />\n")
    add("it's", "IT'S", "It'S don't DON'T I'm I'M you're YOU'RE we've WE'VE he'll HE'LL she'd SHE'D", "'s", " 's", "''s", "'", "' ", "'x", "'re", "'r", "'RE'LL've", "a's's",
        "'\u017f", "it'\u017fx it'Sx", "l'\u00e9t\u00e9", "\u2019s it\u2019s", "o'clock 'twas", "'Sx IT'Sx 'REx 'rex can'Txx I'LLx 'llx")
    add("\u00e9", "e\u0301", "E\u0301\u0302\u0303x", "\u0301", "\u0301a", " \u0301a", "A\u030a\u00c5\u212b", "\ufb01\ufb02", "\u1e9b\u0323", "\u0958\u0915\u093c", "\uac00\u1100\u1161",
        "\u3060\u305f\u3099", "\u0041\u030a\u0323")
    add("\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
        "\u0627\u0644\u0633\u0651\u064e\u0644\u064e\u0627\u0645\u064f", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u1780\u17b6\u1793\u17cb\u178f\u17c2", "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0", "\u1200\u1208\u1210",
        "\u4f60\u597d\uff0c\u4e16\u754c", "\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u30ab\u30bf\u30ab\u30ca", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u1112\u1161\u11ab",
        "\U00020000\U0002a6df", "a\u1c89b \U00013460x", "\U0002ebf0\U0002ee5d", "\u01c5\u01c8", "ABC\u00c9DEF\u00e9ghi", "\u00c9AB", "AB\u00c9", "aB\u00c9cD", "camelCaseWORDSAndMore", "\u02b0\u02b1x", "\u00aa\u00ba", "\u1d400\u1d44e")
    add("\U0001f600", "\U0001f600\U0001f600 \U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5", "\u2764\ufe0f", "1\ufe0f\u20e3",
        "\U0001f636\u200d\U0001f32b\ufe0f", "x\U0001f680y", "\U000e0041", "\ue000\uf8ff", "\U0010fffd", "\U000f0000", "\ufffd", "\ufffe\uffff", "\u0378", "\U0001fffe")
    add("\x00", "a\x00b", "\x00\x00\x00", "\x01\x02\x03", "\x07\x08\x1b[0m", "\x1c\x1d\x1e\x1f", "\x7f", "\x80".encode("latin1").decode("latin1"), "\u009f", "\u00ad", "\u202e\u202d", "\u2060")
    add("<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "<s>", "</s>", "a<s>b", "<s> <s>", "<unk>", "<pad>", "<mask>", "<0x41>", "<0x0A>", "[PAD7]", "<|begin|>x<|begin|>",
        "<|begin|", "|begin|>", "<<|begin|>>", "<|begin|><|begin|>", " <|begin|> ", "x <|begin|>\ny", "<tool>", "<tool>x</tool>", "a<tool> b", "<TOOL>", "\u2581", "\u2581\u2581x", "a\u2581b", "\u0120x", "\u010a",
        "[multimodal]", "<bos>x<eos>", "<start_of_turn>user\nhi<end_of_turn>\n", "<|a|>b|>", "<a|>bc", "<|a|>bcdef", "x<|a|>bcdefg|>bcdef")
    add("The quick brown fox jumps over the lazy dog.", "def f(x):\n    if x > 1:\n        return x**2  # square\n\treturn None\n", '{"a": [1, 2.5, null], "b": "c\\n"}',
        "https://example.org/a/b?c=d&e=%20f#g", "user@example.com", "C:\\Windows\\System32", "\\frac{a}{b} $x^2$", "SELECT * FROM t WHERE a='b';",
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.\n\n"
        "However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so well fixed in the minds of the "
        "surrounding families, that he is considered the rightful property of some one or other of their daughters.\n\n\u201cMy dear Mr. Bennet,\u201d said his lady to him one day, "
        "\u201chave you heard that Netherfield Park is let at last?\u201d\n",
        " = Robert Boulter = \n \n Robert Boulter is an English film , television and theatre actor . He had a guest @-@ starring role on the series The Bill in 2000 .\n",
        "".join(chr(c) for c in range(1, 256)), "".join(chr(c) + " " for c in range(0x100, 0x250)), " ".join(chr(c) for c in range(0x2000, 0x2070) if c not in (0x2028,)))
    # What is no UTF-8: only llama.cpp takes it.
    t += [(b, 1) for b in (b"\x80", b"\xff", b"a\xffb", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82x", b"\xe2(\xa1", b"\xf0\x9f\x98", b"\xf0\x9f\x98x", b"\xf0\x28\x8c\xbc", b"\xc0\x80", b"\xc1\xbf",
                           b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xfe\xff\xff", b"ok \xc3\xa9 \xe9 ok", b"\xbf\xbf\xbf 12\xbf3", b" \xf0 \xe2\x96\x81 \xf0\xe2\x96\x81x")]
    # Long runs: quadratic or recursive code shows here.
    t += [(u, n) for u, n in (("a", 100000), ("ab", 50000), ("the", 40000), ("!", 100000), (" ", 20000), ("\n", 5000), ("1", 20000), ("\u00e9", 30000), ("\u4e2d", 30000), ("\U0001f600", 20000), ("x ", 20000), (" \n", 5000))]
    return t


def as_bytes(t):
    x, n = t
    return (x if isinstance(x, bytes) else x.encode()) * n


def is_text(b):
    try:
        b.decode()
        return True
    except UnicodeDecodeError:
        return False


def text_json(t):
    x, n = t
    d = {"text": x} if not isinstance(x, bytes) else {"hex": x.hex()}
    return d if n == 1 else {**d, "repeat": n}


def digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()


def pack(ids):
    """ids, or for long lists their number and SHA-256 as little-endian int32."""
    return ids if len(ids) <= 300 else {"n": len(ids), "sha256": digest(ids)}


def versus(ours, theirs):
    """The entries of theirs that differ, by index; None stands for no answer."""
    return {i: b for i, (a, b) in enumerate(zip(ours, theirs)) if a != b and b is not None}


def dump(path, obj, **kw):
    path.write_text(json.dumps(obj, ensure_ascii=True, separators=(",", ":"), **kw) + "\n")


# ---- llama.cpp ------------------------------------------------------------------------------------------------------

def build_oracles():
    lib = LLAMA / "build/bin"
    run = lambda *a: subprocess.run([str(x) for x in a], check=True)
    run("g++", "-O1", "-std=c++17", f"-I{LLAMA}/include", f"-I{LLAMA}/ggml/include", HERE / "oracle_ids.cpp", "-o", TMP / "ids",
        f"-L{lib}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{lib.resolve()}")
    run("g++", "-O1", "-std=c++17", f"-I{LLAMA}/src", HERE / "oracle_split.cpp", LLAMA / "src/unicode.cpp", LLAMA / "src/unicode-data.cpp", "-o", TMP / "split")


def ask(cmd, records):
    data = b"".join(struct.pack("<BI", f, len(b)) + b for f, b in records)
    out = subprocess.run([str(c) for c in cmd], input=data, stdout=subprocess.PIPE, check=True).stdout
    res, o = [], 0
    for _ in records:
        n = struct.unpack_from("<I", out, o)[0]
        o += 4
        res.append(list(struct.unpack_from(f"<{n}i", out, o)))
        o += 4 * n
    assert o == len(out)
    return res


def llama_ids(gguf, texts, special, parse):
    return ask([TMP / "ids", gguf], [(special | 2 * parse, b) for b in texts])


def llama_regexes():
    """The patterns of each pre-tokenizer type, read from llama.cpp's source."""
    src = (LLAMA / "src/llama-vocab.cpp").read_text()
    body = src[src.index("struct llm_tokenizer_bpe :"):src.index("struct llm_tokenizer_bpe_session")]
    types, names = {}, []
    strings = re.compile(r'^\s*"((?:[^"\\]|\\.)*)"')
    inside = False
    for line in body.splitlines():
        if m := re.match(r"\s*case LLAMA_VOCAB_PRE_TYPE_(\w+):", line):
            if inside is None:
                names = []
            names.append(m[1]); inside = False
        elif re.match(r"\s*default:", line):
            names = ["DEFAULT"]; inside = False
        elif "regex_exprs = {" in line:
            inside = True
            for n in names: types[n] = []
        elif inside and (m := strings.match(line)):
            s = m[1].encode().decode("unicode_escape").encode("latin1").decode()
            for n in names: types[n].append(s)
        elif "break;" in line:
            inside = None
    return types


SPLITTERS = {  # pre-tokenizer -> llama.cpp type
    "gpt-2": "GPT2", "smollm": "SMOLLM", "llama-bpe": "LLAMA3", "qwen2": "QWEN2", "qwen35": "QWEN35", "default": "DEFAULT", "falcon": "FALCON", "tekken": "TEKKEN",
    "gpt-4o": "GPT4O", "deepseek-coder": "DEEPSEEK_CODER", "deepseek-llm": "DEEPSEEK_LLM", "seed-coder": "SEED_CODER", "deepseek-v3": "DEEPSEEK3_LLM", "gemma4": "GEMMA4"}


def llama_splits(texts):
    types = llama_regexes()
    out = {}
    for name, typ in SPLITTERS.items():
        rx = TMP / "rx"
        rx.write_bytes(b"\0".join(r.encode() for r in types[typ]))
        # Lengths of the pieces, in code points of the text with U+FFFD for what is no UTF-8. std::regex recurses: no long runs.
        out[name] = ask([TMP / "split", rx], [(0, b) for b in texts])
    return out


# ---- Hugging Face ---------------------------------------------------------------------------------------------------

FOLD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = FOLD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL
QWEN2 = FOLD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL
QWEN35 = FOLD + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, TAIL2 = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = f"{LEAD}{UP}*{LOW}+|{LEAD}{UP}+{LOW}*|\\p{{N}}{TAIL2}"
GPT4O = f"{LEAD}{UP}*{LOW}+{FOLD}?|{LEAD}{UP}+{LOW}*{FOLD}?|\\p{{N}}{{1,3}}{TAIL2}"
DS3 = ["\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
       "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
SEED = FOLD + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
split = lambda r: pre_tokenizers.Split(Regex(r), "isolated")
raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
seq = pre_tokenizers.Sequence
HF_PRE = {"gpt-2": gpt2, "smollm": seq([pre_tokenizers.Digits(individual_digits=True), gpt2]), "llama-bpe": seq([split(LLAMA3), raw]), "qwen2": seq([split(QWEN2), raw]),
          "qwen35": seq([split(QWEN35), raw]), "tekken": seq([split(TEKKEN), raw]), "gpt-4o": seq([split(GPT4O), raw]), "deepseek-v3": seq([split(r) for r in DS3] + [raw]),
          "deepseek-coder": seq([split(r) for r in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK)] + [pre_tokenizers.Digits(individual_digits=True), raw]),
          "deepseek-llm": seq([split(r) for r in llama_regexes()["DEEPSEEK_LLM"]] + [raw]), "seed-coder": seq([split(SEED), raw])}


def hf_splits(texts):
    # offsets, since ByteLevel spells the pieces
    return {n: [[b - a for _, (a, b) in p.pre_tokenize_str(t.decode())] if is_text(t) else None for t in texts] for n, p in HF_PRE.items()}


def hf_classes():
    """Runs [first, last] of code points per class, as the regex engine sees them."""
    out = {}
    for name, pat in {"L": r"\p{L}", "N": r"\p{N}", "M": r"\p{M}", "P": r"\p{P}", "S": r"\p{S}", "space": r"\s"}.items():
        p, runs = pre_tokenizers.Split(Regex(pat), "removed"), []
        for base in range(0, 0x110000, 0x1000):
            cps = [c for c in range(base, base + 0x1000) if not 0xD800 <= c <= 0xDFFF]
            kept = set()
            for _, (a, b) in p.pre_tokenize_str("".join(map(chr, cps))):
                kept.update(range(a, b))
            for i, c in enumerate(cps):
                if i not in kept:
                    if runs and runs[-1][1] == c - 1: runs[-1][1] = c
                    else: runs.append([c, c])
        out[name] = runs
    return out


def added_tokens():
    """What transformers makes of the folders that added.json describes: [id, special] of each added token."""
    from transformers import AutoTokenizer
    out = {}
    chars = pre_tokenizers.ByteLevel.alphabet()
    keep = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    spell = lambda b: chr(b) if b in keep else chr(0x100 + [c for c in range(256) if c not in keep].index(b))
    vocab = {spell(b): b for b in range(256)} | {"ab": 256}
    assert set(chars) < set(vocab)
    for c in json.loads((HERE / "added.json").read_text()):
        d = Path(tempfile.mkdtemp(dir=TMP))
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        files = {"tokenizer.json": {"version": "1.0", "truncation": None, "padding": None, "added_tokens": c["added"], "normalizer": None, "pre_tokenizer": level,
                                    "post_processor": None, "decoder": level, "model": {"type": "BPE", "dropout": None, "unk_token": None,
                                    "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                                    "vocab": vocab, "merges": ["a b"]}},
                 "config.json": {"model_type": "llama", "vocab_size": 320}, **c.get("files", {})}
        files["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", **files.get("tokenizer_config.json", {})}
        for n, doc in files.items():
            (d / n).write_text(json.dumps(doc))
        t = AutoTokenizer.from_pretrained(d)
        out[c["name"]] = {str(x): [i, x.special] for i, x in t.added_tokens_decoder.items()}
        for text, (i, _) in out[c["name"]].items():
            assert t.encode(text, add_special_tokens=False) == [i], (c["name"], text)
    return out


def byte_level(name, pre, size, special, user, pairs, config, tok_config, ignore_merges=False, normalizer=None, bos=None):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    tr = trainers.BpeTrainer(vocab_size=size, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    # Mixed material, so that merges of digits, blanks and other scripts exist.
    t.train_from_iterator([TEXT.read_text()[:200000]] + [x * 40 for x, n in hostile() if isinstance(x, str) and n == 1] * 2, tr)
    if normalizer is not None: t.normalizer = normalizer
    t.add_tokens([AddedToken(x, normalized=False) for x in user])
    t.add_special_tokens([AddedToken(x, normalized=False) for x in special])
    if bos:
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, t.token_to_id(bos))])])
    save(name, t, config, tok_config, pairs)


def save(name, t, config, tok_config, pairs=True):
    d = HERE / name
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir()
    j = json.loads(t.to_str())
    if not pairs:  # as older versions of the library wrote merges
        j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]]
    dump(d / "tokenizer.json", j)
    dump(d / "config.json", config)
    dump(d / "tokenizer_config.json", tok_config)


def sentencepiece_model(name, user, dummy, config, tok_config, specials):
    import sentencepiece as sp
    pieces = dict(zip(("unk_piece", "bos_piece", "eos_piece", "pad_piece"), specials[0]))
    ids = dict(zip(("unk_id", "bos_id", "eos_id", "pad_id"), specials[1]))
    src = TMP / "train.txt"
    src.write_text(TEXT.read_text()[:200000] + "\n".join(x for x, n in hostile() if isinstance(x, str) and n == 1 and "\x00" not in x))
    sp.SentencePieceTrainer.train(input=str(src), model_prefix=str(TMP / name), model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=0.99,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=dummy, split_digits=True, allow_whitespace_only_pieces=True,
        user_defined_symbols=user, minloglevel=2, num_threads=1, max_sentence_length=100000, **pieces, **ids)
    p = sp.SentencePieceProcessor(model_file=str(TMP / f"{name}.model"))
    vocab = {p.id_to_piece(i): i for i in range(p.get_piece_size())}
    merges = []  # every way to split a piece into two pieces, best score first, as Hugging Face converts such models
    for text, i in vocab.items():
        local = [(text[:k], text[k:], p.get_score(i)) for k in range(1, len(text)) if text[:k] in vocab and text[k:] in vocab]
        merges += sorted(local, key=lambda m: (vocab[m[0]], vocab[m[1]]))
    merges = [m[:2] for m in sorted(merges, key=lambda m: m[2], reverse=True)]
    unk, bos, eos = specials[0][:3]
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]) if dummy else normalizers.Replace(" ", "\u2581")
    if not dummy: t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([AddedToken(x, normalized=False) for x in specials[0] if x in vocab] + [AddedToken(x, normalized=False) for x in tok_config.pop("more", [])])
    t.add_tokens([AddedToken(x, normalized=False) for x in user])
    t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])])
    config["vocab_size"] = t.get_vocab_size() + 5
    added = json.loads(t.to_str())["added_tokens"]
    tok_config["added_tokens_decoder"] = {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added}
    save(name, t, config, tok_config)
    shutil.copy(TMP / f"{name}.model", HERE / name / "tokenizer.model")
    return p


def stock(name, pre):
    """The stock converter's vocabulary of a folder, as a GGUF file; the pre-tokenizer by name, since it goes by hashes of known models."""
    import numpy as np
    from safetensors.numpy import save_file
    work = TMP / f"hf-{name}"
    shutil.copytree(HERE / name, work)
    save_file({"model.norm.weight": np.zeros(4, np.float32)}, work / "model.safetensors")
    torch = TMP / "stub/torch"
    torch.mkdir(parents=True, exist_ok=True)
    (torch / "__init__.py").write_text(
        "import sys,types,contextlib\nfrom unittest.mock import MagicMock\nclass Tensor: pass\nclass dtype: pass\nclass Size: pass\n"
        "class M(types.ModuleType):\n  def __getattr__(self,n):\n    if n.startswith('__'): raise AttributeError(n)\n    m=MagicMock(name=n); setattr(self,n,m); return m\n"
        "sys.modules[__name__].__class__=M\n__version__='2.4.0'\ndef inference_mode(*a,**k): return contextlib.nullcontext()\n")
    out = TMP / f"{name}.gguf"
    code = (f"import sys; sys.argv=['x','--outtype','f16','--no-lazy','--vocab-only','--outfile',{str(out)!r},{str(work)!r}]\n"
            f"import conversion.base as b\nb.TextModel.get_vocab_base_pre=lambda self,t: {pre!r}\nimport convert_hf_to_gguf as c\nc.main()\n")
    env = {**os.environ, "PYTHONPATH": f"{TMP}/stub:{LLAMA}/gguf-py:{LLAMA}"}
    r = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode: sys.exit(r.stdout)
    return out


def gemma4():
    """The vocabulary of gemma with merges instead of scores, as GGUF files of the model "gemma4" have it."""
    import gguf
    d = json.loads((GOLD / "gemma.stock.json").read_text())
    merges = json.loads((HERE / "gemma/tokenizer.json").read_text())["model"]["merges"]
    w = gguf.GGUFWriter(TMP / "gemma4.gguf", "llama")
    for key, val in {"context_length": 512, "embedding_length": 64, "block_count": 1, "feed_forward_length": 64, "head_count": 2, "layer_norm_rms_eps": 1e-5,
                     "rope_dimension_count": 32, "vocab_size": len(d["tokenizer.ggml.tokens"]), "tokenizer_model": "gemma4", "token_list": d["tokenizer.ggml.tokens"],
                     "token_types": d["tokenizer.ggml.token_type"], "token_merges": [" ".join(m) for m in merges], "bos_token_id": 2, "eos_token_id": 1, "add_bos_token": False}.items():
        getattr(w, "add_" + key)(val)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.close()
    return TMP / "gemma4.gguf"


def metadata(gguf_file):
    import gguf
    return {k: f.contents() for k, f in gguf.GGUFReader(gguf_file).fields.items() if k.startswith("tokenizer.")}


MODES = (("plain", 0, 0), ("parsed", 0, 1), ("added", 1, 1))
LLAMA_CFG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
             "intermediate_size": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512}


def main():
    GOLD.mkdir(exist_ok=True)
    build_oracles()
    texts = hostile()
    dump(GOLD / "texts.json", [text_json(t) for t in texts])
    data = [as_bytes(t) for t in texts]
    short = [b for b, (_, n) in zip(data, texts) if n == 1]
    ll, hf = llama_splits(short), hf_splits(short)
    dump(GOLD / "splits.json", {"llama": ll, "hf": {n: versus(ll[n], s) for n, s in hf.items()}})
    dump(GOLD / "classes.json", hf_classes())
    dump(GOLD / "added.json", added_tokens())

    qwen = {**LLAMA_CFG, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    byte_level("llama3", HF_PRE["llama-bpe"], 900, ["<|begin|>", "<|end_of_text|>", "<|a|>", "|>bcdef"], [], True,
               {**LLAMA_CFG, "vocab_size": 912, "bos_token_id": 900, "eos_token_id": [901, 902]}, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end_of_text|>"},
               ignore_merges=True, bos="<|begin|>")
    (HERE / "llama3/chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}\n")
    byte_level("qwen2", HF_PRE["qwen2"], 900, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool>", "</tool>"], False,
               {**qwen, "vocab_size": 910, "bos_token_id": 902, "eos_token_id": 904},
               {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
                "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tool-use", "template": "{{ tools }}"}]},
               normalizer=normalizers.NFC())
    byte_level("smollm", HF_PRE["smollm"], 900, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], True,
               {**LLAMA_CFG, "vocab_size": 903, "bos_token_id": 901, "eos_token_id": 902}, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "unk_token": "<|endoftext|>"})
    spm = sentencepiece_model("spm", [], True, {**LLAMA_CFG, "bos_token_id": 1, "eos_token_id": 2},
                              {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "more": ["<|im_start|>", "<|im_end|>"]},
                              (("<unk>", "<s>", "</s>"), (0, 1, 2, -1)))
    gem = sentencepiece_model("gemma", ["\n", "\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "[multimodal]", "<tool>"], False,
                              {**LLAMA_CFG, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 32, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
                               "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 64},
                              {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
                               "more": ["<start_of_turn>", "<end_of_turn>"]},
                              (("<unk>", "<bos>", "<eos>", "<pad>"), (3, 2, 1, 0)))
    for name, pre in {"llama3": "llama-bpe", "qwen2": "qwen2", "smollm": "smollm", "spm": None, "gemma": None, "austen-moe": "gpt-2", "gemma4": None}.items():
        g = gemma4() if name == "gemma4" else stock(name, pre)
        dump(GOLD / f"{name}.stock.json", metadata(g))
        if name == "gemma4":
            dump(GOLD / "gemma4.ids.json", {key: {"llama": [pack(x) for x in llama_ids(g, data, special, parse)]} for key, special, parse in MODES})
            continue
        t = Tokenizer.from_file(str(HERE / name / "tokenizer.json"))
        out = {}
        for key, special, parse in MODES:
            t.encode_special_tokens = not parse
            ours = [pack(x) for x in llama_ids(g, data, special, parse)]
            out[key] = {"llama": ours, "hf": versus(ours, [pack(t.encode(b.decode(), add_special_tokens=bool(special)).ids) if is_text(b) else None for b in data])}
        p = {"spm": spm, "gemma": gem}.get(name)
        if p: out["plain"]["sentencepiece"] = versus(out["plain"]["llama"], [pack(p.encode(b.decode())) if is_text(b) else None for b in data])
        dump(GOLD / f"{name}.ids.json", out)
    if "PHASECONV_MODELS" in os.environ: models_golden(data)
    shutil.rmtree(TMP)


def models_golden(data):
    """Hashes for the real vocabularies, which are too large to be here."""
    folder, text = Path(os.environ["PHASECONV_MODELS"]), Path(os.environ["PHASECONV_TEXT"]).read_bytes()
    out = {"text_sha256": hashlib.sha256(text).hexdigest()}
    for name in ("smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m"):
        o = out[name] = {}
        g = folder / f"{name}.gguf"
        ids = llama_ids(g, [text], 0, 0)[0]
        o["llama_text"] = {"n": len(ids), "sha256": digest(ids)}
        for key, special, parse in MODES:
            o["llama_" + key] = [digest(x)[:16] for x in llama_ids(g, data, special, parse)]
        if (folder / name / "tokenizer.json").exists():
            t = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
            ids = t.encode(text.decode()).ids
            o["hf_text"] = {"n": len(ids), "sha256": digest(ids)}
            for key, parse in (("plain", 0), ("parsed", 1)):
                t.encode_special_tokens = not parse
                o["hf_" + key] = versus(o["llama_" + key], [digest(t.encode(b.decode(), add_special_tokens=False).ids)[:16] if is_text(b) else None for b in data])
    dump(GOLD / "models.json", out)


main()
