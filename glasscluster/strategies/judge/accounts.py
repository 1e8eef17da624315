"""The accounts: what the papers' formulas say beside what was counted, row by row.

The predicted side is computed here from plan and shapes; the counted side comes from the graph and the memory
ledger, which know no formula. Where theory is exact the two must be equal, not close.

A row is there as soon as the plan has what it is about: no pipeline, no row of stages. When the formula does
not hold for this run, or nobody counted, the row is still there: not applicable, and it says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from glasscluster.base.rows import Row, not_applicable
from glasscluster.base.text import Said
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.kernels.flash.tiles import TILE
from glasscluster.model.parallel import Unsharded, WholeExperts
from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.sim.recording.events import PURPOSES, RECOMPUTE, SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.context import ulysses
from glasscluster.strategies.data import data_parallel, offload, overlap, zero, zero3
from glasscluster.strategies.layout.units import TIED, Unit, by_bucket, by_module
from glasscluster.strategies.memory import recompute
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.pipeline import pipeline_parallel
from glasscluster.strategies.pipeline.schedules import gpipe, predict_live
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.tensor import sequence_parallel, tensor_parallel

WIDTH = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}


UNCOUNTED = Said(
    "a library's own collectives ran (--algorithm native): nobody counts their bytes",
    "运行的是库自带的集合通信（--algorithm native），其字节数无人计数",
)
WHAT = {
    "gradients": Said("gradients", "梯度"),
    "parameters": Said("parameters", "参数"),
    "optimizer": Said("optimizer", "优化器状态"),
}


def if_counted(graph: ExecutionGraph, rows: list[Row]) -> list[Row]:
    """Rows of bytes sent; not applicable, with an empty cell, where a library's collectives ran."""
    return [replace(r, counted=None, why=UNCOUNTED) for r in rows] if graph.has_native else rows


class _Place(Unsharded):
    """Stands where tensor parallelism would, for shapes."""

    def __init__(self, plan: Plan) -> None:
        self.size, self.rank = plan.tp, 0
        if plan.ep > 1:
            self.experts = WholeExperts()
            self.experts.size = plan.ep


def units_of(plan: Plan, model: ModelConfig, stage: int) -> list[Unit]:
    """The units of a pipeline stage, from shapes alone (meta tensors)."""
    first, last = stage == 0, stage == plan.stages - 1
    layers, dtype = plan.stage_layers(model)[stage], DTYPES[plan.precision]
    shape = GPTStage(model, layers, first, last, _Place(plan), dtype=dtype, device=torch.device("meta"))
    apart = {TIED} if model.tied and plan.stages > 1 and (first or last) else set()
    if plan.zero == 3:
        return by_module(shape, plan.padding, apart)
    return by_bucket(shape, plan.bucket_limits, plan.padding, apart)


# ---- bytes along every axis --------------------------------------------------------------------------------


def traffic_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, skipped: bool = False) -> list[Row]:
    """Bytes sent, summed over ranks, by axis and purpose (Eq 9, Eq 16, Eq 18, Eq 19).

    `skipped`: the recorded step made no update (its gradients overflowed).
    """
    width, tokens = WIDTH[plan.precision], plan.micro_batch * model.seq
    m, rows = plan.micro_batches, list[Row]()
    stages = [units_of(plan, model, s) for s in range(plan.stages)]
    if plan.data_ranks > 1:
        rows += _data_rows(plan, graph, stages, width, skipped)
    if plan.tp > 1:
        rows += _tensor_rows(plan, model, graph, m, tokens, width)
    if plan.cp > 1:
        rows += _context_rows(plan, model, graph, m, width)
    if plan.pp > 1:
        rows += _pipeline_rows(plan, model, graph, stages[0], tokens, width)
    return if_counted(graph, rows)


