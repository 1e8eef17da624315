"""Requests: what somebody asks for, by names and values, as one checked object; a mistake is an InputError.

A request is flat outside and made of parts inside: `Request` takes `dp` and `layers` side by side and makes
a plan and a model of them. Commands make their options, their JSON and their errors from these fields
(glasscluster/commands).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

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
from glasscluster.base.limits import check_numbers
from glasscluster.base.quantities import parse_size, parse_time
from glasscluster.base.valid_choice import advised

T = TypeVar("T")


class Options(BaseModel):
    """Fields that are options: no others are taken, none changes, and every number is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def build(cls: type[BaseModel], values: dict[str, Any]) -> Any:
    """A pydantic object of these values.

    Raises:
        InputError: of the first bad field: its name, its value, the rule, the nearest valid choice.
    """
    return advised(lambda given: _build(cls, given), values)


def _build(cls: type[BaseModel], values: dict[str, Any]) -> Any:
    check_numbers(values)
    values = _whole(cls, values)
    try:
        return cls(**values)
    except ValidationError as problem:
        first = problem.errors()[0]
        said = first.get("ctx", {}).get("error")
        if isinstance(said, InputError):  # a part of it, or a size, has judged already
            raise said from None
        field = ".".join(map(str, first["loc"])) or "options"
        if first["type"] == "extra_forbidden":
            names = list(cls.model_fields)
            raise InputError(field, first.get("input"), "unknown option", names, by_name=True) from None
        info = cls.model_fields.get(field)
        raise InputError(field, first.get("input"), rule_of(first), choices_of(first, info)) from None


def _whole(cls: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The values, with whole numbers where fields are such: "2" and 2.0 of a stranger's JSON are 2 before
    any default is made from them, and a truth value is no number (to pydantic, true is 1).
    """
    if cls.model_config.get("strict"):
        return values  # pydantic takes nothing but whole numbers there
    given = dict(values)
    for name, info in cls.model_fields.items():
        value = given.get(name)
        if info.annotation not in (int, int | None):
            continue
        if isinstance(value, bool):
            raise InputError(name, value, "must be a whole number")
        if (isinstance(value, float) and value.is_integer()) or (
            isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value)
        ):
            given[name] = int(value)
    return given


RULES = {  # pydantic's kinds of mistake, in our words
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object of names and values",
    "model_type": "must be an object of names and values",
    "missing": "is missing",
    "literal_error": "must be {expected}",
}


def rule_of(mistake: Mapping[str, Any]) -> str:
    """The rule that a mistake which pydantic found breaks (an entry of `ValidationError.errors()`)."""
    kind, details = str(mistake["type"]), mistake.get("ctx", {})
    if kind not in RULES:
        return str(mistake["msg"]).removeprefix("Value error, ")
    written = {name: f"{limit:g}" for name, limit in details.items() if isinstance(limit, (int, float))}
    return RULES[kind].format(expected=str(details.get("expected")).replace("'", ""), **written)


def choices_of(mistake: Mapping[str, Any], field: FieldInfo | None) -> list[Any] | None:
    """Values that would be right in the place of a mistake; None where there is nothing to choose from.

    A limit that is itself allowed is the nearest. There is no nearest to one that is not: then it is the next
    whole number, or the default of a number that need not be whole.
    """
    kind, limits, value = str(mistake["type"]), mistake.get("ctx", {}), mistake.get("input")
    default = [] if field is None or field.default is None or field.is_required() else [field.default]
    if kind == "literal_error":
        return list(_literals(field)) or None
    if kind in ("greater_than_equal", "less_than_equal"):
        return [limits["ge"] if "ge" in limits else limits["le"], *default]
    whole = field is not None and int in (field.annotation, *get_args(field.annotation))
    if kind in ("greater_than", "less_than") and whole:
        return [limits["gt"] + 1 if "gt" in limits else limits["lt"] - 1, *default]
    if kind == "int_from_float":
        least = [note.ge for note in field.metadata if hasattr(note, "ge")] if field is not None else []
        return [math.floor(value), math.ceil(value), *least, *default]  # type: ignore[arg-type]
    return default if kind in ("greater_than", "less_than", "finite_number") else None


def _literals(field: FieldInfo | None) -> tuple[Any, ...]:
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


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


class Request(Options):
    """What somebody asks for. Fields with a description are its options; the others are made from them.

    parts: classes whose fields are options, too; `compose` makes their objects.
    first: options that help shows first; None: all of the request's own.
    called: fields of refusals that are an option by another name: field -> option.
    """

    model_config = ConfigDict(defer_build=True)
    parts: ClassVar[tuple[type[BaseModel], ...]] = ()
    first: ClassVar[tuple[str, ...] | None] = None
    called: ClassVar[Mapping[str, str]] = {}

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

    def prepared(self, prepare: Callable[[Self], T]) -> T:
        """What a command's `prepare` makes of this request before anything runs.

        Where it refuses a value, the choice that it names is one that the whole of it and the request's own
        rules allow.

        Raises:
            InputError: of `prepare`.
        """

        def judge(given: dict[str, Any]) -> T:
            return prepare(type(self).of(**{self.called.get(name, name): v for name, v in given.items()}))

        return advised(judge, self.given)

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
