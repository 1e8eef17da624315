"""E9: a long sequence on 8 ranks: rings and Ulysses, what each sends, and who works and who waits under a
causal mask.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from glasscluster.base.errors import InputError
from glasscluster.model.kernels.flash.operators import flash_attention
from glasscluster.model.kernels.flash.tiles import TILE
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.context import context_parallel, ulysses
from glasscluster.strategies.context.ulysses import make_context
from glasscluster.strategies.layout.tokens import KINDS, work
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.causal import Shared, causal_figure
from glasscluster.visualize.figures.plots import bars


def inputs(a: int, kv: int, s: int, d: int) -> list[Any]:
    """Q, K, V and the output's gradient for a shape: query heads, key heads, tokens, elements of a head."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, s, d, generator=generator, dtype=torch.float64) for heads in (a, kv, kv, a)]


def program(gpu: Any, kind: str, neighbours: int, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Run one causal attention, forward and backward, on this rank's tokens.

    `neighbours` ranks exchange heads, and a ring connects such groups.
    """
    cp = gpu.make_mesh({"cp": gpu.size})["cp"]
    groups: tuple[Any, ...] = ()
    if neighbours > 1:
        groups = (gpu.mesh.inside(cp, neighbours, "ulysses"), gpu.mesh.across(cp, neighbours, "rings"))
    context = make_context(kind, cp, *groups)
    with gpu.unrecorded():
        q, k, v, d_out = (context.cut(x, 2).clone().requires_grad_() for x in inputs(*shape))
    with gpu.region("forward", layer=0, micro_batch=0):
        out = context.attend(flash_attention, q, k, v)
    with gpu.region("backward", layer=0, micro_batch=0):
        out.backward(d_out)
    return {"positions": list(context.positions(shape[2])), "tensors": [out.detach(), q.grad, k.grad, v.grad]}


def one_device(shape: tuple[int, int, int, int]) -> list[Any]:
    """The output and gradients of torch's own attention on one device."""
    q, k, v, d_out = (x.requires_grad_() for x in inputs(*shape))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)]


def ring_of(timeline: Any, rank: int) -> tuple[float, int]:
    """A rank's ring in forward: seconds from the first launch to the last arrival, and the number of whole
    blocks that waited for their keys.
    """
    g, start, end = timeline.graph, timeline.start, timeline.end
    mine = [(g.names[g.op[r]], r) for r in g.canonical.tolist() if g.rank[r] == rank and g.phase[r] == 1]
    compute = [(op, r) for op, r in mine if op not in ("send", "recv")]
    late = [start[b] > end[a] for (_, a), (op, b) in pairwise(compute) if op.endswith("flash_forward")]
    arrived = max(end[r] for op, r in mine if op == "recv")
    launched = min(start[r] for op, r in mine if op == "send")
    return arrived - launched, sum(late[2:])


N, HEADS, KEY_HEADS = 8, 16, 8  # ranks; query heads; key heads (as many as query heads: MHA)
WAYS = {  # kind of context parallelism, and how many neighbours exchange heads
    "ring": ("ring", 1),
    "striped": ("striped", 1),
    "zigzag": ("zigzag", 1),
    "ulysses": ("ulysses", 1),
    "hybrid": ("zigzag", 2),
}
LAYOUTS = {  # who has which of 16 tokens, in the figure
    "ring": [rank for rank in range(N) for _ in range(2)],
    "striped": [*range(N), *range(N)],
    "zigzag": [*range(N), *reversed(range(N))],
}