def _pipeline_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, first: Sequence[Unit], tokens: int, width: int) -> list[Row]:
    # copies of an activation: it is whole on every tp rank, or a piece of it is on each
    copies = plan.dp * (1 if plan.sequence_parallel else plan.tp)
    schedule = plan.pipeline
    one = pipeline_parallel.predict_traffic(schedule.hops, plan.micro_batches, tokens, model.hidden, width)
    if plan.virtual_stages == 1:
        source = "GPipe 1811.06965: 2(p-1)m·bsh"
    else:
        source = "Megatron-LM 2104.04473 section 2.2: 2m·bsh a hop (Eq 21)"
    rows = [
        Row(
            "pp_activations_sent",
            Said("pp activations and their gradients sent, all ranks", "pp 方向发送的激活及其梯度，全部 rank"),
            one * copies,
            sum(graph.bytes_sent(axis="pp", purpose="activations")),
            source,
        )
    ]
    if model.tied and schedule.placement[0] != schedule.placement[-1]:
        table = next(u for u in first if u.name == TIED)
        # every dp rank sums the whole table, or with ZeRO its shard of it
        shares = plan.data_ranks // (plan.shards if plan.zero else 1)
        rows.append(
            Row(
                "tied_embedding_gradients_sent",
                Said("tied embedding gradients sent, all ranks", "共享词嵌入的梯度发送量，全部 rank"),
                2 * table.padded * plan.gradient_width * plan.tp * shares,
                sum(graph.bytes_sent(label="tied embedding")),
                "Eq 9 with N = 2",
            )
        )
    return rows


def _padded(units: Sequence[Unit]) -> dict[bool, int]:
    """Elements of a rank's units, padding included: of experts (True) and of everything else."""
    return {experts: sum(u.padded for u in units if u.experts == experts) for experts in (False, True)}


