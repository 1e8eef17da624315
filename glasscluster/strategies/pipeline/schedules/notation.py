"""Reads a schedule that somebody else wrote: one line a rank, actions as PyTorch writes them, in text or CSV.

    0F0 0F1 - 0B0 0I1 0W1       B the whole backward, I and W its parts; - or an empty cell is idle time
    0BW0 0B1 0W1                the same in PyTorch's older lists, where B beside a W is what is I now
    (0F3;3B1)OVERLAP_F_B        two actions in one slot
    0SEND_F0 1RECV_F0 0UNSHARD 0RESHARD 0REDUCE_GRAD       left out: they follow from the rest

But: no schedule with a stage on two ranks (DualPipe before it was cut to a V).
"""

from __future__ import annotations

import re

from glasscluster.base.errors import InputError
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule

IDLE = re.compile(r"-|\d+((SEND|RECV)_[FB]\d+|UNSHARD|RESHARD|REDUCE_GRAD\d*)")
ONE = re.compile(r"(\d{1,9})(F|BW|B|I|W)(\d{1,9})", re.ASCII)
PAIR = re.compile(r"\((\d+F\d+);(\d+(?:BW|B|I)\d+)\)OVERLAP_F_B")


def read_schedule(name: str, text: str, p: int, m: int, stages: int | None = None) -> Schedule:
    """A schedule of p ranks; its stages are counted if they are not given, and each lies on the rank that
    first uses it.
    """
    lines = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
    ranks, together = list[list[Action]](), set[Action]()
    for words in (w for w in lines if w):
        ranks.append([])
        for word in (w for w in words if not IDLE.fullmatch(w)):
            pair = PAIR.fullmatch(word)
            actions = [_action(part) for part in (pair.groups() if pair else [word])]
            together.update(actions[:1] if pair else [])
            ranks[-1] += actions
    ranks = [[_today(a, others) for a in actions] for actions, others in ((r, set(r)) for r in ranks)]
    if len(ranks) != p:
        raise InputError("validate", f"{len(ranks)} lines", f"must be one line a rank, {p} in all")
    stages = stages or -(-len({a.stage for actions in ranks for a in actions}) // p) * p
    placement = [s % p for s in range(stages)]
    for rank in reversed(range(p)):
        for action in ranks[rank]:
            if action.stage < stages:
                placement[action.stage] = rank
    return Schedule(name, stages, m, ranks, tuple(placement), frozenset(together))


def _today(action: Action, others: set[Action]) -> Action:
    stage, kind, i = action
    if kind == "BW":
        return Action(stage, "B", i)
    older = kind == "B" and Action(stage, "W", i) in others and Action(stage, "I", i) not in others
    return Action(stage, "I", i) if older else action


def _action(word: str) -> Action:
    match = ONE.fullmatch(word)
    if match is None:
        raise InputError("validate", word, "must be stage, F, B, I or W, micro-batch, such as 2F5")
    return Action(int(match[1]), match[2], int(match[3]))
