"""Reads a schedule that somebody wrote, in PyTorch's notation: one line a rank, as text, CSV or JSON.

    0F0 0F1 - 0B0 0I1 0W1       B the whole backward, I and W its parts; - or an empty cell is idle time
    0BW0 0B1 0W1                the same in PyTorch's older lists, where B beside a W is what is I now
    (0F3;3B1)OVERLAP_F_B        two actions in one slot
    0SEND_F0 1RECV_F0 0UNSHARD 0RESHARD 0REDUCE_GRAD       left out: they follow from the rest
    rank 1: 1F0 1B0             which rank it is; without it the first line is rank 0, and so on
    # a remark                  and empty lines are passed over

CSV has commas between the actions. JSON is the object of `glass schedule --json`, of which `ranks` is read,
or that list of lists alone.

But: no schedule with a stage on two ranks (DualPipe before it was cut to a V).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import parse_json
from glasscluster.base.text import counted
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule, Source

IDLE = re.compile(r"-|\d+((SEND|RECV)_[FB]\d+|UNSHARD|RESHARD|REDUCE_GRAD\d*)")
ONE = re.compile(r"(\d{1,9})(F|BW|B|I|W)(\d{1,9})", re.ASCII)
PAIR = re.compile(r"\((\d+F\d+);(\d+(?:BW|B|I)\d+)\)OVERLAP_F_B")
RANK = re.compile(r"\s*rank\s*(\d{1,9})\s*[:,]?(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)


@dataclass
class Listed:
    """A rank's list as it was read: the words, and for each of them and for the list where they stand."""

    line: str
    words: list[str]
    places: list[str]
    actions: list[Action] = field(default_factory=list)
    written: list[str] = field(default_factory=list)  # the place of each action


def read_schedule(
    name: str,
    text: str,
    p: int | None = None,
    m: int | None = None,
    stages: int | None = None,
    *,
    option: str = "validate",
    file: str = "",
) -> Schedule:
    """Read a schedule. What is not given is counted; each stage lies on the rank that first uses it.

    Args:
        name: what the schedule is called.
        text: what the file holds.
        p: pipeline ranks.
        m: micro-batches.
        stages: of the model, over all ranks.
        option: the option that named the file, for messages.
        file: what messages call the file; empty: by the name.

    Returns:
        The Schedule, which nobody has judged yet.

    Raises:
        InputError: for a word that is no action, or another number of lists than ranks: file, line, token.
    """
    listed = _from_json(option, file or name, text) if text.lstrip()[:1] in ("{", "[") else _from_lines(text)
    ranks = _by_rank(option, listed, p)
    together = set[Action]()
    for mine in ranks:
        for word, place in zip(mine.words, mine.places, strict=True):
            if IDLE.fullmatch(word):
                continue
            pair = PAIR.fullmatch(word)
            actions = [_action(option, part, place) for part in (pair.groups() if pair else [word])]
            together.update(actions[:1] if pair else [])
            mine.actions += actions
            mine.written += [place] * len(actions)
        others = set(mine.actions)
        mine.actions = [_today(a, others) for a in mine.actions]
    every = [a for mine in ranks for a in mine.actions]
    stages = stages or -(-len({a.stage for a in every}) // len(ranks)) * len(ranks)
    m = m or max(1, len({a.micro_batch for a in every}))
    source = Source(
        file or name, tuple(mine.line for mine in ranks), tuple(tuple(mine.written) for mine in ranks)
    )
    lists, placement = [mine.actions for mine in ranks], tuple(_placement([r.actions for r in ranks], stages))
    return Schedule(name, stages, m, lists, placement, frozenset(together), source)


def _placement(ranks: list[list[Action]], stages: int) -> list[int]:
    """The rank of each stage: the first that uses it; where none does, as in a loop."""
    placement = [s % len(ranks) for s in range(stages)]
    for rank in reversed(range(len(ranks))):
        for action in ranks[rank]:
            if action.stage < stages:
                placement[action.stage] = rank
    return placement


# ---- what is written, and where ------------------------------------------------------------------------
def _from_lines(text: str) -> list[tuple[int | None, Listed]]:
    """The lists of a text or a CSV, each with the rank that its line names."""
    lists: list[tuple[int | None, Listed]] = []
    for number, line in enumerate(text.splitlines(), 1):
        rank, written = None, line.split("#")[0]
        if named := RANK.fullmatch(written):
            rank, written = int(named[1]), named[2]
        words = written.replace(",", " ").split()
        if words or rank is not None:
            places = [f"line {number}, token {k}" for k in range(1, len(words) + 1)]
            lists.append((rank, Listed(f"line {number}", words, places)))
    return lists


def _from_json(option: str, file: str, text: str) -> list[tuple[int | None, Listed]]:
    """The lists of a JSON text: its `ranks`, or itself."""
    content: Any = parse_json(option, file, text)
    name = "ranks" if isinstance(content, dict) else ""
    ranks = content.get("ranks") if isinstance(content, dict) else content
    if not isinstance(ranks, list) or not all(isinstance(words, list) for words in ranks):
        raise InputError(option, file, 'must have `ranks`: a list for each rank, such as [["0F0", "0B0"]]')
    lists: list[tuple[int | None, Listed]] = []
    for number, words in enumerate(ranks):
        places = [f"{name}[{number}][{k}]" for k in range(len(words))]
        lists.append((None, Listed(f"{name}[{number}]", [str(word) for word in words], places)))
    return lists


def _by_rank(option: str, lists: list[tuple[int | None, Listed]], p: int | None) -> list[Listed]:
    """The lists in the order of the ranks; p of them, if that is given."""
    if not lists or (p is not None and len(lists) != p):
        many = f", {p} in all" if p is not None else ""
        raise InputError(option, counted(len(lists), "line"), f"must be one line a rank{many}")
    named = [rank for rank, _ in lists if rank is not None]
    if not named:
        return [mine for _, mine in lists]
    for rank, mine in lists:
        if rank is None:
            raise InputError(option, mine.line, "names no rank, and other lines do: rank 0: 0F0 0B0")
        if named.count(rank) > 1 or rank >= len(lists):
            rule = f"each rank from 0 to {len(lists) - 1} has one line ({mine.line})"
            raise InputError(option, f"rank {rank}", rule)
    return [mine for _, mine in sorted(lists, key=_rank_of)]


def _rank_of(pair: tuple[int | None, Listed]) -> int:
    return pair[0] or 0


def _today(action: Action, others: set[Action]) -> Action:
    stage, kind, i = action
    if kind == "BW":
        return Action(stage, "B", i)
    older = kind == "B" and Action(stage, "W", i) in others and Action(stage, "I", i) not in others
    return Action(stage, "I", i) if older else action


def _action(option: str, word: str, place: str) -> Action:
    match = ONE.fullmatch(word)
    if match is None:
        rule = f"must be stage, F, B, I or W, micro-batch, such as 2F5 ({place})"
        raise InputError(option, word, rule)
    return Action(int(match[1]), match[2], int(match[3]))


# ---- writing -------------------------------------------------------------------------------------------
def written_lines(lists: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a text that `read_schedule` reads back, from the actions of each rank."""
    return [f"rank {rank}: {' '.join(actions)}" for rank, actions in enumerate(lists)]


def written_csv(lists: Iterable[Iterable[str]]) -> str:
    """A schedule as PyTorch's CSV: a line for each rank, commas between its actions."""
    return "".join(",".join(actions) + "\n" for actions in lists)
