"""Requests: what somebody asks for, by names and values, as one checked object; a mistake is an InputError.

A request is flat outside and made of parts inside: `Request` takes `dp` and `layers` side by side and makes
a plan and a model of them. Commands make their options, their JSON and their errors from these fields
(glasscluster/commands).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from glasscluster.base.errors import InputError
from glasscluster.base.quantities import parse_size, parse_time


def build(cls: type[BaseModel], values: dict[str, Any]) -> Any:
    """A pydantic object of these values.

    Raises:
        InputError: of the first bad field: its name, its value, the rule, the nearest valid choice.
    """
    try:
        return cls(**values)
    except ValidationError as problem:
        first = problem.errors()[0]
        said = first.get("ctx", {}).get("error")
        if isinstance(said, InputError):  # a part of it, or a size, has judged already
            raise said from None
        message = str(first["msg"])
        if "|" in message:  # a rule of several fields: field|value|rule|nearest
            field, value, rule, near = message.removeprefix("Value error, ").split("|")
            raise InputError(field, value, rule, [near]) from None
        field = ".".join(map(str, first["loc"])) or "options"
        choices: Sequence[Any] | None = None
        if first["type"] == "literal_error":
            choices = get_args(cls.model_fields[field].annotation)
        elif first["type"] == "extra_forbidden":
            names = list(cls.model_fields)
            raise InputError(field, first.get("input"), "unknown option", names, by_name=True) from None
        elif "_than" in first["type"]:
            limits = first.get("ctx", {})
            choices = [limits[k] for k in ("ge", "gt", "le", "lt") if k in limits]
        raise InputError(field, first.get("input"), message, choices) from None


# ---- values that are written with a unit, or with commas ---------------------------------------------
def _size(value: Any, info: ValidationInfo) -> Any:
    return parse_size(str(info.field_name), value) if isinstance(value, str) else value


def _seconds(value: Any, info: ValidationInfo) -> Any:
    return parse_time(str(info.field_name), value) if isinstance(value, str) else value


def _numbers(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, (str, int)):
        return value
    try:
        return tuple(int(n) for n in str(value).split(","))  # one number may come without a comma
    except ValueError:
        rule = "must be whole numbers with commas between, as 1,1,1,1"
        raise InputError(str(info.field_name), value, rule) from None


Size = Annotated[int, BeforeValidator(_size)]  # bytes, or a text such as 25MiB
Seconds = Annotated[float, BeforeValidator(_seconds)]  # seconds, or a text such as 30s
Numbers = Annotated[tuple[int, ...], BeforeValidator(_numbers)]  # whole numbers, or a text such as 2,3,3,2


# ---- fields that are more than an option with a value -------------------------------------------------
def argument(description: str, default: Any = ...) -> Any:
    """A field that is given by its place, without its name."""
    return Field(default, description=description, json_schema_extra={"argument": True})


def choice(default: str, description: str, names: Sequence[str]) -> Any:
    """A field with a name out of a registry. Help shows the names; who uses the registry judges."""
    return Field(default, description=description, json_schema_extra={"choices": list(names)})


def switch(description: str) -> Any:
    """A field that is off, and on where its name is given; there is no `--no-…`."""
    return Field(False, description=description, json_schema_extra={"one_way": True})


class Request(BaseModel):
    """What somebody asks for. Fields with a description are its options; the others are made from them.

    parts: classes whose fields are options, too; `compose` makes their objects.
    first: options that help shows first; None: all of the request's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    parts: ClassVar[tuple[type[BaseModel], ...]] = ()
    first: ClassVar[tuple[str, ...] | None] = None

    # the options that were given, by name
    given: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """A request from options by name.

        Raises:
            InputError: for the first name or value that cannot be.
        """
        return build(cls, values)

    @classmethod
    def options(cls) -> Iterator[tuple[str, FieldInfo, type[BaseModel]]]:
        """Name, field and declaring class of every option: its own first, then those of its parts."""
        for source in (cls, *cls.parts):
            owners = [(_owner(source, name), name, field) for name, field in source.model_fields.items()]
            for owner in source.__mro__ if source is cls else (None,):
                for declared, name, field in owners:
                    if field.description is not None and owner in (declared, None):
                        yield field.alias or name, field, declared

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [name for name, _, _ in cls.options()]

    @classmethod
    def compose(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The fields that are made from several options: name -> object."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        names = cls.names()
        for name, value in values.items():
            if name not in names:
                raise InputError(name, value, "unknown option", names, by_name=True)
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        own = {name: value for name, value in values.items() if name in fields}
        return {**own, **cls.compose(values), "given": dict(values)}


def _owner(cls: type[BaseModel], name: str) -> type[BaseModel]:
    """The class in whose body a field stands."""
    return next(c for c in cls.__mro__ if name in get_annotations(c))


def taken(cls: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the given options that are fields of a class."""
    return {name: value for name, value in given.items() if name in cls.model_fields}
