"""E9: a long sequence on 8 ranks: rings and Ulysses, what each sends, who works and who waits under a causal mask."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from glasscluster.base.errors import InputError
from glasscluster.model.flash_attention import TILE, flash_attention
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.context import context_parallel, ulysses
from glasscluster.strategies.context.ulysses import make_context
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.causal import Shared, causal_figure
from glasscluster.visualize.figures.plots import bars


def inputs(a: int, kv: int, s: int, d: int) -> list[Any]:
    """Q, K, V and the output's gradient: query heads, key heads, tokens, elements of a head."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, s, d, generator=generator, dtype=torch.float64) for heads in (a, kv, kv, a)]


def program(gpu: Any, kind: str, neighbours: int, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """One causal attention, forward and backward, of this rank's tokens; `neighbours` exchange heads inside a ring of such groups."""
    cp = gpu.make_mesh({"cp": gpu.size})["cp"]
    groups = (
        (gpu.mesh.inside(cp, neighbours, "ulysses"), gpu.mesh.across(cp, neighbours, "rings"))
        if neighbours > 1
        else ()
    )
    context = make_context(kind, cp, *groups)
    with gpu.unrecorded():
        q, k, v, d_out = (context.cut(x, 2).clone().requires_grad_() for x in inputs(*shape))
    with gpu.region("forward", layer=0, micro_batch=0):
        out = context.attend(flash_attention, q, k, v)
    with gpu.region("backward", layer=0, micro_batch=0):
        out.backward(d_out)
    return {"positions": list(context.positions(shape[2])), "tensors": [out.detach(), q.grad, k.grad, v.grad]}


def one_device(shape: tuple[int, int, int, int]) -> list[Any]:
    """Output and gradients by torch's own attention."""
    q, k, v, d_out = (x.requires_grad_() for x in inputs(*shape))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)]


def ring_of(timeline: Any, rank: int) -> tuple[float, int]:
    """A rank's ring, forward: seconds from the first launch to the last arrival, and whole blocks that waited for their keys."""
    g, start, end = timeline.graph, timeline.start, timeline.end
    mine = [(g.names[g.op[r]], r) for r in g.canonical.tolist() if g.rank[r] == rank and g.phase[r] == 1]
    compute = [(op, r) for op, r in mine if op not in ("send", "recv")]
    late = [start[b] > end[a] for (_, a), (op, b) in pairwise(compute) if op.endswith("flash_forward")]
    return max(end[r] for op, r in mine if op == "recv") - min(
        start[r] for op, r in mine if op == "send"
    ), sum(late[2:])


