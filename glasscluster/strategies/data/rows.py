"""The ledger rows of data parallelism and ZeRO: bytes sent and held, and when the last bucket is reduced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glasscluster.base.rows import Row, not_applicable
from glasscluster.base.text import Said
from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.strategies.data import comm_hooks, data_parallel, offload, overlap, zero, zero3
from glasscluster.strategies.layout.judged import Judged, bytes_row
from glasscluster.strategies.layout.units import Unit

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

PLACE = 10  # in the ledger
WHAT = {
    "gradients": Said("gradients", "梯度"),
    "parameters": Said("parameters", "参数"),
    "optimizer": Said("optimizer", "优化器状态"),
}
HOOKED = Said(
    "another strategy sums the gradients (a communication hook): its own rows say what it sends",
    "梯度由另一种策略求和（通信钩子）：发送量见其自己的账目",
)


def predict(run: Judged) -> list[Row]:
    """Bytes sent (Eq 9, Eq 16) and held (Eq 15), an offloaded optimizer's, and the last bucket (Eq 14)."""
    return [*_sent(run), *_held(run), *_layers_whole(run), *_host(run), *_last_bucket(run)]


def parameters_of(units: Iterable[Unit]) -> dict[bool, int]:
    """Ψ, a rank's parameters and their units' padding: of experts (True) and of everything else (False)."""
    psi = {False: 0, True: 0}
    for unit in units:
        psi[unit.experts] += unit.padded
    return psi


def _hooked(run: Judged) -> bool:
    return comm_hooks.find(run.plan, run.model) is not None


# ---- bytes sent --------------------------------------------------------------------------------------------
def _sent(run: Judged) -> list[Row]:
    """Bytes sent along dp, summed over ranks; with hybrid sharding, a row for those between groups."""
    plan, graph = run.plan, run.graph
    if graph is None or plan.data_ranks == 1:
        return []
    theory = _traffic(run)
    hybrid = plan.zero > 0 and plan.shards < plan.data_ranks
    source = "Patarasuk-Yuan 2009 (Eq 9); ZeRO section 7.1"
    if plan.zero:
        source = "ZeRO 1910.02054 section 7 (Eq 16)"
    across = graph.where(purpose="gradients", group=GROUP_IDS["replicas"])
    rows = []
    for p in ("gradients", "parameters"):
        where = graph.where(axis="dp", purpose=p)
        name = Said(f"dp {p} sent, all ranks", f"dp 方向发送的{WHAT[p].zh}，全部 rank")
        if hybrid:
            where &= ~across
            name = Said(
                f"dp {p} sent inside groups of {plan.shards}, all ranks",
                f"dp {WHAT[p].zh}：{plan.shards} 个 rank 的组内发送量（全部 rank）",
            )
        row = bytes_row(graph, f"dp_{p}_sent", name, theory[p], where, source)
        rows.append(replace(row, why=HOOKED) if p == "gradients" and _hooked(run) else row)
    if hybrid:
        groups = plan.data_ranks // plan.shards
        name = Said(
            f"dp gradients sent across {groups} groups, all ranks",
            f"dp 梯度：{groups} 个组之间的发送量（全部 rank）",
        )
        source = "MiCS 2205.00119, FSDP 2304.11277 section 3.2.2: Eq 9 of every shard"
        rows.append(bytes_row(graph, "dp_gradients_sent_across", name, theory["across"], across, source))
    return rows


def _traffic(run: Judged) -> dict[str, int]:
    """Eq 9 or Eq 16, summed over all ranks. Experts are reduced over fewer ranks, in more groups."""
    plan = run.plan
    total = {"gradients": 0, "parameters": 0, "across": 0}
    for experts, psi in parameters_of(run.units).items():
        if plan.zero:
            part, groups = zero.predict_traffic(plan, psi, plan.width, experts), 1
        else:
            n = plan.expert_replicas if experts else plan.data_ranks
            part, groups = data_parallel.predict_traffic(psi, n, plan.gradient_width), plan.data_ranks // n
        total = {p: sent + part[p] * groups * plan.tp for p, sent in total.items()}
    if run.skipped and plan.zero < 3:
        total["parameters"] = 0
    return total


# ---- bytes held --------------------------------------------------------------------------------------------
def optimizer_state(plan: Plan) -> tuple[int, int]:
    """How many moments the optimizer has of each parameter, and the bytes of a moment or master weight."""
    return 2 if plan.optimizer == "adamw" else 0, 4 if plan.has_master else plan.width


