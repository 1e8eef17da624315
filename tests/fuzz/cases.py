"""From a number and a seed to a case, always the same."""

from __future__ import annotations

import hashlib
from random import Random

from .case import HARMLESS, Case, Mutation, Sheet
from .kinds import KINDS, Mutator


def draw_of(*names: object) -> Random:
    """A generator that depends on these names alone, in every process."""
    return Random(hashlib.sha256(repr(names).encode()).digest())


def kind_of(number: int, seed: int) -> str:
    """The kind of a case."""
    return draw_of("kind", number, seed).choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]


def make(number: int, seed: int, kind: str | None = None, left_out: frozenset[int] = frozenset()) -> Case:
    """A case.

    Args:
        number: which one.
        seed: of which series.
        kind: not the one that is drawn, but this.
        left_out: numbers of mutations that are not done; each has a generator of its own, so that the others
            stay what they are.
    """
    kind = kind or kind_of(number, seed)
    draw = draw_of("sheet", number, seed, kind)
    sheet = KINDS[kind].sound(draw)
    many = draw.choices([1, 2, 3], [7, 2, 1])[0]
    mutators = [draw.choice(KINDS[kind].mutators) for _ in range(many)]
    done = []
    for i, mutate in enumerate(mutators):
        if i not in left_out:
            done.append(_mutated(mutate, draw_of("mutation", i, number, seed, kind), sheet, bool(done)))
    return Case(kind, number, seed, sheet, done)


def _mutated(mutate: Mutator, draw: Random, sheet: Sheet, again: bool) -> Mutation:
    """Mutate a sheet; a sheet that is mutated already may have nothing left of what a mutator needs."""
    try:
        return mutate(draw, sheet)
    except (IndexError, KeyError, ValueError, TypeError, RecursionError):
        if not again:
            raise
        return Mutation("nothing", HARMLESS)