def _data_rows(plan: Plan, graph: ExecutionGraph, stages: Sequence[Sequence[Unit]], width: int, skipped: bool) -> list[Row]:
    hybrid = plan.zero > 0 and plan.shards < plan.data_ranks
    theory: dict[str, float] = dict.fromkeys(("gradients", "parameters", "across"), 0)
    for experts, padded in _padded([u for units in stages for u in units]).items():
        if plan.zero:
            part: dict[str, float] = dict(zero.predict_traffic(plan, padded, width, experts))
            source = "ZeRO 1910.02054 section 7 (Eq 16)"
        else:
            # there are as many such groups as do not hold the same
            ranks = plan.expert_replicas if experts else plan.data_ranks
            whole = data_parallel.predict(padded, ranks, plan.gradient_width)
            part = {"gradients": whole["gradients_bytes_total"] * (plan.data_ranks // ranks)}
            source = "Patarasuk-Yuan 2009 (Eq 9); ZeRO section 7.1"
        theory = {k: v + part.get(k, 0) for k, v in theory.items()}
    if skipped and plan.zero < 3:
        theory["parameters"] = 0
    across = sum(graph.bytes_sent(purpose="gradients", group=GROUP_IDS["replicas"])) if hybrid else 0
    counted = {p: sum(graph.bytes_sent(axis="dp", purpose=p)) for p in ("gradients", "parameters")}
    counted["gradients"] -= across
    rows = []
    for p in counted:
        name = Said(f"dp {p} sent, all ranks", f"dp 方向发送的{WHAT[p].zh}，全部 rank")
        if hybrid:
            name = Said(
                f"dp {p} sent inside groups of {plan.shards}, all ranks",
                f"dp {WHAT[p].zh}：{plan.shards} 个 rank 的组内发送量（全部 rank）",
            )
        rows.append(Row(f"dp_{p}_sent", name, theory[p] * plan.tp, counted[p], source))
    if hybrid:
        groups = plan.data_ranks // plan.shards
        name = Said(
            f"dp gradients sent across {groups} groups, all ranks",
            f"dp 梯度：{groups} 个组之间的发送量（全部 rank）",
        )
        source = "MiCS 2205.00119, FSDP 2304.11277 section 3.2.2: Eq 9 of every shard"
        rows.append(Row("dp_gradients_sent_across", name, theory["across"] * plan.tp, across, source))
    return rows


def host_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, results: Sequence[RankResult]) -> list[Row]:
    """What an optimizer in host memory moves, touches and holds, summed over ranks."""
    if plan.offload == "none":
        return []
    width, moments = WIDTH[plan.precision], 2 if plan.optimizer == "adamw" else 0
    padded = _padded([u for s in range(plan.stages) for u in units_of(plan, model, s)])
    share = {False: plan.shards, True: plan.expert_replicas} if plan.zero else {False: 1, True: 1}
    owned = sum(n * plan.data_ranks * plan.tp // share[experts] for experts, n in padded.items())
    theory = offload.predict(owned, width, plan.gradient_width, 4 if plan.has_master else width, moments)
    if results[0].skipped[-1:] == [True]:  # no update
        theory |= dict.fromkeys(("down", "up", "update"), 0)
    counted = {op: sum(graph.host_bytes(op)) for op in ("down", "up", "update")}
    counted["held"] = sum(r.host_bytes for r in results)
    names = {
        "down": Said("gradients moved down to the host, all ranks", "下传到主机的梯度（全部 rank）"),
        "up": Said("parameters moved up from the host, all ranks", "从主机上传的参数（全部 rank）"),
        "update": Said("host memory read and written by the update, all ranks", "更新时读写的主机内存（全部 rank）"),
        "held": Said("optimizer held in host memory, all ranks", "主机内存中的优化器状态（全部 rank）"),
    }
    source = "ZeRO-Offload 2101.06840 sections 3, 4"
    return [Row(f"host_{k}", names[k], theory[k], counted[k], source) for k in names]


def overlap_rows(plan: Plan, timeline: Timeline) -> list[Row]:
    """When the last bucket is reduced (Eq 14)."""
    if plan.data_ranks == 1:
        return []
    key, name = "last_bucket_reduced", Said("last bucket reduced", "最后一个桶归约完成的时刻")
    source = "Eq 14, PyTorch DDP 2006.15704: max(ready, end before) + c along the buckets"
    found = overlap.predict(plan, timeline)
    if isinstance(found, Said):
        return [not_applicable(key, name, found, source, unit="s", match="virtual")]
    chain, replayed = found
    return [Row(key, name, chain, None, source, simulated=replayed, unit="s", match="virtual", tolerance=1e-9)]


def _regions(model: ModelConfig) -> int:
    """Pairs of matrices in a layer: attention, MLP or experts, and the expert that every token passes."""
    return 3 if model.experts and model.shared_ffn else 2


def _spares(plan: Plan, model: ModelConfig) -> bool:
    """Whether recomputation of a segment stops before its last matrix's collective.

    With tp-overlap the matrix and the collective are one operation, which runs again as a whole.
    """
    routed_last = bool(model.experts) and not model.shared_ffn
    if model.norm_position != "pre":  # the last norm keeps its input, for which all of the branch runs again
        return False
    return not model.dropout and (plan.tp == 1 or not plan.tp_overlap or routed_last)


def _tensor_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, m: int, tokens: int, width: int) -> list[Row]:
    theory = sequence_parallel if plan.sequence_parallel else tensor_parallel
    regions, spares, full = _regions(model), _spares(plan, model), plan.recompute == "full"
    # a region that does not keep a piece to gather again (three matrices; a router and experts) has one
    # gather less in backward
    per_layer = 2 * regions
    if plan.sequence_parallel:
        per_layer = 5 * regions - (not model.one_gather) - (model.experts > 0)
    totals = {"layer": 0, "embedding": 0, "head": 0, "loss": 0}
    for s, layers in enumerate(plan.stage_layers(model)):
        again = recompute.predict_again(
            plan.recompute,
            len(layers),
            plan.recompute_every,
            regions,
            spares,
            2 if plan.sequence_parallel else 1,
        )
        ends = s == 0, s == plan.stages - 1
        part = theory.predict(len(layers), m, tokens, model.hidden, plan.tp, width, *ends, again, per_layer)
        totals = {k: v + part[k] * plan.dp for k, v in totals.items()}
    tp = (graph.kind == SEND) & (graph.axis == "tp") & (graph.purpose == PURPOSES.index("activations"))
    label = np.array([*graph.names, ""])[graph.label]
    heads, router = np.char.startswith(label, "key-value head"), np.char.startswith(label, "router weights")
    in_layer = graph.layer >= 0
    chosen = {
        "layer": tp & in_layer & ~heads & ~router,
        "embedding": tp & ~in_layer & np.char.startswith(label, "g "),
        "head": tp & ~in_layer & np.char.startswith(label, "f "),
        "loss": tp & np.char.startswith(label, "cross_entropy"),
    }
    what, each, source = _tensor_names(plan, per_layer)
    rows = [
        Row(
            f"tp_{k}_sent",
            Said(f"{what.en}, {each[k].en}", f"{what.zh}，{each[k].zh}"),
            totals[k],
            int(graph.bytes[chosen[k]].sum()),
            source,
        )
        for k in totals
    ]
    if plan.tp > model.key_heads:
        one = tensor_parallel.predict_shared_heads(model.key_heads, model.key_width, plan.tp, tokens, width, 2 + full)
        rows.append(
            Row(
                "tp_shared_heads_sent",
                Said("tp keys and values of shared heads sent", "tp 共享头的键和值的发送量"),
                one * m * model.layers * plan.dp,
                int(graph.bytes[tp & heads].sum()),
                "GQA 2305.13245; Eq 10 over tp / kv-heads",
            )
        )
    if model.experts:
        one = (plan.tp - 1) * tokens * model.top_k * max(width, 4) * m * model.layers * plan.dp
        runs = 2 + (full and plan.sequence_parallel)  # an all-reduce backward, or a gather and a scatter
        rows.append(
            Row(
                "tp_router_sent",
                Said("tp weights of the router sent", "tp 路由权重的发送量"),
                runs * one,
                int(graph.bytes[tp & router].sum()),
                "Eq 9, Eq 10: k numbers a token",
            )
        )
    return rows + _whole_rows(plan, model, graph)


def _tensor_names(plan: Plan, per_layer: int) -> tuple[Said, dict[str, Said], str]:
    """What tensor-parallel ranks send, where they send it, and who says how much."""
    full = plan.recompute == "full"
    if plan.sequence_parallel:
        again = Said(" and what runs again", "及重算的部分") if full else Said("", "")
        what = Said("tp gathers and scatters sent", "tp gather 与 scatter 的发送量")
        source = "Korthikanti 2205.05198 section 4.2.2 (Eq 18)"
        embedding, head = Said("embedding, 2", "嵌入 2 次"), Said("head input, 3", "输出层输入 3 次")
    else:
        again = Said(" and what runs again", "及重算的次数") if full else Said("", "")
        what = Said("tp all-reduces sent", "tp all-reduce 发送量")
        source = "Megatron-LM 1909.08053 section 3 (Eq 18, Eq 19)"
        embedding = Said("embedding, once", "词嵌入（一次）")
        head = Said("head input, once", "输出头的输入（一次）")
    each = {
        "layer": Said(f"{per_layer} per layer{again.en}", f"每层 {per_layer} 次{again.zh}"),
        "embedding": embedding,
        "head": head,
        "loss": Said("loss, 3 scalars a token", "损失（每 token 3 个标量）"),
    }
    return what, each, source


def _whole_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph) -> list[Row]:
    """Gradients summed over tp once a step.

    They are those of every parameter that is whole where the sequence is cut, else of what the heads share.
    """
    units = [u for s in range(plan.stages) for u in units_of(plan, model, s)]
    whole = [x for u in units for x in u.members if x.shard is None]
    if plan.sequence_parallel:
        key, label = "tp_norm_gradients_sent", "norms, biases, positions"
        name = Said("tp gradients of norms, biases and positions sent", "tp 归一化、偏置和位置梯度的发送量")
        source = "Korthikanti 2205.05198 section 4.2.2"
    else:
        partial = set().union(*(part.partial for part in GPTStage(model, device=torch.device("meta")).parts()))
        whole = [x for x in whole if x.name in partial]
        key, label = "tp_shared_gradients_sent", "what all heads share"
        name = Said("tp gradients of what all heads share sent", "tp 各头共用参数梯度的发送量")
        source = "Eq 9: each rank has its heads' part"
        if not whole:
            return []
    shares = plan.data_ranks // (plan.shards if plan.zero else 1)  # with ZeRO every dp rank sums what it owns
    expected = 2 * (plan.tp - 1) * sum(x.stop - x.start for x in whole) * plan.gradient_width * shares
    return [Row(key, name, expected, sum(graph.bytes_sent(axis="tp", label=label)), source)]


