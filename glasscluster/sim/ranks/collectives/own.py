"""Watches over the steps of an algorithm that is no part of this package, and names its author's line.

    yield work.send(x, right)                          a step: what send, recv or exchange returned
    yield work.send(a, left) + work.recv(b, right)     two in one step: the lists are added

Whoever writes a collective yields something else sooner or later, forgets to yield a message, or writes a
function that yields nothing. Each of these would end as an error in a line of ours, or as a wrong sum.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.base.text import shown
from glasscluster.sim.ranks.wire import Ticket
from glasscluster.sim.ranks.work import CollectiveWork, Steps

PACKAGE = __name__.split(".")[0] + "."
MESSAGES = "what work.send, work.recv or work.exchange returned"


def is_own(steps: Callable[..., Any]) -> bool:
    """Whether the steps of an algorithm are written outside this package."""
    return not str(getattr(steps, "__module__", "")).startswith(PACKAGE)


def begun(work: CollectiveWork, steps: Callable[..., Any], x: torch.Tensor, options: dict[str, Any]) -> Steps:
    """Call the function of an algorithm; those of others are watched.

    Args:
        work: the collective under way.
        steps: the algorithm's function.
        x: the flat buffer [numel].
        options: of the call, such as `op`.

    Raises:
        InputError: the function returned something that has no steps.
    """
    if not is_own(steps):
        return steps(work, x, **options)
    work.posted = {}
    made = steps(work, x, **options)
    if not isinstance(made, Iterator):
        code = steps.__code__
        place = f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}, {steps.__name__}"
        rule = f"{place} returned {_kind(made)}, and must have steps: `yield` {MESSAGES}"
        raise InputError("algorithm", work.algorithm, rule)
    return _watched(work, made)


def _watched(work: CollectiveWork, made: Iterator[Any]) -> Steps:
    """The steps, each judged; at the end every message must have been in one of them."""
    posted = work.posted
    assert posted is not None
    for step in made:
        if why := _wrong(step):
            raise InputError("algorithm", work.algorithm, f"{place_of(made)} yields {why}")
        for ticket in step:
            posted.pop(id(ticket), None)
        yield list(step)
    for ticket in posted.values():
        kind = "receive from" if ticket.kind == "recv" else "send to"
        rule = f"{ticket.line} posts a {kind} rank {ticket.peer} that no step yields: nobody waits for it"
        raise InputError("algorithm", work.algorithm, rule)


def _wrong(step: Any) -> str:
    """What is wrong with a step, in words; empty where nothing is."""
    if isinstance(step, Ticket):
        return f"a single message; a step is a list of them: {MESSAGES}"
    if not isinstance(step, (list, tuple)):
        return f"{_kind(step)}; a step is {MESSAGES}"
    if any(isinstance(part, (list, tuple)) for part in step):
        return "lists in a list; add them: work.send(...) + work.recv(...)"
    for part in step:
        if not isinstance(part, Ticket):
            return f"a list with {_kind(part)}; a step is {MESSAGES}"
    return ""


def _kind(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return shown(repr(value), 40)
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def place_of(steps: Any) -> str:
    """Where a generator stands: file, line and function of the innermost one that it yields from."""
    while isinstance(steps, GeneratorType) and isinstance(steps.gi_yieldfrom, GeneratorType):
        steps = steps.gi_yieldfrom
    frame = getattr(steps, "gi_frame", None)
    if frame is None:
        return "the algorithm"
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno}, in {code.co_name},"