@lesson
def ring_and_ulysses(lab: Lab, s: int = 2048, d: int = 8) -> None:
    """One causal attention of a sequence on 8 ranks: rings in three layouts, Ulysses and a hybrid, with 16 query and 8 key heads."""

    n, a, kv, each, machine, far = 8, 16, 8, s // 8, hardware(lab.hardware), hardware("dgx-h100")
    ways = {
        "ring": ("ring", 1, lab.text("ring_plain_pieces")),
        "striped": ("striped", 1, lab.text("ring_striped")),
        "zigzag": ("zigzag", 1, lab.text("ring_zigzag")),
        "ulysses": ("ulysses", 1, lab.text("ulysses_2")),
        "hybrid": ("zigzag", 2, lab.text("hybrid_heads_pairs_zigzag")),
    }
    runs = {
        k: lab.run(k, title, program, kind, u, (a, kv, s, d), gpus=n) for k, (kind, u, title) in ways.items()
    }
    every = {
        k: lab.cluster(n).run(program, k, 1, (a, a, s, d)) for k in ("ring", "ulysses")
    }  # multi-head: as many key heads
    shapes, pairs = (
        [(k, ways[k], kv, r) for k, r in runs.items()]
        + [(f"{k}, MHA", ways[k], a, r) for k, r in every.items()],
        {},
    )
    truth, apart, uneven, busy = {heads: one_device((a, heads, s, d)) for heads in (kv, a)}, [0.0], 0, 0
    for name, (kind, u, _), heads, run in shapes:
        graph, said, tiles = (
            run.graph,
            ulysses.predict(kind, n, 1, s, a, heads, d, 8, u),
            ulysses.work(kind, n, s, a, u, TILE),
        )
        apart += [
            float((x - y[:, :, r["positions"]]).abs().max())
            for r in run.results
            for x, y in zip(r["tensors"], truth[heads], strict=True)
        ]
        sent, kernels = (
            graph.bytes_sent(),
            np.isin(graph.op, [i for i, o in enumerate(graph.names) if "flash_" in o]),
        )
        flops = np.bincount(graph.rank[kernels], graph.flops[kernels], n).tolist()
        lab.row("sent_rank_forward_backward", said["forward"] + said["backward"], sent[0], "F26", name=name)
        lab.row(
            "flops_attention_rank",
            14 * d * tiles[-1],
            flops[-1],
            "2 products forward, 5 backward, of whole tiles",
            unit="FLOPs",
            name=name,
            hops=n - 1,
        )
        uneven, busy = (
            uneven + sum(x != sent[0] for x in sent),
            busy + sum(x != 14 * d * t for x, t in zip(flops, tiles, strict=True)),
        )
        pairs[name] = (
            ulysses.work(kind, n, s, a, u)
            if u > 1 or kind == "ulysses"
            else [a * sum(p + 1 for p in r["positions"]) for r in run.results]
        )
    lab.row("ranks_sent_other_bytes_all_runs", 0, uneven, "F26", unit="ranks")
    lab.row("ranks_other_flops_layout_all_runs", 0, busy, "work in whole tiles", unit="ranks")
    lab.row(
        "largest_difference_output_gradients_device",
        0,
        max(apart),
        "torch's attention, float64",
        unit="absolute",
        tolerance=1e-12,
    )
    plain, striped, zigzag = (pairs[k] for k in context_parallel.KINDS)
    lab.row(
        "plain_ring_pairs_last_rank_over",
        (2 * (n - 1) * each + each + 1) / (each + 1),
        plain[-1] / plain[0],
        "r n² + n(n+1)/2",
        unit="×",
        tolerance=1e-12,
    )
    lab.row(
        "striped_most_pairs_less_fewest_row",
        (n - 1) * each * a,
        max(striped) - min(striped),
        "(N−1) n pairs a head",
        unit="pairs",
    )
    lab.row(
        "zigzag_most_pairs_less_fewest",
        0,
        max(zigzag) - min(zigzag),
        "each rank has chunks r and 2N−1−r",
        unit="pairs",
    )
    (took, late), one = (
        ring_of(every["ring"].timeline, n - 1),
        2 * each * a * d * 8,
    )  # bytes of K and V of a rank, multi-head
    lab.row(
        "mha_ring_first_launch_last_arrival",
        (n - 1) * (machine.intra.alpha + one / machine.intra.bandwidth),
        None,
        "N−1 hops, none hidden",
        simulated=took,
        unit="s",
        match="virtual",
        tolerance=1e-9,
    )
    for name, heads, found in (("MHA", a, late), ("GQA", kv, ring_of(runs["ring"].timeline, n - 1)[1])):
        hides = context_parallel.hidden(
            n, 1, s, a, heads, d, 8, machine.gpu.peak("fp64"), machine.intra.bandwidth
        )
        lab.row(
            "ring_whole_blocks_wait_their_keys",
            0 if hides else n - 2,
            found,
            "F26: block FLOPs ÷ peak ≥ block bytes ÷ β",
            unit="blocks",
            name=name,
            hops=n - 1,
        )
    model, taken = make_model("tiny", hidden=a * d, heads=a, kv_heads=kv, seq=s), []
    for ranks in (2, 4, 8, 16, 32):
        with suppress(InputError):
            make_plan(cp=ranks, context="ulysses").check(model)
            taken.append(ranks)
    lab.row(
        "most_ranks_ulysses_takes", kv, max(taken), "whole key heads are exchanged: N ≤ n_kv", unit="ranks"
    )
    forward = {
        k: [ulysses.predict(ways[k][0], n, 1, s, a, h, d, 8, ways[k][1])["forward"] for h in (a, kv)]
        for k in ways
    }
    counted = {
        k: int(r.graph.bytes_sent(label="keys and values")[0])
        if k == "ring"
        else r.graph.bytes_sent()[0] // 2
        for k, r in every.items()
    }
    ratio = counted["ring"] / counted["ulysses"]
    lab.row("forward_mha_ring_bytes_over_ulysses", n / 2, ratio, "F26", unit="×")
    lab.ask("number", ratio, "×")
    drawn = {
        "ring": [r for r in range(n) for _ in range(2)],
        "striped": [*range(n), *range(n)],
        "zigzag": [*range(n), *reversed(range(n))],
    }
    lab.figure(
        lab.text("who_computes_mask_tokens", s=s),
        lambda lang: causal_figure(
            [
                Shared(t, drawn[k], pairs[k])
                for k, t in zip(
                    drawn,
                    (
                        lab.word("plain", lang),
                        lab.word("striped", lang),
                        lab.word("zigzag", lang),
                    ),
                    strict=True,
                )
            ],
            lang,
        ),
    )
    big = {
        k: [ulysses.predict(ways[k][0], n, 1, 131072, 32, h, 128, 2, ways[k][1]) for h in (32, 8)]
        for k in ("ring", "hybrid", "ulysses")
    }
    giga = {k: [(x["forward"] + x["backward"]) / 1e9 for x in two] for k, two in big.items()}
    lab.figure(
        "same_formula_tokens_gpus",
        lambda lang: bars(
            (
                lab.word("ring_any_layout", lang),
                lab.word("hybrid", lang),
                lab.word("ulysses", lang),
            ),
            {axes[lang][3 + i]: [g[i] for g in giga.values()] for i in (0, 1)},
            lab.word("gb_per_gpu_layer", lang),
        ),
    )
    share, ms = (
        {k: runs[k].timeline.summary()[what] * unit for k in runs}
        for what, unit in (("bubble_fraction", 1), ("makespan_s", 1e3))
    )
    needs = [
        h / 32 * 2 * far.gpu.peak("bf16") / (2 * b)
        for h, b in ((32, far.intra.bandwidth), (32, far.inter.bandwidth), (8, far.inter.bandwidth))
    ]
    lab.tell(
        "forward_mha_ring_sends",
        view="tab=network&run=ulysses",
        ratio=ratio,
        times_mha=forward["ring"][1] / forward["ulysses"][1],
    )
    lab.tell(
        "tokens_gb_against_gb",
        ring_gqa=giga["ring"][0],
        ulysses_gqa=giga["ulysses"][0],
        ring_mha=giga["ring"][1],
        ulysses_mha=giga["ulysses"][1],
    )
    lab.tell(
        "plain_pieces_last_rank",
        view="tab=timeline&run=ring",
        last_over_first=plain[-1] / plain[0],
        share_ring=share["ring"],
        share_zigzag=share["zigzag"],
    )
    lab.tell(
        "zigzag_takes_ms_striped",
        view="tab=timeline&run=striped",
        zigzag_ms=ms["zigzag"],
        striped_ms=ms["striped"],
    )
    lab.tell(
        "block_tokens_hides_message",
        view="tab=timeline&run=ring",
        hardware=lab.hardware,
        each=each,
        late=late,
        hidden_hops=n - 2,
    )
    lab.tell("dgx_h100_bf16_mha", need_one=needs[0], need_two=needs[1], need_three=needs[2])
    lab.conclude(ratio=ratio, share_ring=share["ring"], share_zigzag=share["zigzag"])
    lab.explain()
    lab.own_number(ratio=ratio, last_over_first=plain[-1] / plain[0])