def _context_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, m: int, width: int) -> list[Row]:
    """Eq 26: what attention sends along cp, summed over ranks."""
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    heads, key_heads = model.heads // plan.tp, max(1, model.key_heads // plan.tp)
    one = ulysses.predict(kind, plan.cp, plan.micro_batch, model.seq, heads, key_heads, model.score_dim, width, plan.heads_cut)
    again = {"none": 0, "selective": one["again"], "full": one["forward"]}[plan.recompute]
    return [
        Row(
            "cp_attention_sent",
            Said("cp keys, values and heads sent, all ranks", "cp 键、值与头的发送量，所有 rank"),
            (one["forward"] + one["backward"] + again) * m * model.layers * plan.gpus // plan.pp,
            sum(graph.bytes_sent(axis="cp", purpose="activations")),
            "Ring attention 2310.01889, Ulysses 2309.14509 (Eq 26)",
        )
    ]


def expert_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, results: Sequence[RankResult]) -> list[Row]:
    """Eq 27: tokens that left for experts on other ranks, given what the routers chose.

    Each goes out and back, forward and backward.
    """
    if plan.ep == 1:
        return []
    each, left = model.experts // plan.ep, 0
    for rank, result in enumerate(results):
        here = rank // plan.tp % plan.ep
        for counts in result.routing_counts("kept"):
            left += sum(counts) - sum(counts[here * each : (here + 1) * each])
    trips = 6 if plan.recompute == "full" else 4
    made = Row(
        "ep_tokens_sent",
        Said("ep tokens sent to experts and back, all ranks", "ep 往返专家的 token 发送量，所有 rank"),
        left * trips * model.hidden * WIDTH[plan.precision],
        sum(graph.bytes_sent(axis="ep", purpose="activations")),
        "GShard 2006.16668 section 3 (Eq 27), as routed",
    )
    return if_counted(graph, [made])


