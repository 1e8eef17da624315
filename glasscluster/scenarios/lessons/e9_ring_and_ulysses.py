"""E9: a long sequence on 8 ranks: rings and Ulysses, what each sends, who works and who waits under a causal mask."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
def inputs(a: int, kv: int, s: int, d: int) -> list[Any]:
    """Q, K, V and the output's gradient: query heads, key heads, tokens, elements of a head."""
    import torch
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, s, d, generator=generator, dtype=torch.float64) for heads in (a, kv, kv, a)]


def program(gpu: Any, kind: str, neighbours: int, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """One causal attention, forward and backward, of this rank's tokens; `neighbours` exchange heads inside a ring of such groups."""
    from glasscluster.model.kernels.flash.operators import flash_attention
    from glasscluster.strategies.context.ulysses import make_context
    cp = gpu.make_mesh({"cp": gpu.size})["cp"]
    groups = (gpu.mesh.inside(cp, neighbours, "ulysses"), gpu.mesh.across(cp, neighbours, "rings")) if neighbours > 1 else ()
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
    import torch
    q, k, v, d_out = (x.requires_grad_() for x in inputs(*shape))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)]


def ring_of(timeline: Any, rank: int) -> tuple[float, int]:
    """A rank's ring, forward: seconds from the first launch to the last arrival, and whole blocks that waited for their keys."""
    g, start, end = timeline.graph, timeline.start, timeline.end
    mine = [(g.names[g.op[r]], r) for r in g.canonical.tolist() if g.rank[r] == rank and g.phase[r] == 1]
    compute = [(op, r) for op, r in mine if op not in ("send", "recv")]
    late = [start[b] > end[a] for (_, a), (op, b) in pairwise(compute) if op.endswith("flash_forward")]
    return max(end[r] for op, r in mine if op == "recv") - min(start[r] for op, r in mine if op == "send"), sum(late[2:])


