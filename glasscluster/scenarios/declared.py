"""What a scenario's file says of it, read without running it: its options, its title, its story.

So `glass run E4 --help`, and a wrong option, are answered at once: importing the program would import torch.
But: only what is written out in the file is understood, as `gpus: int = 4`. Where anything else stands there,
`declared` returns None and the file is imported.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import is_file, read_text
from glasscluster.base.text import Said
from glasscluster.scenarios.built_in import TITLES
from glasscluster.scenarios.find_scenario import MODULES
from glasscluster.scenarios.lesson import LESSONS, read_lesson

PACKAGE = Path(__file__).resolve().parent.parent
KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


class NotWrittenOut(Exception):
    """The file says it in a way that is only understood by running it."""


@dataclass(frozen=True)
class Declared:
    """A scenario by what its file says: as `Scenario`, without the function."""

    name: str
    title: Said
    story: str
    options: dict[str, inspect.Parameter]


def declared(name: str) -> Declared | None:
    """What the file of a scenario says; None where there is no such file, or it must be run to be understood.

    Args:
        name: what `glass run` is given: a name, a lesson's id, a file, a folder.
    """
    path = file_of(name)
    if path is None or not is_file(path):
        return None
    try:
        tree = ast.parse(read_text("scenario", path))
        marked = [d for node in tree.body if (d := _decorated(node)) is not None]
        if len(marked) != 1:
            return None
        function, decorator = marked[0]
        if _called(decorator) == "lesson":
            lesson = read_lesson(path.resolve().parent)
            known, title = lesson.id, lesson.title
        else:
            known, title = _named(decorator)
        return Declared(known, title, ast.get_docstring(function) or "", _options(function, tree))
    except (NotWrittenOut, SyntaxError, ValueError, InputError):
        return None


def file_of(name: str) -> Path | None:
    """The file that holds a scenario; None for an unknown name."""
    if name.endswith(".py"):
        return Path(name)
    if is_file(Path(name) / "program.py"):
        return Path(name) / "program.py"
    if name.upper() in LESSONS:
        return LESSONS[name.upper()] / "program.py"
    if name in MODULES:
        return PACKAGE.joinpath(*MODULES[name].split(".")[1:]).with_suffix(".py")
    return None


def _decorated(node: ast.stmt) -> tuple[ast.FunctionDef, ast.expr] | None:
    """A function with its `@scenario` or `@lesson`; None for anything else."""
    if isinstance(node, ast.FunctionDef):
        for decorator in node.decorator_list:
            if _called(decorator) in ("scenario", "lesson"):
                return node, decorator
    return None


def _called(decorator: ast.expr) -> str:
    """The last part of a decorator's name."""
    made = decorator.func if isinstance(decorator, ast.Call) else decorator
    return made.attr if isinstance(made, ast.Attribute) else made.id if isinstance(made, ast.Name) else ""


def _named(decorator: ast.expr) -> tuple[str, Said]:
    """Name and title of `@scenario("name", title=(en, zh))`."""
    if not isinstance(decorator, ast.Call) or not decorator.args:
        raise NotWrittenOut
    name = ast.literal_eval(decorator.args[0])
    titles = [word.value for word in decorator.keywords if word.arg == "title"]
    title: Any = ast.literal_eval(titles[0]) if titles else name
    if isinstance(title, str):
        return name, TITLES.get(name, Said(title, title))
    return name, Said(*title)


def _options(function: ast.FunctionDef, tree: ast.Module) -> dict[str, inspect.Parameter]:
    """The function's parameters without the lab: name -> kind and default."""
    constants = _constants(tree)
    given = function.args
    if given.vararg or given.kwarg or given.posonlyargs:
        raise NotWrittenOut
    positional = given.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + [*given.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    options = {}
    for argument, default in pairs[1:]:
        value: Any = inspect.Parameter.empty
        if default is not None:
            written: ast.expr | None = default
            if isinstance(default, ast.Name):
                written = constants.get(default.id) or _imported(default.id, tree)
            value = ast.literal_eval(written) if written is not None else _refuse()
        kind = inspect.Parameter.empty if argument.annotation is None else _kind(argument.annotation)
        options[argument.arg] = inspect.Parameter(
            argument.arg, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind
        )
    return options


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What a file assigns to single names, outside its functions."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    }


def _imported(name: str, tree: ast.Module) -> ast.expr | None:
    """A constant that a file imports from another file of this package."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            parts = (node.module or "").split(".")
            file = PACKAGE.joinpath(*parts[1:]).with_suffix(".py")
            if parts[0] == PACKAGE.name and is_file(file):
                return _constants(ast.parse(read_text("scenario", file))).get(name)
    return None


def _kind(annotation: ast.expr) -> Any:
    """int, float, str, bool, or one of them or None."""
    if isinstance(annotation, ast.Name) and annotation.id in KINDS:
        return KINDS[annotation.id]
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _kind(annotation.left) | _kind(annotation.right)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None
    return _refuse()


def _refuse() -> Any:
    raise NotWrittenOut
