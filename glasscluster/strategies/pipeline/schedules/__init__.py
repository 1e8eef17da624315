"""Pipeline schedules, as data: one file each, executed by `pipeline_parallel.py`, judged by
`base.Schedule.validate`.

| name | follows | chunks a rank | bubble | live at most |
|---|---|---|---|---|
| gpipe | Huang 2018 | 1 | p-1 | m |
| 1f1b | PipeDream-Flush, Megatron-LM | 1 | p-1 | p |
| eager-1f1b | Zhuang 2022 | 1 | p-1, hops hidden | 2p-1 |
| interleaved | Megatron-LM | v | (p-1)/v | p + (p-1)/v |
| looped-bfs | Lamy-Poirier 2022 | v | (p-1)/v | m |
| zb-h1 | Qi 2023 | 1 | (p-1)/3 | p |
| zb-h2 | Qi 2023 | 1 | 0 | 2p-1 |
| interleaved-zb | PyTorch | v | (p-1)/(3v) | p |
| zb-v | Qi 2024 | 2, folded | 0 | p |
| dualpipe-v | DeepSeek 2024 | 2, folded | (p-1)/3 | p + 1/2 |

Bubble: what the largest stage's span is longer than its work, in units of a micro-batch's work on a rank,
where F, I and W take the same time and m is a multiple of p and at least 2p. Live: micro-batches' activations
of all chunks of a rank, on the fullest rank.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from glasscluster.base.errors import InputError
from glasscluster.base.limits import check_actions
from glasscluster.strategies.pipeline.schedules import registry
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule, folded, looped

for _module in iter_modules(__path__):  # every file of this folder registers what it holds
    import_module(f"{__name__}.{_module.name}")

SCHEDULES = registry.names()
LOOPED = registry.names(registry.LOOPED)
FOLDED = registry.names(registry.FOLDED)


def default_name(virtual_stages: int) -> str:
    """The schedule of a plan that names none."""
    return "interleaved" if virtual_stages > 1 else "1f1b"


def chunks(name: str, virtual_stages: int | None = None) -> int:
    """How many stages a rank has.

    Args:
        name: a schedule's name.
        virtual_stages: how many are wanted; None: 2 for a folded schedule, otherwise 1.

    Returns:
        That number.

    Raises:
        InputError: for an unknown schedule, or a number that it cannot have.
    """
    if name not in SCHEDULES:
        raise InputError("schedule", name, "is not available in this version", SCHEDULES)
    wanted = 2 if name in FOLDED else 1
    given = wanted if virtual_stages is None else virtual_stages
    if given < 1 or (name not in LOOPED and given != wanted):
        more = [] if name in LOOPED else [wanted]
        rule = (
            "must be at least 1"
            if given < 1
            else f"{name} has {wanted} on every rank; {', '.join(LOOPED)} have any number"
        )
        raise InputError("virtual_stages", given, rule, more or [1])
    return given


def placement(name: str, p: int, virtual_stages: int | None = None) -> tuple[int, ...]:
    """Where stages lie.

    Args:
        name: a schedule's name.
        p: pipeline ranks.
        virtual_stages: stages a rank, as in `chunks`.

    Returns:
        The rank of each of the p·v stages, in model order.
    """
    return folded(p) if name in FOLDED else looped(p, chunks(name, virtual_stages))


def make_schedule(name: str, p: int, micro_batches: int, virtual_stages: int | None = None) -> Schedule:
    """Make a pipeline schedule by name.

    Args:
        name: one of `SCHEDULES`: `1f1b`, `gpipe`, `interleaved`, `zb-h1`, `dualpipe-v`, ...
        p: pipeline ranks.
        micro_batches: m, in one step.
        virtual_stages: v, stages a rank; None: 2 for a folded schedule, otherwise 1.

    Returns:
        The Schedule.

    Raises:
        InputError: for an unknown schedule, or numbers that it cannot have.

    Example:
        >>> from glasscluster.strategies.pipeline.schedules import make_schedule
        >>> print(make_schedule("1f1b", p=2, micro_batches=3))
        0F0 0F1 0B0 0F2 0B1 0B2
        1F0 1B0 1F1 1B1 1F2 1B2
    """
    v = chunks(name, virtual_stages)
    for field, value in (("pp", p), ("micro_batches", micro_batches)):
        if value < 1:
            raise InputError(field, value, "must be at least 1", [1])
    check_actions(p, micro_batches, v)
    make = registry.REGISTRY[name].make
    return make(p, micro_batches, v) if name in LOOPED else make(p, micro_batches)


def predict_live(name: str, p: int, m: int, v: int) -> list[int | None]:
    """Eq 22: how many chunks' activations live on each rank at most, from their F to their B or W.

    Args:
        name: a schedule's name.
        p: pipeline ranks.
        m: micro-batches.
        v: stages a rank.

    Returns:
        One number a rank; None where no formula holds.
    """
    predict = registry.LIVE.get(name)
    if predict is None:
        return [None] * p
    return [predict(p, m, v, rank) if name in LOOPED else predict(p, m, rank) for rank in range(p)]


__all__ = [
    "SCHEDULES",
    "Action",
    "Schedule",
    "chunks",
    "default_name",
    "make_schedule",
    "placement",
    "predict_live",
]
