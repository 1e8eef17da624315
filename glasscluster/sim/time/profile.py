"""A machine as a file: what `Hardware.save` writes and `--hardware FILE` reads.

JSON with the fields of `Hardware`, in SI units. What a field may be is said here once, and pydantic holds a
file to it; what is left out has the default of `Hardware`. Numbers come back as they were, to the last bit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glasscluster.base.errors import InputError
from glasscluster.base.files import read_json, write_text
from glasscluster.base.requests import choices_of, rule_of

Positive = Annotated[float, Field(gt=0)]  # infinite is allowed: a rate that costs nothing
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # strict: a number in quotation marks, or `true`, is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LinkProfile(_Part):
    """A wire: bytes/s and seconds."""

    name: str
    bandwidth: Positive
    latency_s: Seconds
    overhead_s: Seconds = 0.0
    source: str = ""


class GPUProfile(_Part):
    """One accelerator: FLOP/s by precision, bytes, bytes/s."""

    name: str
    peak_flops: dict[str, Positive]
    memory_bytes: Positive
    memory_bandwidth: Positive
    launch_s: Seconds = 0.0
    reduce_rate: Positive = float("inf")
    source: str = ""
    sm: int = Field(0, ge=0)
    nvlinks: int = Field(0, ge=0)


class HostProfile(_Part):
    """A GPU's share of its node's host."""

    link: LinkProfile
    memory_bytes: Positive
    memory_bandwidth: Positive
    source: str = ""


class MachineProfile(_Part):
    """A cluster. `topology` is judged by the network that reads it (network/own.py)."""

    name: str
    gpu: GPUProfile
    intra: LinkProfile
    inter: LinkProfile
    node_size: int = Field(8, ge=1, le=1_000_000)  # times are replayed with 64 bits
    note: str = ""
    nics: int = Field(0, ge=0)
    cpu: str = "intel"
    host: HostProfile | None = None
    bandwidth_scale: Positive = 1.0
    latency_scale: Seconds = 1.0
    topology: dict[str, Any] | None = None


def write(fields: dict[str, Any], path: str | Path) -> None:
    """Write a machine's fields. JSON knows no infinity: 1e999 is read as one everywhere."""
    text = json.dumps(fields, indent=1, allow_nan=True)
    # either a string, which stays as it is, or an infinite number
    text = re.sub(r'("(?:[^"\\]|\\.)*")|Infinity', lambda match: match[1] or "1e999", text)
    write_text(path, text + "\n")


def read(path: Path) -> dict[str, Any]:
    """The fields that a profile file gives, nested as `write` was given them.

    Raises:
        InputError: the file cannot be read, is no JSON, or a field is unknown, missing or out of range. The
        error
            names the field as `gpu.memory_bytes`, its value, the rule, and the nearest field where one is
            unknown.
    """
    try:
        raw = read_json("hardware", path)
        if not isinstance(raw, dict):
            raise InputError("hardware", str(path), "not a hardware profile: must be a JSON object")
        return MachineProfile(**raw).model_dump(exclude_unset=True)
    except ValidationError as problem:
        raise _named(problem, path) from None
    except InputError:
        raise
    except (ValueError, TypeError) as problem:
        raise InputError("hardware", str(path), f"not a hardware profile: {problem}") from None


def _named(problem: ValidationError, path: Path) -> InputError:
    """The first mistake. A word that is no field comes first: it is often what another field misses."""
    errors = sorted(problem.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    where, value = first["loc"], first.get("input")
    choices: list[Any] | None = None
    if first["type"] == "missing":
        value, rule = None, "is missing"
    elif first["type"] == "extra_forbidden":
        value, rule, choices = where[-1], "is no field of a profile", list(_part(where[:-1]).model_fields)
    else:
        rule, choices = rule_of(first), choices_of(first, None)
    field = ".".join(map(str, where))
    return InputError(field, value, f"{rule}; {path.name} is not a hardware profile", choices)


def _part(where: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that stands at a place of the profile."""
    model: type[BaseModel] = MachineProfile
    for name in where:
        annotation = model.model_fields[str(name)].annotation
        types = [annotation, *get_args(annotation)]
        model = next(p for p in types if isinstance(p, type) and issubclass(p, BaseModel))
    return model
