"""How a command ends when it cannot go on: one named error, also as JSON, and no traceback.

What nobody foresaw is a fault of ours (`fault`): one line says so, and names the file with the traceback.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from typing import Any

import typer
from pydantic import ValidationError

from glasscluster.base.errors import GlassError, InputError, nearest
from glasscluster.base.requests import rule_of
from glasscluster.base.text import shown
from glasscluster.commands.console import emit, is_leader

# typer brings click along, or has it within
UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
Aborts: Any = (typer.Abort, KeyboardInterrupt)  # typer makes the first of the second
LONGEST_MESSAGE = 1800  # characters on standard error
# Another rank that ended first would have torchrun end rank 0 before it has said what is wrong.
RANK_0_SPEAKS_S = 3.0
# of a disk, not of ours: it is full, or may only be read, or nobody reads what is written
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPIPE, errno.EIO)


def fail(error: Any, arguments: list[str]) -> int:
    """Name the error on standard error (and as JSON on standard output when asked); the exit code."""
    named = error if isinstance(error, GlassError) else usage(error, arguments)
    content, code = named.as_dict(), named.exit_code
    if not content["message"] or content.get("rule") == "":  # `glass` alone: its help was the answer
        return code
    if "--json" in arguments:
        emit({"schema": "glass.error/1", **content, "exit_code": code})
    said = shown(f"{content['error']}: {content['message']}", LONGEST_MESSAGE)
    if not is_leader() and code != 3:
        # rank 0 mostly fails of the same: it says so, and its agent ends this process
        time.sleep(RANK_0_SPEAKS_S)
        said = f"rank {os.environ['RANK']}: {said}"
    print(said, file=sys.stderr, flush=True)
    return code


def fault(problem: BaseException, arguments: list[str]) -> int:
    """The end for what nobody foresaw: one line, the traceback in a file, exit code 3.

    A disk that refuses to be written to is no fault of ours: it ends as bad input, by name.
    """
    if isinstance(problem, OSError) and problem.errno in OF_THE_DISK:
        name = shown(problem.filename or "standard output")
        if problem.filename is None:  # what is left in the buffer would fail again as Python ends
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return fail(InputError("out", name, f"cannot be written: {problem.strerror}"), [])
    last = traceback.extract_tb(problem.__traceback__)[-1:]
    place = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    said = shown(_said(problem), LONGEST_MESSAGE - 600)
    message = f"a fault of ours: {type(problem).__name__}: {said}{place}"
    try:
        number, name = tempfile.mkstemp(prefix="glass-fault-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"glass {' '.join(map(ascii, arguments))}\n")
            traceback.print_exception(problem, file=file)
        message += f"; the traceback is in {name}"
    except Exception:  # a full disk must not hide the fault
        message += "; its traceback could not be kept"
    if "--json" in arguments:
        with suppress(OSError):
            emit({"schema": "glass.error/1", "error": "Fault", "message": message, "exit_code": 3})
    print(message, file=sys.stderr, flush=True)
    return 3


def _said(problem: BaseException) -> str:
    """What an exception says in one line; its own `__str__` may raise."""
    try:
        return " ".join(str(problem).split())
    except Exception:
        return "it does not say what"


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
