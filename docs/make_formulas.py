"""Write docs/formulas.md from glasscluster/base/formulas.toml: `python docs/make_formulas.py`.

With --check nothing is written, and the exit code says whether the page is up to date.
"""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "glasscluster" / "base" / "formulas.toml", ROOT / "docs" / "formulas.md"

HEAD = """# Formulas

<!-- Made by docs/make_formulas.py of glasscluster/base/formulas.toml: edit that file, not this one. -->

The code, its ledger rows and the lessons cite these as *Eq 1* to *Eq 42*. "Eq" with a capital and a number
is always one of them; "equation 3" of some paper is that paper's own. Lessons are called by a letter and a
number: F1, F3, F4 and F5 are lessons, not formulas.

**Match** says how closely a formula is held against a run. *exact*: integers or bits equal the run's
counters. *virtual*: equal in virtual time to 1e-9, under the assumptions of its domain. *statistical*:
within a tolerance that its row states. Outside its domain a formula claims nothing.

Units: GB is 1e9 bytes and GiB is 2³⁰; "an all-reduce of Ψ" counts elements, so the width of an element
decides the bytes. Two bubbles must not be mixed: (p−1)/(m+p−1) of the whole makespan, and (p−1)/m over the
ideal time.

Where an entry has a line "Tested" (with the function's module), `tests/test_formulas.py` evaluates both sides
on a few numbers.

| Eq | what | match |
|---|---|---|
"""


def read() -> list[dict[str, Any]]:
    """Every formula, in the order of the file."""
    return tomllib.loads(DATA.read_text(encoding="utf-8"))["formula"]


def item(name: str, text: str) -> str:
    """A point of a list, wrapped at 120; what stands in backquotes stays on one line."""
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    words = textwrap.wrap(f"- **{name}**: {text}", 120, break_long_words=False, break_on_hyphens=False)
    return "\n  ".join(words).replace("\0", " ")


def entry(formula: dict[str, Any]) -> str:
    """A formula's section: text, symbols, domain, source, where it is computed, what is tested."""
    number = formula["number"]
    lines = [f"## Eq {number}", "", f"**{formula['name']}**", ""]
    lines += ["> " + "  \n> ".join(formula["text"]), "", item("Match", formula["match"])]
    if formula["symbols"]:
        named = (s.partition(": ") for s in formula["symbols"])
        lines.append(item("Symbols", "; ".join(f"*{name}* {meaning}" for name, _, meaning in named)))
    lines += [item("Domain", formula["domain"]), item("Source", formula["source"])]
    where = ", ".join(f"`{f}`" for f in formula["computed"]) or formula["not_yet"]
    lines.append(item("Computed in", where))
    for example in formula.get("example", []):
        module = example["function"].partition(":")[0].rpartition(".")[2]
        lines.append(item(f"Tested, {module}", f"`{example['call']}` equals `{example['formula']}`"))
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole of docs/formulas.md."""
    found = read()
    rows = "".join(f"| [{f['number']}](#eq-{f['number']}) | {f['name']} | {f['match']} |\n" for f in found)
    return HEAD + rows + "\n" + "\n".join(entry(f) for f in found)


if __name__ == "__main__":
    if "--check" in sys.argv:
        old = PAGE.read_text(encoding="utf-8") != page()
        sys.exit("docs/formulas.md is old: python docs/make_formulas.py" if old else 0)
    PAGE.write_text(page(), encoding="utf-8")