# ---- what a rank holds, and what it computes again ---------------------------------------------------------


def state_rows(plan: Plan, model: ModelConfig, results: Sequence[RankResult]) -> list[Row]:
    """Model states per rank before the optimizer step, summed over ranks (Eq 15)."""
    width = WIDTH[plan.precision]
    moments = 2 if plan.optimizer == "adamw" else 0
    state_width = moments * (4 if plan.has_master else width) + (4 if plan.has_master else 0)
    expected = {"parameters": 0.0, "gradients": 0.0, "optimizer": 0.0}
    for s in range(plan.stages):
        on_gpu = 0 if plan.offload == "optimizer" else state_width
        for experts, padded in _padded(units_of(plan, model, s)).items():
            shards = plan.expert_replicas if experts else plan.shards
            part = zero.predict_state(plan.zero, padded, shards, width, plan.gradient_width, on_gpu)
            expected = {k: v + part[k] * plan.data_ranks * plan.tp for k, v in expected.items()}
    source = "ZeRO 1910.02054 section 3.1 (Eq 15)"
    rows = [
        Row(
            f"{k}_held",
            Said(f"{k} held, all ranks", f"持有的{WHAT[k].zh}，全部 rank"),
            v,
            sum(r.state_bytes[k] for r in results),
            source,
        )
        for k, v in expected.items()
    ]
    return rows + _whole_layer_rows(plan, model, results)


