"""The accounts: what the papers' formulas say beside what was counted, row by row.

The predicted side is computed here from plan and shapes; the counted side comes from the graph and the memory
ledger, which know no formula. Where theory is exact the two must be equal, not close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from glasscluster.model.config import ModelConfig
from glasscluster.model.flash_attention import TILE
from glasscluster.model.gpt import GPTStage
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


def row(
    name: str,
    predicted: float | None,
    counted: float | None,
    source: str,
    *,
    simulated: float | None = None,
    unit: str = "bytes",
    match: str = "exact",
    tolerance: float = 0.0,
) -> dict[str, Any]:
    """One ledger row; it holds when predicted and the other side differ by at most `tolerance` (relative, if virtual)."""
    other = simulated if match == "virtual" else counted
    if predicted is None or other is None:
        ok = True
    elif match == "virtual":
        ok = abs(predicted - other) <= tolerance * abs(predicted)
    else:
        ok = abs(predicted - other) <= tolerance
    return {
        "name": name,
        "ok": bool(ok),
        "predicted": predicted,
        "counted": counted,
        "simulated": simulated,
        "measured": None,
        "unit": unit,
        "match": match,
        "tolerance": tolerance,
        "source": source,
    }


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
    shape = GPTStage(
        model, plan.stage_layers(model)[stage], first, last, _Place(plan), dtype=DTYPES[plan.precision], device=torch.device("meta")
    )
    apart = {TIED} if model.tied and plan.stages > 1 and (first or last) else set()
    if plan.zero == 3:
        return by_module(shape, plan.padding, apart)
    return by_bucket(shape, plan.bucket_limits, plan.padding, apart)


# ---- bytes along every axis ---------------------------------------------------------------------------------------


def traffic_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, skipped: bool = False) -> list[dict[str, Any]]:
    """Bytes sent, summed over ranks, by axis and purpose (F9, F16, F18, F19). `skipped`: there was no update."""
    if graph.has_native:
        return []
    width, tokens = WIDTH[plan.precision], plan.micro_batch * model.seq
    m, rows = plan.micro_batches, []
    stages = [units_of(plan, model, s) for s in range(plan.stages)]
    if plan.data_ranks > 1:
        rows += _data_rows(plan, graph, stages, width, skipped)
    if plan.tp > 1:
        rows += _tensor_rows(plan, model, graph, m, tokens, width)
    if plan.cp > 1:
        rows += _context_rows(plan, model, graph, m, width)
    if plan.pp > 1:
        copies = plan.dp * (1 if plan.sequence_parallel else plan.tp)  # of an activation: whole on every tp rank, or a piece on each
        schedule = plan.pipeline
        expected_pp = pipeline_parallel.predict_traffic(schedule.hops, m, tokens, model.hidden, width) * copies
        counted_pp = sum(graph.bytes_sent(axis="pp", purpose="activations"))
        source = "GPipe 1811.06965: 2(p-1)m·bsh" if plan.virtual_stages == 1 else "Megatron-LM 2104.04473 section 2.2: 2m·bsh a hop (F21)"
        rows.append(row("pp activations and their gradients sent, all ranks", expected_pp, counted_pp, source))
        if model.tied and schedule.placement[0] != schedule.placement[-1]:
            table = next(u for u in stages[0] if u.name == TIED)
            shares = plan.data_ranks // (
                plan.shards if plan.zero else 1
            )  # every dp rank sums the whole table, or with ZeRO its shard of it
            expected_tied = 2 * table.padded * plan.gradient_width * plan.tp * shares
            rows.append(
                row(
                    "tied embedding gradients sent, all ranks",
                    expected_tied,
                    sum(graph.bytes_sent(label="tied embedding")),
                    "F9 with N = 2",
                )
            )
    return rows


def _padded(units: Sequence[Unit]) -> dict[bool, int]:
    """Elements of a rank's units, padding included: of experts (True) and of everything else."""
    return {experts: sum(u.padded for u in units if u.experts == experts) for experts in (False, True)}


