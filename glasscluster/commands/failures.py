"""How a command ends when it cannot go on: one named error, also as JSON, and no traceback."""

from __future__ import annotations

import re
import sys
from typing import Any

import typer
from pydantic import ValidationError

from glasscluster.base.errors import GlassError, InputError, nearest
from glasscluster.base.requests import rule_of
from glasscluster.commands.console import emit, is_leader

# typer brings click along, or has it within
UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
Aborts: Any = (typer.Abort, KeyboardInterrupt)  # typer makes the first of the second


def fail(error: Any, arguments: list[str]) -> int:
    """Name the error on standard error (and as JSON on standard output when asked); the exit code."""
    named = error if isinstance(error, GlassError) else usage(error, arguments)
    content, code = named.as_dict(), named.exit_code
    if not content["message"] or content.get("rule") == "":  # `glass` alone: its help was the answer
        return code
    if "--json" in arguments:
        emit({"schema": "glass.error/1", **content, "exit_code": code})
    if is_leader() or code == 3:
        print(f"{content['error']}: {content['message']}", file=sys.stderr, flush=True)
    return code


def usage(error: Any, arguments: list[str]) -> InputError:
    """What the option parser found, in our words: field, value, rule, nearest."""
    text = str(getattr(error, "message", "") or error)
    parameter = getattr(error, "param", None)
    spelled = list(getattr(parameter, "opts", None) or [getattr(error, "option_name", None) or "command"])
    field, value = named(spelled[0]), value_of(spelled, arguments)
    if field == "command" and arguments:
        value = arguments[0]
    close = getattr(error, "possibilities", None)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):  # typer's types are judged by pydantic
        text = rule_of(cause.errors()[0])
    elif value == "" and "requires an argument" in text:
        text = "needs a value"
    text = _PREAMBLE.sub("", text).rstrip(".")
    return InputError(field, value, text, [nearest(spelled[0], close)] if close else None)


_PREAMBLE = re.compile(r"^Invalid value for [^:]*: ")  # the field and its value are said already


def named(option: str) -> str:
    """The field of an option: `micro_batch` of `--micro-batch`."""
    return option.lstrip("-").replace("-", "_")


def value_of(spelled: list[str], arguments: list[str]) -> str:
    """What stands behind an option on the command line, after a space or an `=`; empty where nothing does."""
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        option, equals, value = word.partition("=")
        if option in spelled:
            return value if equals else "" if following.startswith("--") else following
    return ""
