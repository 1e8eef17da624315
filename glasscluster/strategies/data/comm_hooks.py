"""Communication hooks: functions that sum a bucket's gradient over data ranks in place of an all-reduce.

They are named after PyTorch's DDP communication hooks, and are where gradients can be compressed. A strategy
that has one defines in its folder's comm_hook.py

    def comm_hook(plan, model) -> CommHook | None

which returns None when the plan's options do not ask for it. A hook is called when a bucket is complete, and
returns a `Work` at once. When the work's `wait` returns, `unit.grad` holds the sum over the ranks of
`unit.comm`, with the same bits on all of them.

But: without ZeRO only, because ZeRO stages reduce gradients to slices.
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