def _data_rows(plan: Plan, graph: ExecutionGraph, stages: Sequence[Sequence[Unit]], width: int, skipped: bool) -> list[dict[str, Any]]:
    hybrid = plan.zero > 0 and plan.shards < plan.data_ranks
    theory: dict[str, float] = dict.fromkeys(("gradients", "parameters", "across"), 0)
    for experts, padded in _padded([u for units in stages for u in units]).items():
        if plan.zero:
            part: dict[str, float] = dict(zero.predict_traffic(plan, padded, width, experts))
            source = "ZeRO 1910.02054 section 7 (F16)"
        else:
            ranks = plan.expert_replicas if experts else plan.data_ranks  # and there are as many such groups as do not hold the same
            whole = data_parallel.predict(padded, ranks, plan.gradient_width)
            part = {"gradients": whole["gradients_bytes_total"] * (plan.data_ranks // ranks)}
            source = "Patarasuk-Yuan 2009 (F9); ZeRO section 7.1"
        theory = {k: v + part.get(k, 0) for k, v in theory.items()}
    if skipped and plan.zero < 3:
        theory["parameters"] = 0
    across = sum(graph.bytes_sent(purpose="gradients", group=GROUP_IDS["replicas"])) if hybrid else 0
    counted = {p: sum(graph.bytes_sent(axis="dp", purpose=p)) for p in ("gradients", "parameters")}
    counted["gradients"] -= across
    inside = f" inside groups of {plan.shards}" if hybrid else ""
    rows = [row(f"dp {p} sent{inside}, all ranks", theory[p] * plan.tp, counted[p], source) for p in counted]
    if hybrid:
        name = f"dp gradients sent across {plan.data_ranks // plan.shards} groups, all ranks"
        rows.append(row(name, theory["across"] * plan.tp, across, "MiCS 2205.00119, FSDP 2304.11277 section 3.2.2: F9 of every shard"))
    return rows


def host_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, results: Sequence[RankResult]) -> list[dict[str, Any]]:
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
    counted = {op: sum(graph.host_bytes(op)) for op in ("down", "up", "update")} | {"held": sum(r.host_bytes for r in results)}
    names = {
        "down": "gradients moved down to the host",
        "up": "parameters moved up from the host",
        "update": "host memory read and written by the update",
        "held": "optimizer held in host memory",
    }
    return [row(f"{names[k]}, all ranks", theory[k], counted[k], "ZeRO-Offload 2101.06840 sections 3, 4") for k in names]


def overlap_rows(plan: Plan, timeline: Timeline) -> list[dict[str, Any]]:
    """When the last bucket is reduced (F14), where the formula holds."""
    found = overlap.predict(plan, timeline)
    if found is None:
        return []
    name, source = "last bucket reduced", "F14, PyTorch DDP 2006.15704: max(ready, end before) + c along the buckets"
    return [row(name, found[0], None, source, simulated=found[1], unit="s", match="virtual", tolerance=1e-9)]


def _regions(model: ModelConfig) -> int:
    """Pairs of matrices in a layer: attention, MLP or experts, and the expert that every token passes."""
    return 3 if model.experts and model.shared_ffn else 2


def _spares(plan: Plan, model: ModelConfig) -> bool:
    """Whether recomputation of a segment stops before its last matrix's collective. Overlapped, they are one operation."""
    routed_last = bool(model.experts) and not model.shared_ffn
    if model.norm_position != "pre":  # the last norm keeps its input, for which all of the branch runs again
        return False
    return not model.dropout and (plan.tp == 1 or not plan.tp_overlap or routed_last)


def _tensor_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, m: int, tokens: int, width: int) -> list[dict[str, Any]]:
    theory = sequence_parallel if plan.sequence_parallel else tensor_parallel
    regions, spares, full = _regions(model), _spares(plan, model), plan.recompute == "full"
    # a region that does not keep a piece to gather again (three matrices; a router and experts) has one gather less in backward
    per_layer = 5 * regions - (not model.one_gather) - (model.experts > 0) if plan.sequence_parallel else 2 * regions
    totals = {"layer": 0, "embedding": 0, "head": 0, "loss": 0}
    for s, layers in enumerate(plan.stage_layers(model)):
        again = recompute.predict_again(
            plan.recompute, len(layers), plan.recompute_every, regions, spares, 2 if plan.sequence_parallel else 1
        )
        part = theory.predict(len(layers), m, tokens, model.hidden, plan.tp, width, s == 0, s == plan.stages - 1, again, per_layer)
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
    runs_again = " and what runs again" if full else ""
    if plan.sequence_parallel:
        names = {
            "layer": f"{per_layer} per layer{runs_again}",
            "embedding": "embedding, 2",
            "head": "head input, 3",
            "loss": "loss, 3 scalars a token",
        }
        what, source = "tp gathers and scatters sent", "Korthikanti 2205.05198 section 4.2.2 (F18)"
    else:
        names = {
            "layer": f"{per_layer} per layer{runs_again}",
            "embedding": "embedding, once",
            "head": "head input, once",
            "loss": "loss, 3 scalars a token",
        }
        what, source = "tp all-reduces sent", "Megatron-LM 1909.08053 section 3 (F18, F19)"
    rows = [row(f"{what}, {names[k]}", totals[k], int(graph.bytes[chosen[k]].sum()), source) for k in totals]
    if plan.tp > model.key_heads:
        one = tensor_parallel.predict_shared_heads(model.key_heads, model.key_width, plan.tp, tokens, width, 2 + full)
        counted = int(graph.bytes[tp & heads].sum())
        rows.append(
            row(
                "tp keys and values of shared heads sent",
                one * m * model.layers * plan.dp,
                counted,
                "GQA 2305.13245; F10 over tp / kv-heads",
            )
        )
    if model.experts:
        one = (plan.tp - 1) * tokens * model.top_k * max(width, 4) * m * model.layers * plan.dp
        runs = 2 + (full and plan.sequence_parallel)  # an all-reduce backward, or a gather and a scatter
        counted = int(graph.bytes[tp & router].sum())
        rows.append(row("tp weights of the router sent", runs * one, counted, "F9, F10: k numbers a token"))
    return rows + _whole_rows(plan, model, graph)


