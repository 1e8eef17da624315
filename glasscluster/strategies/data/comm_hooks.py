"""Communication hooks: what sums a bucket's gradient over data ranks in place of an all-reduce.

Named as in PyTorch (DDP communication hooks): compression of gradients stands here. A strategy has one in its
folder's comm_hook.py,

    def comm_hook(plan, model) -> CommHook | None

which is None where its options do not ask for it. A hook is called when a bucket is complete and returns at
once; its work's `wait` returns when `unit.grad` holds the sum over the ranks of `unit.comm`, the same bits on
all of them. But: without ZeRO only; its stages reduce to slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from glasscluster.model.config import ModelConfig
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.folders import having
from glasscluster.strategies.layout.units import Unit

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

CommHook = Callable[[Unit], Work]


def find(plan: Plan, model: ModelConfig) -> CommHook | None:
    """The hook that the plan's options ask for; None: gradients are all-reduced."""
    made = (module.comm_hook(plan, model) for module in having("comm_hook"))
    return next((hook for hook in made if hook is not None), None)