@lesson(
    "E9",
    title=("Long context: ring vs Ulysses", "上下文并行"),
    topic=("context parallel", "上下文并行"),
    question=("128k tokens, 8 GPUs: which moves less, a ring or Ulysses?", "128k 个 token、8 块 GPU：环与 Ulysses，哪个通信更少？"),
    formula=Formula("Eq 26", "ring 2B(N−1)(s/N)·n_kv·d, Ulysses (N−1)/N·B(s/N)(2a+2n_kv)d elements forward; Eq 6 merges blocks", "X", "2310.01889; 2309.14509"),
    kills=("“Equal tokens are equal work.” Under a causal mask the last piece of a sequence has 2N−1 times the first's pairs: a plain ring waits for its last rank.",
           "“token 一样多，工作量就一样多。”在因果掩码下，序列最后一段的查询-键对数是第一段的 2N−1 倍：普通的环要等最后一个 rank。"),
    card=Card(
        ("A sequence does not fit one GPU. Ring attention or Ulysses?", "一条序列一块 GPU 放不下。用环形注意力还是 Ulysses？"),
        ("Ulysses sends less, but takes at most as many ranks as there are key heads. A ring takes any number and hides its messages behind long blocks; share it out in zigzag.",
         "Ulysses 通信更少，但 rank 数不能超过键值头数。环的 rank 数不限，块够长时通信可被隐藏；切分要用 zigzag。"),
        ("Ring: K and V go round, 2(N−1)(s/N)·n_kv·d elements forward; each block's output is merged by its log-sum-exp (Eq 6). Hidden once a block's products take as long as its message: s/N ≥ (n_kv/a)·w·peak/(2β). Causal: plain pieces are 1 : 2N−1 in work; zigzag gives each rank chunks r and 2N−1−r, striped every N-th token: even. Ulysses: all-to-alls of Q, K, V and the output turn token pieces into head pieces; 4(N−1)/N·(s/N)h for MHA, N/2 times less, but exposed, and N ≤ n_kv. GQA shrinks the ring's K and V by a/n_kv and only half of Ulysses' bytes. Hybrids (USP) exchange heads inside a node, with a ring between nodes.",
         "环：K、V 绕行一圈，前向 2(N−1)(s/N)·n_kv·d 个元素；各块输出用 log-sum-exp 合并（Eq 6）。当一块的计算不短于其消息时可被隐藏：s/N ≥ (n_kv/a)·w·peak/(2β)。因果掩码：普通切分的工作量为 1 : 2N−1；zigzag 给每个 rank 第 r 与第 2N−1−r 块，striped 每隔 N 个取一个 token：均衡。Ulysses：对 Q、K、V 与输出做 all-to-all，把按 token 切变成按头切；MHA 为 4(N−1)/N·(s/N)h，少 N/2 倍，但不重叠，且 N ≤ n_kv。GQA 使环的 K、V 减小 a/n_kv 倍，而 Ulysses 只减小一半字节的部分。混合方案（USP）在节点内交换头，节点间用环。"),
        (("Why does zigzag beat striped in tiles?", "分块计算时，为什么 zigzag 优于 striped？"), ("Where do the gradients of K and V travel?", "K 和 V 的梯度如何传递？")),
    ),
)
def ring_and_ulysses(lab: Lab, s: int = 2048, d: int = 8) -> None:
    """One causal attention of a sequence on 8 ranks: rings in three layouts, Ulysses and a hybrid, with 16 query and 8 key heads."""
    import numpy as np

    from glasscluster.model.kernels.flash.tiles import TILE
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.context import context_parallel, ulysses
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.causal import Shared, causal_figure
    from glasscluster.visualize.figures.plots import bars

    n, a, kv, each, machine, far = 8, 16, 8, s // 8, hardware(lab.hardware), hardware("dgx-h100")
    ways = {"ring": ("ring", 1, ("Ring, plain pieces", "环，普通切分")), "striped": ("striped", 1, ("Ring, striped", "环，striped 切分")),
            "zigzag": ("zigzag", 1, ("Ring, zigzag", "环，zigzag 切分")), "ulysses": ("ulysses", 1, ("Ulysses", "Ulysses 交换头")),
            "hybrid": ("zigzag", 2, ("Hybrid: heads in pairs, zigzag ring of 4", "混合：两两交换头，4 组 zigzag 环"))}
    runs = {k: lab.run(k, title, program, kind, u, (a, kv, s, d), gpus=n) for k, (kind, u, title) in ways.items()}
    every = {k: lab.cluster(n).run(program, k, 1, (a, a, s, d)) for k in ("ring", "ulysses")}  # multi-head: as many key heads
    shapes, pairs = [(k, ways[k], kv, r) for k, r in runs.items()] + [(f"{k}, MHA", ways[k], a, r) for k, r in every.items()], {}
    truth, apart, uneven, busy = {heads: one_device((a, heads, s, d)) for heads in (kv, a)}, [0.0], 0, 0
    for name, (kind, u, _), heads, run in shapes:
        graph, said, tiles = run.graph, ulysses.predict(kind, n, 1, s, a, heads, d, 8, u), ulysses.work(kind, n, s, a, u, TILE)
        apart += [float((x - y[:, :, r["positions"]]).abs().max()) for r in run.results for x, y in zip(r["tensors"], truth[heads], strict=True)]
        sent, kernels = graph.bytes_sent(), np.isin(graph.op, [i for i, o in enumerate(graph.names) if "flash_" in o])
        flops = np.bincount(graph.rank[kernels], graph.flops[kernels], n).tolist()
        lab.check(f"{name}: sent by rank 0, forward and backward", said["forward"] + said["backward"], sent[0], "Eq 26")
        lab.check(f"{name}: FLOPs of attention, rank {n - 1}", 14 * d * tiles[-1], flops[-1], "2 products forward, 5 backward, of whole tiles", unit="FLOPs")
        uneven, busy = uneven + sum(x != sent[0] for x in sent), busy + sum(x != 14 * d * t for x, t in zip(flops, tiles, strict=True))
        pairs[name] = ulysses.work(kind, n, s, a, u) if u > 1 or kind == "ulysses" else [a * sum(p + 1 for p in r["positions"]) for r in run.results]
    lab.check("ranks that sent other bytes, all runs", 0, uneven, "Eq 26", unit="ranks")
    lab.check("ranks with other FLOPs than the layout's, all runs", 0, busy, "work in whole tiles", unit="ranks")
    lab.check("largest difference of output and gradients from one device", 0, max(apart), "torch's attention, float64", unit="absolute", tolerance=1e-12)
    plain, striped, zigzag = (pairs[k] for k in context_parallel.KINDS)
    lab.check("plain ring: pairs of the last rank over the first's, to 2N−1", (2 * (n - 1) * each + each + 1) / (each + 1), plain[-1] / plain[0], "r n² + n(n+1)/2", unit="×", tolerance=1e-12)
    lab.check("striped: most pairs less fewest, a row a block", (n - 1) * each * a, max(striped) - min(striped), "(N−1) n pairs a head", unit="pairs")
    lab.check("zigzag: most pairs less fewest", 0, max(zigzag) - min(zigzag), "each rank has chunks r and 2N−1−r", unit="pairs")
    (took, late), one = ring_of(every["ring"].timeline, n - 1), 2 * each * a * d * 8  # bytes of K and V of a rank, multi-head
    lab.check("MHA ring: first launch to last arrival", (n - 1) * (machine.intra.alpha + one / machine.intra.bandwidth), None, "N−1 hops, none hidden", simulated=took, unit="s", match="virtual", tolerance=1e-9)
    for name, heads, found in (("MHA", a, late), ("GQA", kv, ring_of(runs["ring"].timeline, n - 1)[1])):
        hides = context_parallel.hidden(n, 1, s, a, heads, d, 8, machine.gpu.peak("fp64"), machine.intra.bandwidth)
        lab.check(f"{name} ring: whole blocks that wait for their keys, rank {n - 1}", 0 if hides else n - 2, found, "Eq 26: block FLOPs ÷ peak ≥ block bytes ÷ β", unit="blocks")
    model, taken = make_model("tiny", hidden=a * d, heads=a, kv_heads=kv, seq=s), []
    for ranks in (2, 4, 8, 16, 32):
        with suppress(InputError):
            make_plan(cp=ranks, context="ulysses").check(model)
            taken.append(ranks)
    lab.check("most ranks that Ulysses takes", kv, max(taken), "whole key heads are exchanged: N ≤ n_kv", unit="ranks")
    forward = {k: [ulysses.predict(ways[k][0], n, 1, s, a, h, d, 8, ways[k][1])["forward"] for h in (a, kv)] for k in ways}
    counted = {k: int(r.graph.bytes_sent(label="keys and values")[0]) if k == "ring" else r.graph.bytes_sent()[0] // 2 for k, r in every.items()}
    ratio = counted["ring"] / counted["ulysses"]
    lab.check("forward, MHA: the ring's bytes over Ulysses', N/2", n / 2, ratio, "Eq 26", unit="×")
    lab.ask("Multi-head attention, 8 GPUs, forward: how many times Ulysses' bytes does a ring send?",
            "多头注意力、8 块 GPU、前向：环的通信字节数是 Ulysses 的多少倍？", ratio, "×")
    names = {"en": ("plain", "striped", "zigzag"), "zh": ("普通切分", "striped 切分", "zigzag 切分")}
    drawn = {"ring": [r for r in range(n) for _ in range(2)], "striped": [*range(n), *range(n)], "zigzag": [*range(n), *reversed(range(n))]}
    lab.figure((f"Who computes what: the mask of 16 tokens, coloured by the query's rank; below, every rank's pairs in this run (s = {s})",
                f"谁计算什么：16 个 token 的掩码，按查询所属 rank 着色；下方为本次运行（s = {s}）各 rank 的查询-键对"),
               lambda lang: causal_figure([Shared(t, drawn[k], pairs[k]) for k, t in zip(drawn, names[lang], strict=True)], lang))
    big = {k: [ulysses.predict(ways[k][0], n, 1, 131072, 32, h, 128, 2, ways[k][1]) for h in (32, 8)] for k in ("ring", "hybrid", "ulysses")}
    giga = {k: [(x["forward"] + x["backward"]) / 1e9 for x in two] for k, two in big.items()}
    axes = {"en": ("ring (any layout)", "hybrid 2 × 4", "Ulysses", "32 key heads (MHA)", "8 key heads (GQA)", "GB per GPU and layer"),
            "zh": ("环（任何切分）", "混合 2 × 4", "Ulysses", "32 个键值头（MHA）", "8 个键值头（GQA）", "每 GPU 每层 GB")}
    lab.figure(("By the same formula: 131072 tokens on 8 GPUs, 32 heads of 128, bf16: sent forward and backward", "同一公式：131072 个 token、8 块 GPU、32 个 128 维的头、bf16：前向加反向的发送量"),
               lambda lang: bars(axes[lang][:3], {axes[lang][3 + i]: [g[i] for g in giga.values()] for i in (0, 1)}, axes[lang][5]))
    share, ms = ({k: runs[k].timeline.summary()[what] * unit for k in runs} for what, unit in (("bubble_fraction", 1), ("makespan_s", 1e3)))
    needs = [h / 32 * 2 * far.gpu.peak("bf16") / (2 * b) for h, b in ((32, far.intra.bandwidth), (32, far.inter.bandwidth), (8, far.inter.bandwidth))]
    lab.tell(f"Forward, MHA: the ring sends {ratio:.4g} times Ulysses' bytes, counted; with 8 key heads for 16 query heads {forward['ring'][1] / forward['ulysses'][1]:.4g} times.",
             f"前向，MHA：环的字节数是 Ulysses 的 {ratio:.4g} 倍（计数所得）；16 个查询头共用 8 个键值头时为 {forward['ring'][1] / forward['ulysses'][1]:.4g} 倍。", "tab=network&run=ulysses")
    lab.tell(f"128k tokens: {giga['ring'][0]:.3g} GB against {giga['ulysses'][0]:.3g} GB a layer for MHA, {giga['ring'][1]:.3g} against {giga['ulysses'][1]:.3g} for GQA. More than half of the ring's is dK and dV in fp32.",
             f"128k token：MHA 每层 {giga['ring'][0]:.3g} GB 对 {giga['ulysses'][0]:.3g} GB，GQA 为 {giga['ring'][1]:.3g} 对 {giga['ulysses'][1]:.3g}。环的字节中有一半以上是 fp32 的 dK 和 dV。")
    lab.tell(f"Plain pieces: the last rank has {plain[-1] / plain[0]:.3g} times the first's pairs, and ranks idle {share['ring']:.0%} of the time; zigzag {share['zigzag']:.0%}.",
             f"普通切分：最后一个 rank 的查询-键对是第一个的 {plain[-1] / plain[0]:.3g} 倍，各 rank 有 {share['ring']:.0%} 的时间空闲；zigzag 为 {share['zigzag']:.0%}。", "tab=timeline&run=ring")
    lab.tell(f"Zigzag takes {ms['zigzag']:.3g} ms, striped {ms['striped']:.3g}: striped blocks are all triangles, whose diagonal tiles are computed whole.",
             f"zigzag 用时 {ms['zigzag']:.3g} ms，striped 为 {ms['striped']:.3g}：striped 的块全是三角形，对角线上的分块要整块计算。", "tab=timeline&run=striped")
    lab.tell(f"On {lab.hardware} a block of {each} tokens hides its message with GQA, not with MHA: {late} of {n - 2} whole blocks wait there.",
             f"在 {lab.hardware} 上，{each} 个 token 的块在 GQA 时能隐藏消息，MHA 时不能：有 {late}/{n - 2} 个整块在等待。", "tab=timeline&run=ring")
    lab.tell(f"On dgx-h100 a bf16 MHA block must have {needs[0]:,.0f} tokens inside a node and {needs[1]:,.0f} between nodes; with GQA 32/8, {needs[2]:,.0f}. 128k on 8 GPUs give 16,384.",
             f"在 dgx-h100 上，bf16 的 MHA 块在节点内需 {needs[0]:,.0f} 个 token，节点间需 {needs[1]:,.0f} 个；GQA 32/8 时为 {needs[2]:,.0f} 个。128k token 分到 8 块 GPU 是 16,384 个。")
    lab.conclude(f"Ulysses moves {ratio:.3g} times less for MHA; a plain causal ring idles {share['ring']:.0%}, zigzag {share['zigzag']:.0%}.",
                 f"MHA 时 Ulysses 的通信少 {ratio:.3g} 倍；普通的因果环空闲 {share['ring']:.0%}，zigzag 空闲 {share['zigzag']:.0%}。")
    lab.explain("The ring sends all keys past every rank; Ulysses sends each rank only its share of heads. But heads run out, and its exchanges are not hidden.",
                "环让所有的键经过每个 rank；Ulysses 只把各自那份头送到对应 rank。但头数有限，且其交换没有被隐藏。",
                ("A rank's bytes do not shrink with N in a ring: (N−1)/N of all keys; Ulysses' do.", "环中每个 rank 的字节不随 N 减少：是全部键的 (N−1)/N；Ulysses 会减少。"),
                ("A causal mask gives late tokens more pairs: pair early pieces with late ones.", "因果掩码使靠后的 token 对数更多：把靠前与靠后的片段配对。"))
    lab.own_number(f"{ratio:.3g}× the bytes; {plain[-1] / plain[0]:.3g}× the work on the last rank.", f"字节数 {ratio:.3g} 倍；最后一个 rank 的工作量 {plain[-1] / plain[0]:.3g} 倍。")
