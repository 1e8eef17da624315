"""How a command ends when it cannot go on: one named error, also as JSON, and no traceback."""

from __future__ import annotations

import sys
from typing import Any

import typer

from glasscluster.base.errors import GlassError, InputError, nearest
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
    field = spelled[0].lstrip("-").replace("-", "_")
    value = next((v for o, v in zip(arguments, [*arguments[1:], ""], strict=False) if o in spelled), "")
    value = value or next((a.partition("=")[2] for a in arguments if a.partition("=")[0] in spelled), "")
    if field == "command" and arguments:
        value = arguments[0]
    close = getattr(error, "possibilities", None)
    return InputError(field, value, text.rstrip("."), [nearest(spelled[0], close)] if close else None)
