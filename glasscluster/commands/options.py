"""Options, made from the fields of a request: names, types, defaults, help, and the panel they stand in.

A command is a function of a request. `command` gives it one option for every field, and `--request FILE`
that holds the same names as JSON; what stands on the command line wins. The request itself judges all
values.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, BinaryIO, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json, read_json_of
from glasscluster.base.quantities import SIZES
from glasscluster.base.requests import Request, build

FIRST = "Options"  # the panel that typer shows first
FILE = "a JSON file of these names, or - for standard input; options given here win"
JSON = "one JSON object on standard output, nothing else there"
CONTEXT = "typer_context"  # a parameter of every command: where typer says which options were given
GIVEN = ("COMMANDLINE", "ENVIRONMENT")  # sources of a value that somebody gave


def kind_of(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a field without `| None`, and what is annotated to it."""
    annotation, notes = field.annotation, list(field.metadata)
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(k for k in get_args(annotation) if k is not type(None))
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        notes += more
    return annotation, notes


def written_size(value: int) -> str:
    """Bytes in the largest unit that they are whole in: 25MiB."""
    unit = next(u for u in ("GiB", "MiB", "KiB", "B") if value % SIZES[u] == 0)
    return f"{value // SIZES[unit]}{unit}"


def shown(text: str) -> str:
    """A text for help, in which a bracket is a bracket and no mark-up."""
    return text.replace("[", "\\[")


def panel_of(name: str, owner: type[BaseModel], request: type[Request]) -> str:
    """The heading an option stands under: the part that owns it, or that of a model it belongs to."""
    if name in (request.first or ()) or (request.first is None and issubclass(owner, Request)):
        return FIRST
    for group, names in getattr(owner, "groups", {}).items():
        if name in names:
            return f"Model: {group}"
    return str(owner.model_config.get("title", FIRST))


def parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """A typer option, or argument, of one field. It is read here, and judged by the request."""
    kind, notes = kind_of(field)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    choices: Any = get_args(kind) if get_origin(kind) is Literal else extra.get("choices", ())
    as_text = any(isinstance(note, BeforeValidator) for note in notes)  # written with a unit, or with commas
    written: Any = str if as_text else type(choices[0]) if choices else kind
    default: Any = inspect.Parameter.empty if field.is_required() else field.default
    if as_text and isinstance(default, int):
        default = written_size(default)
    text = field.description or ""
    if choices:
        text += f" [{' | '.join(map(str, choices))}]"
    text = shown(text)
    if extra.get("argument"):
        made: Any = typer.Argument(help=text)
    else:
        flag = "--" + name.replace("_", "-")
        if kind is bool and not extra.get("one_way"):
            flag += f"/--{extra.get('off') or 'no-' + name.replace('_', '-')}"
        made = typer.Option(flag, help=text, rich_help_panel=panel)
    if default is None or default == []:
        written, default = written | None, None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[written, made],
    )


# ---- commands ----------------------------------------------------------------------------------------
def parameters(request: type[Request]) -> list[inspect.Parameter]:
    """What a command of this request takes: what is shown first, then each part's; --request and --json."""
    options = {}
    for name, field, owner in request.options():
        options[name] = parameter(name, field, panel_of(name, owner, request))
    order = [*(request.first or ()), *(name for name in options if name not in (request.first or ()))]
    file = typer.Option("--request", help=FILE, metavar="FILE", is_eager=True, callback=take_file)
    extra = {"request": Annotated[str | None, file]} if options else {}
    extra["json"] = Annotated[bool, typer.Option("--json", help=JSON)]
    made = [options[name] for name in order]
    for name, annotation in extra.items():
        default = False if name == "json" else None
        more = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        made.append(more)
    place = inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    return [place, *made]


def take_file(context: typer.Context, path: str | None) -> str | None:
    """Read --request before anything else: what it holds need not stand on the command line."""
    if path is None:
        return None
    from_stdin = path == "-"
    values = read_json_of("request", "-", _stdin()) if from_stdin else read_json("request", path)
    if not isinstance(values, dict):
        raise InputError("request", path, "must be a JSON object: names and values of options")
    values = {name.replace("-", "_"): value for name, value in values.items() if value is not None}
    context.meta["request"] = values
    needed = [p.name for p in context.command.params if p.required and p.name in values]
    context.default_map = {str(name): values[name] for name in needed}
    return path


def _stdin() -> BinaryIO:
    """Standard input as bytes, whose encoding no terminal has guessed."""
    return getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())


def given_in(context: typer.Context) -> dict[str, Any]:
    """The options that somebody gave, in a file or on the command line, which wins."""
    typed = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name not in ("request", "json") and source is not None and source.name in GIVEN:
            typed[name] = value
    return {**context.meta.get("request", {}), **typed}


def command(request: type[Request]) -> Callable[[Callable[[Any, bool], int]], Callable[..., int]]:
    """Make a function of a request and of "as JSON?" a command with an option for every field."""

    def with_options(function: Callable[[Any, bool], int]) -> Callable[..., int]:
        def called(**values: Any) -> int:
            return function(build(request, given_in(values[CONTEXT])), values["json"])

        return dressed(called, parameters(request), function)

    return with_options


def dressed(
    function: Callable[..., int],
    takes: list[inspect.Parameter],
    like: Callable[..., Any],
) -> Callable[..., int]:
    """Give a function a signature, and the name and the text of another."""
    function.__name__, function.__doc__ = like.__name__, like.__doc__
    function.__signature__ = inspect.Signature(takes)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in takes}
    return function
