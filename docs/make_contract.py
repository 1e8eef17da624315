"""Write the lists of options in docs/contract.md from the commands: `python docs/make_contract.py`.

Everything else of that page is written by hand; tests/test_contract.py holds it to what the commands do.
With --check nothing is written, and the exit code says whether the lists are up to date.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parent / "contract.md"
BEGIN, END = "<!-- options: made by docs/make_contract.py -->\n", "<!-- end of options -->\n"
FAMILIES = {  # commands that share a list of options -> its heading
    ("plan", "predict", "train"): "Plan: options of `train`, `predict` and `plan`",
    ("evaluate", "generate", "plan", "predict", "serve", "train"): "Model: options of all that make a model",
}


def commands() -> dict[str, Any]:
    """Every command by the words that call it."""
    from glasscluster.commands.app import app

    def inside(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        for word, part in getattr(command, "commands", {}).items():
            yield from inside(part, f"{name} {word}".strip())
        if not hasattr(command, "commands"):
            yield name, command

    return dict(inside(typer.main.get_command(app), ""))


def flags(option: Any) -> str:
    """As typed: `--check/--no-check`."""
    return "/".join([*option.opts, *option.secondary_opts])


def default(option: Any) -> str:
    """What the option is when it is not given, as a person writes it; nothing where its help says so."""
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    if option.secondary_opts and str(shown) in ("True", "False"):
        return "on" if str(shown) == "True" else "off"
    known = shown is not None and shown is not False and str(shown) not in ("", "None")
    return str(shown) if known and "[default" not in text(option) else ""


def text(option: Any) -> str:
    """What it says, without the mark that keeps a bracket a bracket on the screen."""
    return (option.help or "").replace("\\[", "[")


def line(option: Any) -> str:
    """One point of a list: option, default, what it says."""
    if option.param_type_name == "argument":
        words = f"- `{option.name.upper()}`"
    else:
        words = f"- `{flags(option)}`"
        if option.required:
            words += ", required"
        elif shown := default(option):
            words += f", default `{shown}`"
    said = f"{words}: {text(option)}" if option.help else words
    return "\n  ".join(textwrap.wrap(said, 120, break_long_words=False, break_on_hyphens=False))


def lists() -> str:
    """The whole of what stands between the marks: shared options once, then each command's own."""
    every = {name: list(command.params) for name, command in commands().items()}
    users: dict[str, list[str]] = {}
    for name, options in every.items():
        for option in options:
            users.setdefault(line(option), []).append(name)
    shared = {text: tuple(sorted(names)) for text, names in users.items() if tuple(sorted(names)) in FAMILIES}
    out = []
    for names, heading in FAMILIES.items():
        listed = [text for text, owners in shared.items() if owners == names]
        out.append(f"### {heading}\n\n" + "\n".join(listed))
    for name, options in every.items():
        own = [text for o in options if (text := line(o)) not in shared and "--help" not in o.opts]
        more = [h.partition(":")[0] for names, h in FAMILIES.items() if name in names]
        tail = f"\n\nand the options of {' and '.join(more)} above." if more else ""
        out.append(f"### `glass {name}`\n\n" + "\n".join(own) + tail)
    return "\n\n".join(out) + "\n"


def page() -> str:
    """docs/contract.md with fresh lists."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{lists()}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    if "--check" in sys.argv:
        old = PAGE.read_text(encoding="utf-8") != page()
        sys.exit("docs/contract.md is old: python docs/make_contract.py" if old else 0)
    PAGE.write_text(page(), encoding="utf-8")
