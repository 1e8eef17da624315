"""Options that several commands have: those of any run, and those made from the fields of a plan and a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from glasscluster.model.config import ModelConfig
from glasscluster.strategies.plan import Plan

Hardware = Annotated[str, typer.Option(help="virtual clock: a name from `glass list`, or a profile file")]
Device = Annotated[str, typer.Option(help="cpu | cuda")]
Seed = Annotated[int, typer.Option(help="of weights, data and thread order")]
Preset = Annotated[str, typer.Option(help="preset: a name from `glass list`")]
Weights = Annotated[str | None, typer.Option(help="folder in Hugging Face's layout [default: random weights]")]
TensorParallel = Annotated[int, typer.Option(min=1, help="tensor-parallel GPUs")]
Precision = Annotated[str, typer.Option(help="fp64 | fp32 | bf16 | fp16")]
AlsoDry = Annotated[str, typer.Option(help="threads | ray | torchrun | dry (shapes only, at any scale)")]

SIZES = {"bucket": "25MiB", "first_bucket": "1MiB"}  # fields of Plan that are sizes, and how their defaults are written


# ---- options made from pydantic fields ---------------------------------------------------------------------------
def _parameter(name: str, cls: type[Plan] | type[ModelConfig]) -> inspect.Parameter:
    """A typer option for one field: words stay words here, pydantic judges them and names the nearest."""
    field = cls.model_fields[name]
    inside = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    kind: Any = next(k for k in inside if k is not type(None))
    flag = "--" + name.replace("_", "-")
    choices: Any = get_args(kind) if get_origin(kind) is Literal else ()
    written: Any = kind if kind in (int, float, bool) else type(choices[0]) if choices else str
    extra = field.json_schema_extra
    choices = choices or (extra.get("choices", ()) if isinstance(extra, dict) else ())  # of a registry
    if name in SIZES:
        written = str
    if kind is bool:
        flag += "/--untied" if name == "tied" else f"/--no-{name.replace('_', '-')}"
    default = SIZES.get(name, field.default)
    shown = f" [{' | '.join(map(str, choices))}]" if choices else ""
    where = "Plan" if cls is Plan else "Model"
    option = typer.Option(flag, help=f"{field.description}{shown}", show_default=str(default), rich_help_panel=where)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[written | None, option])


def planned(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of Plan and ModelConfig; it receives those that were given as `given`."""
    return _with_fields(command, (Plan, ModelConfig))


def shaped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of ModelConfig."""
    return _with_fields(command, (ModelConfig,))


def _with_fields(command: Callable[..., Any], classes: tuple[type[Plan] | type[ModelConfig], ...]) -> Callable[..., Any]:
    made = [_parameter(name, cls) for cls in classes for name in cls.model_fields]
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    names = {p.name for p in made}

    def wrapper(**values: Any) -> Any:
        given = {k: v for k, v in values.items() if k in names and v is not None}
        return command(given=given, **{k: v for k, v in values.items() if k not in names})

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *made]}
    return wrapper