@lesson
def ring_and_ulysses(lab: Lab, s: int = 2048, d: int = 8) -> None:
    """One causal attention of a sequence on 8 ranks: rings in three layouts, Ulysses and a hybrid, with 16
    query and 8 key heads.
    """
    gqa, mha = (HEADS, KEY_HEADS, s, d), (HEADS, HEADS, s, d)
    runs = {way: lab.run(way, lab.text(f"title_{way}"), program, *WAYS[way], gqa, gpus=N) for way in WAYS}
    every = {way: lab.cluster(N).run(program, *WAYS[way], mha) for way in ("ring", "ulysses")}
    pairs = check_runs(lab, runs, every, gqa, mha)
    check_balance(lab, pairs, s // N)
    late = check_hiding(lab, runs["ring"], every["ring"], s, d)
    check_most_ranks(lab, s, d)
    sent = {way: forward_sent(way, run) for way, run in every.items()}
    ratio = sent["ring"] / sent["ulysses"]
    lab.row("bytes_over_ulysses", N / 2, ratio, "Eq 26", unit="×")
    times_gqa = forward_sent("ring", runs["ring"]) / forward_sent("ulysses", runs["ulysses"])
    expected = N * KEY_HEADS / (HEADS + KEY_HEADS)
    lab.row("bytes_over_ulysses_gqa", expected, times_gqa, "Eq 26", unit="×")
    check_half(lab, mha, sent)

    lab.ask("ratio", ratio, N=N)

    def who_computes(lang: str) -> Any:
        words = {"ring": "plain", "striped": "striped", "zigzag": "zigzag"}
        shared = [Shared(lab.word(words[way], lang), LAYOUTS[way], pairs[way]) for way in LAYOUTS]
        return causal_figure(shared, lang)

    lab.figure("who_computes", who_computes, s=s)
    giga = {
        way: {kind: sent_long(way, h) for kind, h in LONG_HEADS.items()}
        for way in ("ring", "hybrid", "ulysses")
    }

    def long(lang: str) -> Any:
        series = {lab.word(kind, lang): [by_kind[kind] for by_kind in giga.values()] for kind in LONG_HEADS}
        return bars([lab.word(way, lang) for way in giga], series, lab.word("gigabytes", lang))

    lab.figure("long", long)
    lab.tell("forward", view="tab=network&run=ulysses", ratio=ratio, times_gqa=times_gqa)
    sizes: dict[str, Any] = {f"{way}_{kind}": giga[way][kind] for way in every for kind in LONG_HEADS}
    lab.tell("long", **sizes)
    shares: dict[str, Any] = {
        f"share_{way}": runs[way].timeline.idle_fraction() for way in ("ring", "zigzag")
    }
    last_over_first = pairs["ring"][-1] / pairs["ring"][0]
    lab.tell("plain", view="tab=timeline&run=ring", last_over_first=last_over_first, **shares)
    times: dict[str, Any] = {
        f"{way}_ms": runs[way].timeline.summary()["makespan_s"] * 1e3 for way in ("zigzag", "striped")
    }
    lab.tell("zigzag", view="tab=timeline&run=striped", **times)
    hiding: dict[str, Any] = {"each": s // N, "late": late, "hidden_hops": N - 2}
    lab.tell("hiding", view="tab=timeline&run=ring", hardware=lab.hardware, **hiding)
    lab.tell("needs", **tokens_that_hide(), have=LONG // N)
    lab.conclude(ratio=ratio, **shares)
    lab.explain()
    lab.card(times_gqa=times_gqa)
    lab.own_number(ratio=ratio, last_over_first=last_over_first)


LONG, LONG_HEADS = 131072, {"mha": 32, "gqa": 8}  # tokens of the long sequence, and its key heads


def check_runs(lab: Lab, runs: Any, every: Any, gqa: Any, mha: Any) -> dict[str, list[int]]:
    """Check bytes, FLOPs and results of every run; returns the query-key pairs of every rank."""
    shapes = [(way, way, gqa, run) for way, run in runs.items()]
    shapes += [(f"{way}, MHA", way, mha, run) for way, run in every.items()]
    truth = {shape: one_device(shape) for shape in (gqa, mha)}
    difference, other_bytes, other_flops, pairs = 0.0, 0, 0, {}
    for name, way, shape, run in shapes:
        (kind, neighbours), (a, heads, s, d) = WAYS[way], shape
        theory = ulysses.predict_traffic(kind, N, 1, s, a, heads, d, 8, neighbours)
        sent = run.graph.bytes_sent()
        lab.row("sent", theory["forward"] + theory["backward"], sent[0], "Eq 26", name=name)
        other_bytes += sum(x != sent[0] for x in sent)
        tiles, flops = work(kind, N, s, a, neighbours, TILE), flops_of_attention(run.graph)
        source = "2 products forward, 5 backward, of whole tiles"
        lab.row("flops", 14 * d * tiles[-1], flops[-1], source, unit="FLOPs", name=name, hops=N - 1)
        other_flops += sum(x != 14 * d * t for x, t in zip(flops, tiles, strict=True))
        difference = max(difference, largest_difference(run.results, truth[shape]))
        if neighbours > 1 or kind == "ulysses":
            pairs[name] = work(kind, N, s, a, neighbours)
        else:
            pairs[name] = [a * sum(position + 1 for position in rank["positions"]) for rank in run.results]
    lab.row("ranks_with_other_bytes", 0, other_bytes, "Eq 26", unit="ranks")
    lab.row("ranks_with_other_flops", 0, other_flops, "work in whole tiles", unit="ranks")
    lab.row("apart", 0, difference, "torch's attention, float64", unit="absolute", tolerance=1e-12)
    return pairs


def flops_of_attention(graph: Any) -> list[int]:
    """The FLOPs of the flash kernels, by rank."""
    kernels = np.isin(graph.op, [i for i, name in enumerate(graph.names) if "flash_" in name])
    return np.bincount(graph.rank[kernels], graph.flops[kernels], N).tolist()


def largest_difference(results: list[dict[str, Any]], truth: list[Any]) -> float:
    """The largest difference of outputs and gradients from one device's, over all ranks."""
    worst = 0.0
    for rank in results:
        for ours, theirs in zip(rank["tensors"], truth, strict=True):
            worst = max(worst, float((ours - theirs[:, :, rank["positions"]]).abs().max()))
    return worst


def check_balance(lab: Lab, pairs: dict[str, list[int]], each: int) -> None:
    """Check the query-key pairs of each rank in the three layouts of a ring."""
    plain, striped, zigzag = (pairs[kind] for kind in KINDS)
    expected, source = (2 * (N - 1) * each + each + 1) / (each + 1), "r n² + n(n+1)/2"
    lab.row("plain", expected, plain[-1] / plain[0], source, unit="×", tolerance=1e-12)
    uneven = max(striped) - min(striped)
    lab.row("striped", (N - 1) * each * HEADS, uneven, "(N−1) n pairs a head", unit="pairs")
    uneven = max(zigzag) - min(zigzag)
    lab.row("zigzag", 0, uneven, "each rank has chunks r and 2N−1−r", unit="pairs")


def check_hiding(lab: Lab, gqa: Any, mha: Any, s: int, d: int) -> int:
    """Check how long the ring's messages take, and how many blocks wait for their keys; returns those
    of MHA.
    """
    machine = hardware(lab.hardware)
    link, peak = machine.intra, machine.gpu.peak("fp64")
    took, late = ring_of(mha.timeline, N - 1)
    block = 2 * (s // N) * HEADS * d * 8  # bytes of K and V of a rank, multi-head
    seconds, source = (N - 1) * (link.alpha + block / link.bandwidth), "N−1 hops, none hidden"
    virtual: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    lab.row("ring_time", seconds, None, source, simulated=took, **virtual)
    _, late_gqa = ring_of(gqa.timeline, N - 1)
    source = "Eq 26: block FLOPs ÷ peak ≥ block bytes ÷ β"
    for name, heads, waited in (("MHA", HEADS, late), ("GQA", KEY_HEADS, late_gqa)):
        overlaps = context_parallel.hops_overlap(N, 1, s, HEADS, heads, d, 8, peak, link.bandwidth)
        names: dict[str, Any] = {"name": name, "hops": N - 1}
        lab.row("blocks_that_wait", 0 if overlaps else N - 2, waited, source, unit="blocks", **names)
    return late


def check_most_ranks(lab: Lab, s: int, d: int) -> None:
    """Check how many ranks Ulysses takes before a plan is refused."""
    model, taken = make_model("tiny", hidden=HEADS * d, heads=HEADS, kv_heads=KEY_HEADS, seq=s), []
    for ranks in (2, 4, 8, 16, 32):
        with suppress(InputError):
            make_plan(cp=ranks, context="ulysses").check(model)
            taken.append(ranks)
    lab.row("most_ranks", KEY_HEADS, max(taken), "whole key heads are exchanged: N ≤ n_kv", unit="ranks")


def forward_sent(way: str, run: Any) -> int:
    """The bytes that rank 0 of a run really sent in forward."""
    if way == "ulysses":  # backward exchanges the same four tensors the other way round
        return int(run.graph.bytes_sent()[0]) // 2
    return int(run.graph.bytes_sent(label="keys and values")[0])


def check_half(lab: Lab, mha: Any, sent: dict[str, int]) -> None:
    """Check what a rank sends where half as many ranks share out the same sequence."""
    few = N // 2
    theory = {"ring": (few - 1) / few, "ulysses": (few - 1) / few**2}
    whole = {"ring": (N - 1) / N, "ulysses": (N - 1) / N**2}
    for way, bytes_of_all in sent.items():
        run = lab.cluster(few).run(program, *WAYS[way], mha)
        ratio, expected = forward_sent(way, run) / bytes_of_all, theory[way] / whole[way]
        lab.row(f"{way}_of_half", expected, ratio, "Eq 26", unit="×", tolerance=1e-12)


def sent_long(way: str, heads: int) -> float:
    """The GB that a GPU sends for a layer of 131072 tokens with 32 heads of 128 in bf16, forward and
    backward.
    """
    kind, neighbours = WAYS[way]
    theory = ulysses.predict_traffic(kind, N, 1, LONG, 32, heads, 128, 2, neighbours)
    return (theory["forward"] + theory["backward"]) / 1e9


def tokens_that_hide() -> dict[str, Any]:
    """The fewest tokens a rank at which a block's computation hides the next one's message, on H100s in
    bf16.
    """
    far = hardware("dgx-h100")
    cases = {"one": (32, far.intra), "two": (32, far.inter), "three": (8, far.inter)}
    peak = far.gpu.peak("bf16")
    return {
        f"need_{name}": heads / 32 * 2 * peak / (2 * link.bandwidth) for name, (heads, link) in cases.items()
    }
