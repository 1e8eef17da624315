"""Why a layout is not the best, in one sentence from its own numbers.

does not fit         the bytes that it holds (replayed) or holds at least (bounded), beside the GPU's
was replayed         the entry of its breakdown that grew most, in percent of the best step
was bounded alone    what its bound is made of: computing, the pipeline's ends, data parallelism
"""

from __future__ import annotations

from glasscluster.base.breakdown import ENTRIES
from glasscluster.base.text import Said
from glasscluster.scenarios.planning.search import GIB, Layout
from glasscluster.sim.time.hardware import Hardware


def reason(layout: Layout, best: Layout, hw: Hardware) -> Said:
    """Why `best` comes before a layout."""
    capacity = hw.gpu.memory_bytes / GIB
    if layout.content and not layout.content["fits"]:
        held = (hw.gpu.memory_bytes / GIB) - layout.content["memory_margin_gib"]
        return Said(
            f"does not fit: {held:.1f} of {capacity:.1f} GiB",
            f"放不下：需要 {held:.1f} GiB，共 {capacity:.1f} GiB",
        )
    if layout.bytes > hw.gpu.memory_bytes:
        held = layout.bytes / GIB
        return Said(
            f"does not fit: at least {held:.1f} of {capacity:.1f} GiB",
            f"放不下：至少需要 {held:.1f} GiB，共 {capacity:.1f} GiB",
        )
    grown, name = _replayed(layout, best) if layout.content else _bounded(layout, best)
    least = Said("", "") if layout.content else Said("at least ", "至少 ")
    total = layout.seconds / best.seconds - 1
    where = _where(layout, hw)
    return Said(
        f"{where.en}{least.en}+{grown:.1%} {name.en}, {least.en}{total:+.1%} in all",
        f"{where.zh}{name.zh}{least.zh}多 {grown:.1%}，总计{least.zh}{total:+.1%}",
    )


def _replayed(layout: Layout, best: Layout) -> tuple[float, Said]:
    theirs, ours = layout.content["breakdown_s"], best.content["breakdown_s"]
    grown = {key: seconds - ours.get(key, 0.0) for key, seconds in theirs.items()}
    key = max(grown, key=lambda k: grown[k])
    return grown[key] / best.seconds, ENTRIES[key].name


def _bounded(layout: Layout, best: Layout) -> tuple[float, Said]:
    parts = [_parts(one) for one in (layout, best)]
    grown = [a - b for a, b in zip(*parts, strict=True)]
    most = max(range(len(grown)), key=lambda i: grown[i])
    names = (
        Said("computing and its tensor-parallel messages", "计算及其张量并行通信"),
        Said("pipeline bubble", "流水线气泡"),
        Said("data-parallel traffic and optimizer", "数据并行通信与优化器"),
    )
    return grown[most] / best.seconds, names[most]


def _parts(layout: Layout) -> tuple[float, float, float]:
    bound = layout.bound
    return bound.compute, bound.window - bound.compute, bound.seconds - bound.window


def _where(layout: Layout, hw: Hardware) -> Said:
    """What of a layout leaves the node, though it needs the quick links."""
    plan = layout.plan
    if plan.tp > hw.node_size:
        return Said(f"TP {plan.tp} crosses the node: ", f"TP {plan.tp} 跨节点：")
    if plan.tp * plan.cp > hw.node_size:
        return Said(f"CP {plan.cp} crosses the node: ", f"CP {plan.cp} 跨节点：")
    return Said("", "")