def _whole_layer_rows(plan: Plan, model: ModelConfig, results: Sequence[RankResult]) -> list[Row]:
    """ZeRO-3: how many layers are whole at once. One stage is used at a time and lets its layers go."""
    if plan.zero < 3:
        return []
    key = "layers_whole"
    name = Said("layers whole at once, most of any rank", "同时完整的层数（各 rank 中最多）")
    counted, source = max(r.most_layers for r in results), "FSDP 2304.11277 section 3.3: prefetch + 1"
    if not plan.reshard and plan.virtual_stages > 1:
        why = Said(
            "layers stay whole until backward: how many of a rank's chunks are, the schedule decides",
            "各层保留到反向：一个 rank 上同时有几块完整由调度决定",
        )
        return [not_applicable(key, name, why, source, counted=counted, unit="layers")]
    most = max(zero3.predict_layers(plan, len(layers)) for layers in plan.stage_layers(model))
    return [Row(key, name, most, counted, source, unit="layers")]


def recompute_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, results: Sequence[RankResult]) -> list[Row]:
    """FLOPs that ran again, and bytes kept to start from at the fullest moment, over all ranks (Eq 29)."""
    if plan.recompute == "none":
        return []
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    jumps = model.position in ("relative", "alibi")
    mask = model.causal, model.prefix, jumps
    pairs = sum(ulysses.work(kind, plan.cp, model.seq, model.heads, plan.heads_cut, TILE, *mask))
    # a matrix whose gradient can wait keeps its input when it is done
    spares = _spares(plan, model) and not plan.pipeline.splits
    routers = 1 if plan.sequence_parallel else plan.tp
    flops, kept_by = 0, []
    for layers in plan.stage_layers(model):
        stage = plan.recompute, model, len(layers), plan.recompute_every, plan.micro_batch
        one = recompute.predict_flops(*stage, pairs=pairs, spares=spares, routers=routers, latents=plan.tp)
        flops += one * plan.micro_batches * plan.dp
        width = WIDTH[plan.precision]
        kept_by.append(recompute.predict_checkpoints(*stage, plan.tp, width, plan.pieces, plan.cp))
    schedule = plan.pipeline
    # no norm before it: a segment's input is its first matrix's
    first = plan.recompute == "full" and model.norm_position == "post"
    until = "BW" if first else "BI"
    held = int(sum(schedule.most_held(rank, kept_by, until) for rank in range(plan.pp)))
    if model.experts and plan.recompute == "full":
        # tp ranks send the same rows to the same experts, each with its columns
        kept = sum(sum(counts) for result in results for counts in result.routing_counts("kept"))
        flops += 2 * (kept // plan.tp) * (model.gates + 1) * model.hidden * model.width
    source = "Korthikanti 2205.05198 section 5; Chen 1604.06174 (Eq 29)"
    return [
        Row(
            "flops_recomputed",
            Said("FLOPs computed again, all ranks", "重新计算的 FLOPs，全部 rank"),
            flops,
            int(graph.flops[graph.phase == RECOMPUTE].sum()),
            source,
            unit="FLOPs",
        ),
        Row(
            "checkpoints_held",
            Said("activations kept to start again from, all ranks", "为重算而保留的激活，全部 rank"),
            held * plan.data_ranks * plan.tp,
            sum(r.checkpoint_bytes for r in results),
            source,
        ),
    ]


# ---- when a pipeline's stages work -------------------------------------------------------------------------


def schedule_rows(plan: Plan, timeline: Timeline, results: Sequence[RankResult]) -> list[Row]:
    """Micro-batches in flight (Eq 22), and GPipe's makespan from the stages' own times (Eq 20)."""
    if plan.pp == 1:
        return []
    rows, m = [], plan.micro_batches
    live = predict_live(plan.schedule, plan.pp, m, plan.virtual_stages)
    replicas = plan.data_ranks * plan.tp
    # else a chunk is live until its W, and the graph has no chunks
    whole = plan.schedule in ("gpipe", "1f1b", "eager-1f1b")
    for r in range(plan.pp):
        ranks = range(r * replicas, (r + 1) * replicas)
        unit = "micro-batches" if plan.virtual_stages == 1 else "chunks of micro-batches"
        if plan.virtual_stages == 1:
            name = Said(f"{unit} in flight, stage {r}", f"第 {r} 级在途的微批次")
        else:
            name = Said(f"{unit} in flight, pipeline rank {r}", f"流水线 rank {r} 上在途的微批次分块")
        counted = max(timeline.graph.in_flight(i) if whole else results[i].in_flight for i in ranks)
        rows.append(Row(f"in_flight_{r}", name, live[r], counted, "Eq 22", unit=unit))
    return rows + (_makespan_rows(plan, timeline) if plan.schedule == "gpipe" else [])


def _makespan_rows(plan: Plan, timeline: Timeline) -> list[Row]:
    key = "gpipe_makespan"
    name = Said("GPipe makespan, first F to last B", "GPipe 总时长，首个 F 到最后一个 B")
    source = "Eq 20: sum(f+b) + (m-1)(max f + max b) + 2(p-1)c"
    first, last = timeline.window
    span, predicted = last - first, gpipe_makespan(plan, timeline)
    if isinstance(predicted, Said):
        return [not_applicable(key, name, predicted, source, simulated=span, unit="s", match="virtual")]
    return [Row(key, name, predicted, None, source, simulated=span, unit="s", match="virtual", tolerance=1e-9)]


def gpipe_makespan(plan: Plan, timeline: Timeline) -> float | Said:
    """Eq 20 with f_s, b_s read from the replay; where its terms do not hold, why."""
    if plan.gpus > plan.dp * plan.pp or plan.zero == 3 or plan.ep > 1:
        return Said(
            "a stage also waits for tensor, context, expert or ZeRO-3 partners: Eq 20 knows computing and hops",
            "一级还要等待张量、上下文、专家或 ZeRO-3 的伙伴：Eq 20 只有计算和级间传递",
        )
    graph, forward, backward = timeline.graph, [], []
    for s in range(plan.pp):
        spans = timeline.phase_seconds(s * plan.dp)
        f = [spans["forward", i] for i in range(plan.micro_batches)]
        b = [spans["backward", i] + spans.get(("recompute", i), 0.0) for i in range(plan.micro_batches)]
        if np.ptp(f) > 1e-12 * max(f) or np.ptp(b) > 1e-12 * max(b):
            return Said(
                "a stage does not take the same time for every micro-batch",
                "同一级处理各个微批次的时间不相同",
            )
        forward.append(f[0])
        backward.append(b[0])
    sends = (graph.kind == SEND) & (graph.axis == "pp") & (graph.sequence < 0)
    port = timeline.end[sends] - timeline.start[sends]
    pairs = zip(graph.rank[sends], graph.peer[sends], strict=True)
    links = {timeline.hardware.link(int(r), int(p)) for r, p in pairs}
    if len(links) != 1:
        return Said("hops between stages go over links of several kinds", "级间传递经过多种链路")
    # equal jobs in a flow shop take the sum of all machines plus (m-1) times the slowest: no port may be it
    if port.max() > min(max(forward), max(backward)):
        return Said(
            "sending a micro-batch takes longer than the slowest stage: the port is the bottleneck",
            "发送一个微批次比最慢的一级还久：瓶颈是端口",
        )
    hop = float(port.max()) + links.pop().latency_s
    return gpipe.predict_makespan(forward, backward, plan.micro_batches, hop)
