"""The lines of code that a lesson shows, cut from the source by name.

    [[code]]
    of = "glasscluster.model.kernels.flash.algorithm:_forward"   # module:name, or module:Class.method
    from = "for q_t"                 # how the first line begins, unique in the object; left out: its first
    to = "meter(\"write\""           # how the last line begins; left out: its last
    caption.en = "The loop over tiles"
    caption.zh = "对各块的循环"

The module `program` is the lesson's own. Nothing is imported: the file is found by the module's name and
read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said

MOST_LINES = 25
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Excerpt:
    """Some lines of a file.

    Args:
        of: what they are of, as `module:name`.
        path: the file, from the folder that holds the package; of a lesson elsewhere, its name alone.
        file: where it is read from.
        first: number of the first line, from 1. last: of the last, which belongs to it.
        caption: what they do.
    """

    of: str
    path: str
    file: Path
    first: int
    last: int
    caption: Said

    @property
    def text(self) -> str:
        """The lines, as far to the left as they go."""
        return dedent(
            "\n".join(self.file.read_text(encoding="utf-8").split("\n")[self.first - 1 : self.last])
        )


def excerpt(
    of: str, folder: Path, caption: Said, begin: str | None = None, end: str | None = None
) -> Excerpt:
    """Cut some lines out of a function or a class.

    Args:
        of: `module:name`, or `module:Class.method`; the module `program` is the file beside the text.toml.
        folder: of the lesson.
        caption: what the lines do.
        begin: how the first line begins; None: the object's first, its decorators included.
        end: how the last line begins; None: the object's last.

    Raises:
        InputError: there is no such module, name or line, a line's beginning is not unique, or the excerpt is
            longer than 25 lines.
    """
    module, _, name = of.partition(":")
    file = file_of(module, folder)
    first, last = _span(file, of, name)
    lines = file.read_text(encoding="utf-8").split("\n")
    inside = range(first, last + 1)
    if begin is not None:
        first = _line("from", begin, lines, inside)
    if end is not None:
        last = _line("to", end, lines, inside)
    if not 0 <= last - first < MOST_LINES:
        raise InputError("code", of, f"shows {last - first + 1} lines; between 1 and {MOST_LINES} are shown")
    home = PACKAGE.parent
    path = file.relative_to(home).as_posix() if file.is_relative_to(home) else file.name
    return Excerpt(of, path, file, first, last, caption)


def file_of(module: str, folder: Path) -> Path:
    """The file of a module of the package, or of the lesson's own program."""
    if module == "program":
        return folder / "program.py"
    parts = PACKAGE.parent.joinpath(*module.split("."))
    for file in (parts.with_suffix(".py"), parts / "__init__.py"):
        if file.is_file() and file.is_relative_to(PACKAGE):
            return file
    raise InputError("code.of", module, "is no module of the package, nor `program`")


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _span(file: Path, of: str, name: str) -> tuple[int, int]:
    """First and last line of a function or a class, decorators included."""
    here: Any = _tree(file)
    for part in name.split("."):
        inside = {node.name: node for node in _definitions(here)}
        if part not in inside:
            raise InputError(
                "code.of", of, f"there is no function or class {part} in {file.name}", list(inside)
            )
        here = inside[part]
    return min(node.lineno for node in (here, *here.decorator_list)), here.end_lineno


def _definitions(node: ast.AST) -> Iterator[Any]:
    """Functions and classes that stand directly in a body, or inside its branches."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child
        elif isinstance(child, ast.stmt):
            yield from _definitions(child)


def _line(field: str, begins: str, lines: list[str], inside: range) -> int:
    hits = [number for number in inside if lines[number - 1].strip().startswith(begins)]
    if len(hits) != 1:
        choices = [lines[number - 1].strip() for number in inside]
        raise InputError(f"code.{field}", begins, f"must begin one line, and begins {len(hits)}", choices)
    return hits[0]
