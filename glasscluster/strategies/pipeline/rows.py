"""What a pipeline promises: bytes between stages, micro-batches in flight, and GPipe's makespan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.base.rows import Row, not_applicable
from glasscluster.base.text import Said
from glasscluster.sim.recording.events import SEND
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.timeline import Timeline
from glasscluster.strategies.layout.judged import Judged, bytes_row
from glasscluster.strategies.layout.units import TIED
from glasscluster.strategies.pipeline.pipeline_parallel import predict_traffic
from glasscluster.strategies.pipeline.schedules import gpipe, predict_live
from glasscluster.strategies.pipeline.schedules.own import is_own

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

PLACE = 40  # in the ledger


def predict(run: Judged) -> list[Row]:
    """Bytes along pp (Eq 21), activations in flight (Eq 22), and when the last stage ends (Eq 20)."""
    if run.plan.pp == 1:
        return []
    return [*_activations(run), *_tied(run), *_in_flight(run), *_makespan(run)]


# ---- bytes sent --------------------------------------------------------------------------------------------
def _activations(run: Judged) -> list[Row]:
    plan, graph = run.plan, run.graph
    if graph is None:
        return []
    b_s, h = plan.micro_batch * run.model.seq, run.model.hidden
    one = predict_traffic(plan.pipeline.hops, plan.micro_batches, b_s, h, plan.width)
    # copies of an activation: it is whole on every tp rank, or a piece of it is on each
    copies = plan.dp * (1 if plan.sequence_parallel else plan.tp)
    if plan.virtual_stages == 1:
        source = "GPipe 1811.06965: 2(p-1)m·bsh"
    else:
        source = "Megatron-LM 2104.04473 section 2.2: 2m·bsh a hop (Eq 21)"
    name = Said("pp activations and their gradients sent, all ranks", "pp 方向发送的激活及其梯度，全部 rank")
    where = graph.where(axis="pp", purpose="activations")
    return [bytes_row(graph, "pp_activations_sent", name, one * copies, where, source)]


def _tied(run: Judged) -> list[Row]:
    """Where the first and the last rank hold a copy each of one table, they add up its gradients."""
    plan, graph, placement = run.plan, run.graph, run.plan.pipeline.placement
    if graph is None or not run.model.tied or placement[0] == placement[-1]:
        return []
    table = next(u for u in run.stages[0] if u.name == TIED)
    # every dp rank sums the whole table, or with ZeRO its shard of it
    shares = plan.data_ranks // (plan.shards if plan.zero else 1)
    predicted = 2 * table.padded * plan.gradient_width * plan.tp * shares
    name = Said("tied embedding gradients sent, all ranks", "共享词嵌入的梯度发送量，全部 rank")
    where = graph.where(label="tied embedding")
    return [bytes_row(graph, "tied_embedding_gradients_sent", name, predicted, where, "Eq 9 with N = 2")]


# ---- when stages work --------------------------------------------------------------------------------------
def _in_flight(run: Judged) -> list[Row]:
    """Eq 22: micro-batches, or chunks of them, whose activations a rank holds at once, at most."""
    plan, graph, results = run.plan, run.graph, run.results
    if graph is None or results is None:
        return []
    live: Sequence[int | None]
    if is_own(plan.schedule):
        live, source = plan.pipeline.validate().peak_live, "counted along the list in the file"
    else:
        live = predict_live(plan.schedule, plan.pp, plan.micro_batches, plan.virtual_stages)
        source = "Eq 22"
    replicas = plan.data_ranks * plan.tp
    # else a chunk is live until its W, and the graph has no chunks
    whole = plan.schedule in ("gpipe", "1f1b", "eager-1f1b")
    unit = "micro-batches" if plan.virtual_stages == 1 else "chunks of micro-batches"
    rows = []
    for r in range(plan.pp):
        ranks = range(r * replicas, (r + 1) * replicas)
        if plan.virtual_stages == 1:
            name = Said(f"{unit} in flight, stage {r}", f"第 {r} 级在途的微批次")
        else:
            name = Said(f"{unit} in flight, pipeline rank {r}", f"流水线 rank {r} 上在途的微批次分块")
        counted = max(graph.in_flight(i) if whole else results[i].in_flight for i in ranks)
        rows.append(Row(f"in_flight_{r}", name, live[r], counted, source, unit=unit))
    return rows


def _makespan(run: Judged) -> list[Row]:
    """Eq 20, of the stages' own times."""
    if run.timeline is None or run.plan.schedule != "gpipe":
        return []
    key = "gpipe_makespan"
    name = Said("GPipe makespan, first F to last B", "GPipe 总时长，首个 F 到最后一个 B")
    source = "Eq 20: sum(f+b) + (m-1)(max f + max b) + 2(p-1)c"
    first, last = run.timeline.window
    span, predicted = last - first, gpipe_makespan(run.plan, run.timeline)
    if isinstance(predicted, Said):
        return [not_applicable(key, name, predicted, source, simulated=span, unit="s", match="virtual")]
    seconds: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    return [Row(key, name, predicted, None, source, simulated=span, **seconds)]


PARTNERS = Said(
    "a stage also waits for tensor, context, expert or ZeRO-3 partners: Eq 20 knows computing and hops",
    "一级还要等待张量、上下文、专家或 ZeRO-3 的伙伴：Eq 20 只有计算和级间传递",
)
UNEQUAL = Said(
    "a stage does not take the same time for every micro-batch", "同一级处理各个微批次的时间不相同"
)
SEVERAL_LINKS = Said("hops between stages go over links of several kinds", "级间传递经过多种链路")
SLOW_PORT = Said(
    "sending a micro-batch takes longer than the slowest stage: the port is the bottleneck",
    "发送一个微批次比最慢的一级还久：瓶颈是端口",
)


def gpipe_makespan(plan: Plan, timeline: Timeline) -> float | Said:
    """Eq 20 with f_s, b_s and the hop c read from the replay; where its terms do not hold, why."""
    if plan.gpus > plan.dp * plan.pp or plan.zero == 3 or plan.ep > 1:
        return PARTNERS
    forward, backward = [], []
    for stage in range(plan.pp):
        spans = timeline.phase_seconds(stage * plan.dp)
        f = [spans["forward", i] for i in range(plan.micro_batches)]
        b = [spans["backward", i] + spans.get(("recompute", i), 0.0) for i in range(plan.micro_batches)]
        if np.ptp(f) > 1e-12 * max(f) or np.ptp(b) > 1e-12 * max(b):
            return UNEQUAL
        forward.append(f[0])
        backward.append(b[0])
    sends = _hops(timeline.graph)
    port = float((timeline.end[sends] - timeline.start[sends]).max())
    pairs = zip(timeline.graph.rank[sends], timeline.graph.peer[sends], strict=True)
    links = {timeline.hardware.link(int(r), int(p)) for r, p in pairs}
    if len(links) != 1:
        return SEVERAL_LINKS
    # equal jobs in a flow shop take the sum of all machines plus (m-1) times the slowest: no port may be it
    if port > min(max(forward), max(backward)):
        return SLOW_PORT
    return gpipe.predict_makespan(forward, backward, plan.micro_batches, port + links.pop().latency_s)


def _hops(graph: ExecutionGraph) -> np.ndarray:
    """Messages between stages; those of collectives, which have a sequence number, are others."""
    return (graph.kind == SEND) & (graph.axis == "pp") & (graph.sequence < 0)
