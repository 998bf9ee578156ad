"""card.py README.md...: checks the front matter of model cards with what huggingface_hub has without the
network, and against the hub's documented keys (huggingface.co/docs/hub/model-cards, read in November 2026).

The hub's own validator is a service, and checks more: that the licence is one it lists, and that models and
data sets of that name exist."""
import os
import re
import sys

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

TEXT, LIST, EITHER = (str,), (list,), (str, list)
KEYS = {
    "language": EITHER, "license": EITHER, "license_name": TEXT, "license_link": TEXT, "library_name": TEXT,
    "tags": LIST, "datasets": EITHER, "metrics": LIST, "base_model": EITHER, "base_model_relation": TEXT,
    "pipeline_tag": TEXT, "model-index": LIST, "quantized_by": TEXT, "inference": (bool, str), "thumbnail": TEXT,
}
RELATIONS = ("finetune", "adapter", "merge", "quantized")
# The documented list of licences, as the program has it.
LICENSE_GO = os.path.join(os.path.dirname(__file__), "..", "..", "verify", "report", "license.go")
LICENSES = re.search(r"hubLicenses = strings.Fields\(`(.*?)`\)", open(LICENSE_GO, encoding="utf-8").read(), re.S).group(1).split()


def listed(value):
    return value if isinstance(value, list) else [value]


def check(text):
    """Raises ValueError with the key that is wrong."""
    _, front, _ = text.split("---\n", 2)
    raw = yaml.safe_load(front)  # as the hub does; the class below takes more
    for key, value in raw.items():
        if key not in KEYS:
            raise ValueError(f"{key}: not a key that the hub documents")
        if not isinstance(value, KEYS[key]) or any(not isinstance(x, (str, dict)) for x in listed(value) if x is not value):
            raise ValueError(f"{key}: {value!r} is of another type")
    for model in listed(raw.get("base_model", [])) + listed(raw.get("datasets", [])):
        validate_repo_id(model)
    for license in listed(raw.get("license", [])):
        if license not in LICENSES:
            raise ValueError(f"license: {license} is not in the hub's list")
    for language in listed(raw.get("language", [])):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual", language):
            raise ValueError(f"language: {language} is no code of ISO 639")
    for tag in raw.get("tags", []):
        if not tag or tag != tag.strip() or "\n" in tag:
            raise ValueError(f"tags: {tag!r}")
    if raw.get("pipeline_tag", "text-generation") != "text-generation":
        raise ValueError(f"pipeline_tag: {raw['pipeline_tag']} for a language model")
    if raw.get("base_model_relation", "quantized") not in RELATIONS:
        raise ValueError(f"base_model_relation: {raw['base_model_relation']}")
    if ("license_name" in raw) != (raw.get("license") == "other") or ("license_link" in raw and "license_name" not in raw):
        raise ValueError("license: other and license_name, and license_link with them, go together")
    if "model-index" in raw:
        model_index_to_eval_results(raw["model-index"])  # raises where it cannot be read
    data = ModelCard(text, ignore_metadata_errors=False).data
    if data.to_dict() != ModelCardData(**{k: v for k, v in raw.items() if k != "model-index"}, ignore_metadata_errors=False).to_dict():
        raise ValueError("huggingface_hub reads something else")


GOOD = "---\nlicense: other\nlicense_name: mine\nbase_model: Org/Name\nbase_model_relation: quantized\ntags:\n- a\n---\n# x\n"
check(GOOD)
for old, new in [("Org/Name", "a/b/c"), ("quantized", "copied"), ("license: other", "license: mit"), ("- a", "- 1"),
                 ("tags", "labels"), ("license_name: mine\n", ""), ("tags:\n- a", "tags: a"), ("license: other\nlicense_name: mine", "license: my-own"),
                 ("tags:", "language: English\ntags:"), ("tags:", "datasets: wikitext/a/b\ntags:"), ("tags:", "pipeline_tag: chat\ntags:"),
                 ("tags:", "model-index:\n- name: x\n  results: 3\ntags:")]:
    try:
        check(GOOD.replace(old, new))
    except (ValueError, KeyError, TypeError):  # the last two by huggingface_hub, of a model-index
        continue
    sys.exit(f"{new} for {old} passes")
for path in sys.argv[1:]:
    check(open(path, encoding="utf-8").read())
    print("the front matter of", path.rsplit("/", 1)[-1], "is as huggingface_hub and the hub's documentation have it")
