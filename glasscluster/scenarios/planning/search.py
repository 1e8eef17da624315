"""The search: layouts in the order of their bounds, replayed until no bound is under the best.

    1. every legal layout is bounded from FLOPs alone; what cannot fit is put aside
    2. the layout with the lowest bound gets a closer one, from kernels (work.py); with the closest, it is
       replayed
    3. until `top` replayed ones fit that are at most as slow as every bound that is left

So a replay stands behind every layout that is shown, and a bound above the last of them behind every one that
was not replayed: the answer is that of replaying all (tests/test_planner.py does).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glasscluster.base.quantities import written_time
from glasscluster.base.text import counted
from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.planning.bounds import Bound, closest, memory_bound, time_bound
from glasscluster.scenarios.planning.work import FLOPS, LEVELS, Work, Works
from glasscluster.sim.time.hardware import Hardware
from glasscluster.strategies.plan import Plan

GIB = 1024**3
Measure = Callable[[Plan], dict[str, Any]]


@dataclass
class Layout:
    """A layout and what is known of it.

    Attributes:
        number: its place in the list of all; the first of equally quick ones comes first.
        bytes: what its fullest rank holds at least.
        bound: what a step takes at least.
        level: how close the bound is (work.py).
        content: what `glass predict` says of it; empty until it was replayed.
    """

    number: int
    plan: Plan
    bytes: float
    bound: Bound
    level: int = FLOPS
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of its replay, or the bound."""
        return self.content["iteration_time_s"] if self.content else self.bound.seconds

    @property
    def order(self) -> tuple[float, int]:
        """By which layouts are sorted."""
        return self.seconds, self.number


@dataclass
class Found:
    """What a search came to: the best, the quickest first, and all others."""

    best: list[Layout]
    others: list[Layout]
    fitting: (
        int  # of the others, those of which no bound and no replay says that they do not fit, and the best
    )
    replayed: int
    capacity: float  # bytes of a GPU

    @property
    def considered(self) -> int:
        """How many layouts are legal."""
        return len(self.best) + len(self.others)


def search(
    plans: Sequence[Plan],
    model: ModelConfig,
    hw: Hardware,
    measure: Measure,
    top: int,
    say: Callable[[str], None] = lambda _text: None,
    bound: Callable[[Plan, ModelConfig, Hardware, Work], Bound] = time_bound,
) -> Found:
    """The `top` quickest of some plans that fit; of equal ones the first.

    Args:
        measure: what `glass predict` says of a plan.
        bound: what no replay of a plan can be under.
    """
    said_at, works = time.monotonic(), Works(model, hw)

    def bounded(plan: Plan, level: int) -> Bound:
        return bound(plan, model, hw, works.of(plan, level))

    layouts = [
        Layout(number, plan, memory_bound(plan, model), bounded(plan, FLOPS))
        for number, plan in enumerate(plans)
    ]
    may_fit = [layout for layout in layouts if layout.bytes <= hw.gpu.memory_bytes]
    waiting = [(layout.order, layout) for layout in may_fit]
    heapq.heapify(waiting)
    best: list[Layout] = []
    replayed = full = 0
    while waiting and (len(best) < top or waiting[0][0][0] <= best[-1].seconds):
        layout = heapq.heappop(waiting)[1]
        if layout.level < LEVELS[-1]:
            layout.level += 1
            layout.bound = closest(layout.bound, bounded(layout.plan, layout.level))
            heapq.heappush(waiting, (layout.order, layout))
            continue
        layout.content, replayed = measure(layout.plan), replayed + 1
        full += not layout.content["fits"]
        if layout.content["fits"]:
            best = sorted([*best, layout], key=lambda one: one.order)[:top]
        if time.monotonic() - said_at > 2:
            said_at = time.monotonic()
            seconds = written_time(best[0].seconds) if best else "none fits yet"
            say(f"{counted(replayed, 'layout')} of {len(may_fit):,} replayed; the best: {seconds}")
    chosen = {layout.number for layout in best}
    others = [layout for layout in layouts if layout.number not in chosen]
    return Found(best, others, len(may_fit) - full, replayed, hw.gpu.memory_bytes)