def _held(run: Judged) -> list[Row]:
    """Model states per rank before the optimizer step, summed over ranks (Eq 15)."""
    if run.results is None:
        return []
    plan = run.plan
    moments, width = optimizer_state(plan)
    on_gpu = 0 if plan.offload == "optimizer" else (moments + plan.has_master) * width
    theory = {"parameters": 0.0, "gradients": 0.0, "optimizer": 0.0}
    for experts, psi in parameters_of(run.units).items():
        n = plan.expert_replicas if experts else plan.shards
        each = zero.predict_state(plan.zero, psi, n, plan.width, plan.gradient_width, on_gpu)
        theory = {k: held + each[k] * plan.data_ranks * plan.tp for k, held in theory.items()}
    return [
        Row(
            f"{k}_held",
            Said(f"{k} held, all ranks", f"持有的{WHAT[k].zh}，全部 rank"),
            held,
            sum(r.state_bytes[k] for r in run.results),
            "ZeRO 1910.02054 section 3.1 (Eq 15)",
        )
        for k, held in theory.items()
    ]


def _layers_whole(run: Judged) -> list[Row]:
    """ZeRO-3: how many layers are whole at once. Only one stage of a rank is used at a time."""
    plan = run.plan
    if run.results is None or plan.zero < 3:
        return []
    key = "layers_whole"
    name = Said("layers whole at once, most of any rank", "同时完整的层数（各 rank 中最多）")
    counted, source = max(r.most_layers for r in run.results), "FSDP 2304.11277 section 3.3: prefetch + 1"
    if not plan.reshard and plan.virtual_stages > 1:
        why = Said(
            "layers stay whole until backward: how many of a rank's chunks are, the schedule decides",
            "各层保留到反向：一个 rank 上同时有几块完整由调度决定",
        )
        return [not_applicable(key, name, why, source, counted=counted, unit="layers")]
    most = max(zero3.predict_layers(plan, len(layers)) for layers in plan.stage_layers(run.model))
    return [Row(key, name, most, counted, source, unit="layers")]


# ---- the optimizer in host memory --------------------------------------------------------------------------
def _host(run: Judged) -> list[Row]:
    """Bytes that an optimizer in host memory moves, reads and writes, and holds, summed over ranks."""
    plan, graph = run.plan, run.graph
    if graph is None or run.results is None or plan.offload == "none":
        return []
    moments, width = optimizer_state(plan)
    n = {False: plan.shards, True: plan.expert_replicas} if plan.zero else {False: 1, True: 1}
    owned = sum(psi * plan.data_ranks * plan.tp // n[e] for e, psi in parameters_of(run.units).items())
    theory = offload.predict_host(owned, plan.width, plan.gradient_width, width, moments)
    if run.skipped:
        theory |= dict.fromkeys(("down", "up", "update"), 0)
    counted = {op: sum(graph.host_bytes(op)) for op in ("down", "up", "update")}
    counted["held"] = sum(r.host_bytes for r in run.results)
    names = {
        "down": Said("gradients moved down to the host, all ranks", "下传到主机的梯度（全部 rank）"),
        "up": Said("parameters moved up from the host, all ranks", "从主机上传的参数（全部 rank）"),
        "update": Said(
            "host memory read and written by the update, all ranks", "更新时读写的主机内存（全部 rank）"
        ),
        "held": Said("optimizer held in host memory, all ranks", "主机内存中的优化器状态（全部 rank）"),
    }
    source = "ZeRO-Offload 2101.06840 sections 3, 4"
    return [Row(f"host_{k}", name, theory[k], counted[k], source) for k, name in names.items()]


# ---- seconds -----------------------------------------------------------------------------------------------
def _last_bucket(run: Judged) -> list[Row]:
    """When the last bucket is reduced (Eq 14)."""
    if run.timeline is None or run.plan.data_ranks == 1:
        return []
    key, name = "last_bucket_reduced", Said("last bucket reduced", "最后一个桶归约完成的时刻")
    source = "Eq 14, PyTorch DDP 2006.15704: max(ready, end before) + c along the buckets"
    ends = HOOKED if _hooked(run) else overlap.predict_last_bucket(run.plan, run.timeline)
    if isinstance(ends, Said):
        return [not_applicable(key, name, ends, source, unit="s", match="virtual")]
    chain, replayed = ends
    seconds: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    return [Row(key, name, chain, None, source, simulated=replayed, **seconds)]
