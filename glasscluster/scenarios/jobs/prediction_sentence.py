"""What `glass predict` says first: the step, whether it fits and where, what most of the waiting is for."""

from __future__ import annotations

from typing import Any

from glasscluster.base.breakdown import AXES, COMPUTE, ENTRIES, EXPOSED, OPTIMIZER
from glasscluster.base.quantities import written_time
from glasscluster.base.text import Said

SMALL = 0.01  # of the step: below it, nothing is worth naming
AXIS = {axis: Said(f"exposed {axis.upper()} communication", f"暴露的 {axis.upper()} 通信") for axis in AXES}


def sentence(content: dict[str, Any], stage: int) -> Said:
    """The prediction in one sentence.

    Args:
        content: of `glass predict`.
        stage: the pipeline rank of the fullest GPU.
    """
    took, capacity = written_time(content["iteration_time_s"]), content["memory_capacity_gib"]
    held = capacity - content["memory_margin_gib"]
    fits = Said("fits", "放得下") if content["fits"] else Said("DOES NOT FIT", "放不下")
    where = Said(
        f"{fits.en}: {held:.1f} of {capacity:.1f} GiB on stage {stage}",
        f"{fits.zh}：第 {stage} 段用 {held:.1f} GiB，共 {capacity:.1f} GiB",
    )
    most = _most(content)
    return Said(
        f"{took} a step; {where.en}{most.en}",
        f"每步 {took}；{where.zh}{most.zh}",
    )


def _most(content: dict[str, Any]) -> Said:
    """The entry in which the most time goes that is neither computing nor the optimizer."""
    step, split = content["iteration_time_s"], content["breakdown_s"]
    others = {key: seconds for key, seconds in split.items() if key not in (COMPUTE, OPTIMIZER)}
    key = max(others, key=lambda k: others[k])
    if not step or others[key] < SMALL * step:
        return Said("; almost all of the time is computing", "；几乎全部时间都在计算")
    axis = key.removeprefix(f"{EXPOSED}_")
    name = AXIS.get(axis) or ENTRIES[key].name
    share = others[key] / step
    return Said(f"; {share:.0%} of the time is {name.en}", f"；{share:.0%} 的时间是{name.zh}")
