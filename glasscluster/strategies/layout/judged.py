"""What the strategies' formulas are held against: a plan, a model, and what was recorded when they ran.

Each strategy's rows.py has one function, `predict(run: Judged) -> list[Row]`. It makes a row for everything
that the plan has of this strategy, and that was brought along: without a graph there are no bytes, without a
timeline no seconds. Where a formula does not hold for this run the row is there all the same, not applicable,
and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from glasscluster.base.rows import Row
from glasscluster.base.text import Said
from glasscluster.model.config import ModelConfig
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.layout.units import Unit, units_of

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan
    from glasscluster.strategies.result import RankResult

UNCOUNTED = Said(
    "a library's own collectives ran (--algorithm native): nobody counts their bytes",
    "运行的是库自带的集合通信（--algorithm native），其字节数无人计数",
)
NOT_A_RING = Said(
    "the formula is a ring's, and another algorithm ran (--algorithm)",
    "公式是环形算法的，而运行的是另一种算法（--algorithm）",
)
FORMULAS = ("ring", "direct")  # algorithms whose bytes the formulas of the strategies give


@dataclass(frozen=True, eq=False)
class Judged:
    """A run to be judged.

    Args:
        graph: of the recorded step.
        results: of every rank.
        timeline: the graph replayed on some hardware.
    """

    plan: Plan
    model: ModelConfig
    graph: ExecutionGraph | None = None
    results: Sequence[RankResult] | None = None
    timeline: Timeline | None = None

    @cached_property
    def stages(self) -> list[list[Unit]]:
        """The units of each pipeline stage, from shapes alone."""
        return [units_of(self.plan, self.model, stage) for stage in range(self.plan.stages)]

    @property
    def units(self) -> list[Unit]:
        """The units of all stages."""
        return [unit for stage in self.stages for unit in stage]

    @property
    def skipped(self) -> bool:
        """Whether the recorded step made no update, because its gradients overflowed or its batch was bad."""
        return self.results is not None and self.results[0].skipped[-1:] == [True]


def bytes_row(
    graph: ExecutionGraph,
    key: str,
    name: Said,
    predicted: float | None,
    where: np.ndarray,
    source: str,
) -> Row:
    """A row of the bytes that were sent by all ranks together.

    Not applicable, and without a count, where a library's collectives ran. Not applicable beside its count
    where the collectives that sent these bytes ran by another algorithm than the formula's.

    Args:
        where: one bool an event, which of the graph's sends are meant (see `ExecutionGraph.where`).
    """
    if graph.has_native:
        return Row(key, name, predicted, None, source, why=UNCOUNTED)
    counted = int(graph.bytes[where & (graph.kind == SEND)].sum())
    return Row(key, name, predicted, counted, source, why=None if on_rings(graph, where) else NOT_A_RING)


def on_rings(graph: ExecutionGraph, where: np.ndarray) -> bool:
    """Whether all collectives among these events ran by the algorithms that the formulas are of."""
    return graph.algorithms(where) <= set(FORMULAS)
