#!/usr/bin/env bash
# release.sh WORK PYTHON: makes a release of the model in testdata, and lets the programs of others read it: its
# card as the hub's own library does, its names and keys with gguf, its signature with OpenSSF's model-signing.
# PYTHON has huggingface_hub, gguf and model-signing.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?work folder} python=${2:?Python}
mkdir -p "$work"
go build -o "$work/phaseconv" ./cmd/phaseconv
"$work/phaseconv" convert testdata/austen-moe -o "$work/austen" --calib-tokens 1024 --chunks 1 >/dev/null 2>"$work/convert.log" ||
	{ cat "$work/convert.log"; exit 1; }
"$work/phaseconv" release "$work/austen" -o "$work/release" --base-model Org/Austen --quantized-by me --license apache-2.0 \
	--split-max-size 3M 2>/dev/null
"$work/phaseconv" card "$work/austen" -o "$work/other.md" --license my-own-licence >/dev/null
"$python" scripts/oracles/card.py "$work/release/README.md" "$work/other.md"
"$python" - "$work/release" <<'P'
import glob, json, sys
import gguf
from huggingface_hub import ModelCard

card = ModelCard.load(sys.argv[1] + "/README.md").data
assert (card.base_model, card.license, card.pipeline_tag) == ("Org/Austen", "apache-2.0", "text-generation"), card
assert card.to_dict()["base_model_relation"] == "quantized", card
files = sorted(glob.glob(sys.argv[1] + "/*.gguf"))
assert len(files) > 1 and files[0].endswith("-00001-of-%05d.gguf" % len(files)), files
tensors = 0
for i, f in enumerate(files):
    r = gguf.GGUFReader(f)
    tensors += len(r.tensors)
    keys = {k: v.contents() for k, v in r.fields.items()}
    assert keys["split.no"] == i and keys["split.count"] == len(files), keys
    if i == 0:
        want, first = keys["split.tensors.count"], keys
assert tensors == want, (tensors, want)
assert first["general.base_model.0.repo_url"] == "https://huggingface.co/Org/Austen"
assert first["general.base_model.0.organization"] == "Org" and first["general.quantized_by"] == "me"
assert first["general.tags"][:2] == ["phaseconv", "kv-cache"] and first["general.dataset.count"] == 1
s = json.load(open(sys.argv[1] + "/phaseconv.intoto.json"))
assert s["_type"] == "https://in-toto.io/Statement/v1" and s["predicateType"] == "https://slsa.dev/provenance/v1"
assert all(len(x["digest"]["sha256"]) == 64 for x in s["subject"])
print("card, names, keys and statement are as others read them;", len(files), "GGUF files,", tensors, "tensors")
P
"$python" - "$work" <<'P'
import sys
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
k = ec.generate_private_key(ec.SECP256R1())
open(sys.argv[1] + "/key", "wb").write(k.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
open(sys.argv[1] + "/key.pub", "wb").write(k.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
P
sign=$(dirname "$python")/model_signing
"$sign" sign key "$work/release" --signature "$work/release/model.sig" --private_key "$work/key"
"$sign" verify key "$work/release" --signature "$work/release/model.sig" --public_key "$work/key.pub"
"$work/phaseconv" verify "$work/release" --ctx 128 --chunks 1 2>/dev/null | grep -E 'provenance|no other files'
printf x >>"$work/release/phaseconv.gguf-sidecar"
if "$sign" verify key "$work/release" --signature "$work/release/model.sig" --public_key "$work/key.pub" >/dev/null 2>&1; then
	echo "a changed file passes the signature"
	exit 1
fi
