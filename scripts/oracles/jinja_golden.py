"""Renders templates with transformers, as its apply_chat_template does, for the tests of format/jinja.

    python jinja_golden.py CASES.json    rewrites the cases with what transformers renders
    python jinja_golden.py -             the same from standard input to standard output

A case has a template and vars, and gets "want", or "fails" where transformers raises. Needs
transformers and jinja2; torch is not needed.
"""
import datetime
import json
import sys

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import _compile_jinja_template


class Then(datetime.datetime):
    """The time of the tests of format/jinja, for templates that tell the date."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 4, 5, 6, 7, tzinfo=tz)


chat_template_utils.datetime = Then


def golden(case):
    case.pop("want", None)
    case.pop("fails", None)
    try:
        case["want"] = _compile_jinja_template(case["template"]).render(**case["vars"])
    except Exception:  # whatever it is: the template does not render
        case["fails"] = True
    return case


if __name__ == "__main__":
    path = sys.argv[1]
    text = sys.stdin.read() if path == "-" else open(path, encoding="utf-8").read()
    out = json.dumps([golden(c) for c in json.loads(text)], ensure_ascii=False, indent=1) + "\n"
    sys.stdout.write(out) if path == "-" else open(path, "w", encoding="utf-8").write(out)