def _whole_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph) -> list[dict[str, Any]]:
    """Gradients summed over tp once a step: of all that is whole where the sequence is cut, else of what heads share."""
    whole = [x for s in range(plan.stages) for u in units_of(plan, model, s) for x in u.members if x.shard is None]
    if plan.sequence_parallel:
        name, label, source = "norms, biases and positions", "norms, biases, positions", "Korthikanti 2205.05198 section 4.2.2"
    else:
        partial = set().union(*(part.partial for part in GPTStage(model, device=torch.device("meta")).parts()))
        whole = [x for x in whole if x.name in partial]
        name, label, source = "what all heads share", "what all heads share", "F9: each rank has its heads' part"
        if not whole:
            return []
    shares = plan.data_ranks // (plan.shards if plan.zero else 1)  # with ZeRO every dp rank sums what it owns
    expected = 2 * (plan.tp - 1) * sum(x.stop - x.start for x in whole) * plan.gradient_width * shares
    return [row(f"tp gradients of {name} sent", expected, sum(graph.bytes_sent(axis="tp", label=label)), source)]


def _context_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, m: int, width: int) -> list[dict[str, Any]]:
    """F26: what attention sends along cp, summed over ranks."""
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    heads, key_heads = model.heads // plan.tp, max(1, model.key_heads // plan.tp)
    one = ulysses.predict(kind, plan.cp, plan.micro_batch, model.seq, heads, key_heads, model.score_dim, width, plan.heads_cut)
    each = one["forward"] + one["backward"] + {"none": 0, "selective": one["again"], "full": one["forward"]}[plan.recompute]
    counted = sum(graph.bytes_sent(axis="cp", purpose="activations"))
    source = "Ring attention 2310.01889, Ulysses 2309.14509 (F26)"
    return [row("cp keys, values and heads sent, all ranks", each * m * model.layers * plan.gpus // plan.pp, counted, source)]


def expert_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, results: Sequence[RankResult]) -> list[dict[str, Any]]:
    """F27: rows that left for experts elsewhere, given what the routers chose; each goes out and back, forward and backward."""
    if plan.ep == 1 or graph.has_native:
        return []
    each, left = model.experts // plan.ep, 0
    for rank, result in enumerate(results):
        here = rank // plan.tp % plan.ep
        for counts in result.routing_counts("kept"):
            left += sum(counts) - sum(counts[here * each : (here + 1) * each])
    trips = 6 if plan.recompute == "full" else 4
    expected = left * trips * model.hidden * WIDTH[plan.precision]
    counted = sum(graph.bytes_sent(axis="ep", purpose="activations"))
    return [row("ep tokens sent to experts and back, all ranks", expected, counted, "GShard 2006.16668 section 3 (F27), as routed")]


# ---- what a rank holds, and what it computes again ----------------------------------------------------------------


def state_rows(plan: Plan, model: ModelConfig, results: Sequence[RankResult]) -> list[dict[str, Any]]:
    """Model states per rank before the optimizer step, summed over ranks (F15)."""
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
    source = "ZeRO 1910.02054 section 3.1 (F15)"
    rows = [row(f"{k} held, all ranks", v, sum(r.state_bytes[k] for r in results), source) for k, v in expected.items()]
    if plan.zero == 3:
        most = _layers_whole(plan, model)
        counted, source = max(r.most_layers for r in results), "FSDP 2304.11277 section 3.3: prefetch + 1"
        rows.append(row("layers whole at once, most of any rank", most, counted, source, unit="layers"))
    return rows


def _layers_whole(plan: Plan, model: ModelConfig) -> int | None:
    """One stage is used at a time and lets its layers go, unless they are kept: then those of a rank's stages add up."""
    each = [zero3.predict_layers(plan, len(layers)) for layers in plan.stage_layers(model)]
    if plan.reshard or plan.virtual_stages == 1:
        return max(each)
    return None  # how many of a rank's stages are whole at once is the schedule's business


def recompute_rows(plan: Plan, model: ModelConfig, graph: ExecutionGraph, results: Sequence[RankResult]) -> list[dict[str, Any]]:
    """FLOPs that ran again, and bytes kept to start from at the fullest moment, over all ranks (F29)."""
    if plan.recompute == "none":
        return []
    kind = "ulysses" if plan.heads_cut == plan.cp else plan.context
    jumps = model.position in ("relative", "alibi")
    pairs = sum(ulysses.work(kind, plan.cp, model.seq, model.heads, plan.heads_cut, TILE, model.causal, model.prefix, jumps))
    spares = _spares(plan, model) and not plan.pipeline.splits  # a matrix whose gradient can wait keeps its input when it is done
    routers = 1 if plan.sequence_parallel else plan.tp
    flops, kept_by = 0, []
    for layers in plan.stage_layers(model):
        stage = plan.recompute, model, len(layers), plan.recompute_every, plan.micro_batch
        flops += (
            recompute.predict_flops(*stage, pairs=pairs, spares=spares, routers=routers, latents=plan.tp) * plan.micro_batches * plan.dp
        )
        kept_by.append(recompute.predict_checkpoints(*stage, plan.tp, WIDTH[plan.precision], plan.pieces, plan.cp))
    schedule = plan.pipeline
    first = plan.recompute == "full" and model.norm_position == "post"  # no norm before it: a segment's input is its first matrix's
    until = "BW" if first else "BI"
    held = int(sum(schedule.most_held(rank, kept_by, until) for rank in range(plan.pp))) * plan.data_ranks * plan.tp
    if model.experts and plan.recompute == "full":  # tp ranks send the same rows to the same experts, each with its columns
        assignments = sum(sum(counts) for result in results for counts in result.routing_counts("kept")) // plan.tp
        flops += 2 * assignments * (model.gates + 1) * model.hidden * model.width
    ran, source = int(graph.flops[graph.phase == RECOMPUTE].sum()), "Korthikanti 2205.05198 section 5; Chen 1604.06174 (F29)"
    return [
        row("FLOPs computed again, all ranks", flops, ran, source, unit="FLOPs"),
        row("activations kept to start again from, all ranks", held, sum(r.checkpoint_bytes for r in results), source),
    ]


# ---- when a pipeline's stages work --------------------------------------------------------------------------------


def schedule_rows(plan: Plan, timeline: Timeline, results: Sequence[RankResult]) -> list[dict[str, Any]]:
    """Micro-batches in flight (F22), and GPipe's makespan from the stages' own times (F20) where its terms hold."""
    if plan.pp == 1:
        return []
    rows, m = [], plan.micro_batches
    live = predict_live(plan.schedule, plan.pp, m, plan.virtual_stages)
    replicas = plan.data_ranks * plan.tp
    for r in range(plan.pp):
        ranks = range(r * replicas, (r + 1) * replicas)
        unit, name = ("micro-batches", "stage") if plan.virtual_stages == 1 else ("chunks of micro-batches", "pipeline rank")
        whole = plan.schedule in ("gpipe", "1f1b", "eager-1f1b")  # else a chunk is live until its W, and the graph has no chunks
        counted = max(timeline.graph.in_flight(i) if whole else results[i].in_flight for i in ranks)
        rows.append(row(f"{unit} in flight, {name} {r}", live[r], counted, "F22", unit=unit))
    predicted = gpipe_makespan(plan, timeline) if plan.schedule == "gpipe" else None
    if predicted is not None:
        first, last = timeline.window
        rows.append(
            row(
                "GPipe makespan, first F to last B",
                predicted,
                None,
                "F20: sum(f+b) + (m-1)(max f + max b) + 2(p-1)c",
                simulated=last - first,
                unit="s",
                match="virtual",
                tolerance=1e-9,
            )
        )
    return rows


def gpipe_makespan(plan: Plan, timeline: Timeline) -> float | None:
    """F20 with f_s, b_s read from the replay; None off its domain (a stage's time varies, or its port is the bottleneck)."""
    if plan.gpus > plan.dp * plan.pp or plan.zero == 3 or plan.ep > 1:
        return None
    graph, forward, backward = timeline.graph, [], []
    for s in range(plan.pp):
        spans = timeline.phase_seconds(s * plan.dp)
        f = [spans["forward", i] for i in range(plan.micro_batches)]
        b = [spans["backward", i] + spans.get(("recompute", i), 0.0) for i in range(plan.micro_batches)]
        if np.ptp(f) > 1e-12 * max(f) or np.ptp(b) > 1e-12 * max(b):
            return None
        forward.append(f[0])
        backward.append(b[0])
    sends = (graph.kind == SEND) & (graph.axis == "pp") & (graph.sequence < 0)
    port = timeline.end[sends] - timeline.start[sends]
    links = {timeline.hardware.link(int(r), int(p)) for r, p in zip(graph.rank[sends], graph.peer[sends], strict=True)}
    # identical jobs in a flow shop take the sum of all machines plus (m-1) times the slowest: a port must not be that one
    if len(links) != 1 or port.max() > min(max(forward), max(backward)):
        return None
    return gpipe.predict_makespan(forward, backward, plan.micro_batches, float(port.max()) + links.pop().latency_s)
