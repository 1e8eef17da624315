"""A1: multi-head attention by hand, why it divides by the root of d, and what it costs with the length."""

from __future__ import annotations

import math
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

PAIRS, KEYS = 20_000, 256


# fmt: off
def by_hand(x: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, heads: int) -> Any:
    """Multi-head attention of x [b, n, h], every token seeing every other (1706.03762, section 3.2)."""
    q, k, v = (x @ w_in.T + b_in).chunk(3, -1)                                   # [b, n, h] each
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [b, a, n, d]
    scores = q @ k.mT / math.sqrt(q.shape[-1])                                   # [b, a, n, n]
    mixed = scores.softmax(-1) @ v                                               # [b, a, n, d]
    return mixed.transpose(1, 2).flatten(2) @ w_out.T + b_out                    # [b, n, h]


def program(gpu: Any, dims: list[int], lengths: list[int], d: int) -> dict[str, Any]:
    """Scores of random queries and keys for each head size; attention by hand beside torch's; one head's cost at each length."""
    import torch

    from glasscluster.model.layers.attention import unfused_attention

    found: dict[str, Any] = {"variance": [], "entropy": {"divided": [], "raw": []}, "slope": {"divided": [], "raw": []}}
    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        for size in dims:
            q, k = torch.randn(2, PAIRS, size, generator=draw, dtype=torch.float64)
            found["variance"].append(float((q * k).sum(-1).var()))
            q, k = torch.randn(2, KEYS, size, generator=draw, dtype=torch.float64)
            for name, scale in (("divided", size**-0.5), ("raw", 1.0)):
                p = (q @ k.T * scale).softmax(-1)
                found["entropy"][name].append(float(-torch.xlogy(p, p).sum(-1).mean()))
                found["slope"][name].append(float((p * (1 - p)).sum(-1).mean()))  # trace of softmax's Jacobian
        mha = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
        x = torch.randn(2, 10, 32, generator=draw, dtype=torch.float64)
        mine = by_hand(x, mha.in_proj_weight, mha.in_proj_bias, mha.out_proj.weight, mha.out_proj.bias, 4)
        found["apart"] = float((mine - mha(x, x, x, need_weights=False)[0]).abs().max().detach())
    for number, n in enumerate(lengths):
        with gpu.unrecorded():
            q, k, v = torch.randn(3, 1, 1, n, d, generator=draw)
        with gpu.region("forward", layer=0, micro_batch=number):
            unfused_attention(q, k, v, causal=False)
    return found


@lesson(
    "A1",
    title=("Multi-head attention by hand, and why √d", "手写多头注意力，为什么除以√d"),
    topic=("the model", "模型"),
    question=("What happens to softmax without the division by √d, at d = 128?", "d = 128 时不除以 √d，softmax 会怎样？"),
    formula=Formula("Eq 2", "Var(q·k) = d for unit-variance q, k;  first loss ln V (Eq 37);  a head over n tokens: 4n²d FLOPs, n² scores", "T", "1706.03762 §3.2.1"),
    kills=("“√d is a tuning constant.” It is the standard deviation of q·k: dividing by it keeps the logits at variance 1 whatever the head size.",
           "“√d 是个调出来的常数。”它就是 q·k 的标准差：除以它，无论头有多大，logits 的方差都是 1。"),
    card=Card(
        ("Write multi-head attention. Why divide by √d?", "手写多头注意力。为什么要除以 √d？"),
        ("q·k is a sum of d products of variance 1, so its variance is d. Undivided, softmax of such logits is nearly one-hot, and its gradient nearly zero.",
         "q·k 是 d 个方差为 1 的乘积之和，方差为 d。不除的话，这样的 logits 经 softmax 几乎成了独热，梯度几乎为零。"),
        ("Project to Q, K, V; split into a heads of d = h/a; scores QKᵀ/√d; softmax over keys; times V; put heads together; project. The scores cost 2n²d FLOPs a head, the sum over V again 2n²d: O(n²d), and n² numbers in memory unless they are tiled (FlashAttention). "
         "Softmax's Jacobian is diag(p) − ppᵀ: at a one-hot p it is zero, so nothing is learned through it. Why a root: variances add, deviations grow with the root. Where q and k come to be aligned their product grows with d itself, so μP divides by d, and QK-norm makes their lengths fixed.",
         "投影得到 Q、K、V；切成 a 个头，d = h/a；分数 QKᵀ/√d；对键做 softmax；乘 V；拼回各头；再投影。分数每头 2n²d 次运算，对 V 求和又 2n²d：O(n²d)，显存里有 n² 个数，除非分块（FlashAttention）。"
         "softmax 的雅可比是 diag(p) − ppᵀ：p 为独热时它为零，什么也学不到。为什么是根号：方差相加，标准差按根号增长。当 q 与 k 趋于一致时，其乘积随 d 本身增长，所以 μP 除以 d，而 QK-norm 固定它们的长度。"),
        (("Where does the variance argument break during training?", "训练过程中，方差的论证在哪里不再成立？"), ("Which of the n² costs does FlashAttention remove?", "FlashAttention 去掉了哪一项 n² 的代价？")),
    ),
)
def attention_by_hand(lab: Lab, d: int = 64, n: int = 512) -> None:
    """Scores of random queries and keys are measured with and without the division; a head's work is counted at growing lengths; a GPT's first loss is read."""
    import numpy as np

    from glasscluster.sim.recording.events import COMPUTE
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.plots import lines

    dims, lengths = [8, 32, 128, 512], [n // 8, n // 4, n // 2, n]
    run = lab.run("attention", ("One head at four lengths", "一个头，四种长度"), program, dims, lengths, d, gpus=1)
    found, graph = run.results[0], run.graph
    for size, variance in zip(dims, found["variance"], strict=True):
        lab.check(f"variance of q·k, d = {size}", size, variance, "Eq 2", unit="", match="statistical", tolerance=6 * size * (2 / PAIRS) ** 0.5)
    lab.check("largest difference of attention by hand from torch's MultiheadAttention", 0, found["apart"], "1706.03762 §3.2, float64", unit="absolute", tolerance=1e-12)
    at = [(graph.kind == COMPUTE) & (graph.micro_batch == i) for i in range(len(lengths))]
    flops, moved = ([int(column[rows].sum()) for rows in at] for column in (graph.flops, graph.bytes))
    for length, counted, nbytes in zip(lengths, flops, moved, strict=True):
        lab.check(f"FLOPs of a head over {length} tokens", 4 * length**2 * d, counted, "2n²d for QKᵀ, 2n²d for PV", unit="FLOPs")
        lab.check(f"bytes of a head over {length} tokens", 4 * (4 * length**2 + 4 * length * d), nbytes, "Eq 7: 4n² + 4nd elements")
    slope = float(np.polyfit(np.log(lengths), np.log(flops), 1)[0])
    lab.check("power of the length with which FLOPs grow", 2, slope, "O(n²d)", unit="", match="statistical", tolerance=1e-9)
    model = make_model("tiny", layers=2, hidden=64, seq=64)
    trained = lab.train("gpt", ("A GPT's first step", "GPT 的第一步"), model=model, steps=1, compared=False)
    first = float(trained.run.results[0].losses[0])
    lab.check(f"first loss of a GPT over {model.vocab} tokens", math.log(model.vocab), first, "Eq 37: ln V", unit="nats", match="statistical", tolerance=0.1)
    place, even = dims.index(128), math.log(KEYS)
    raw, divided = found["entropy"]["raw"], found["entropy"]["divided"]
    lab.ask(f"{KEYS} keys, d = 128: softmax over even logits has entropy {even:.2f}. How many nats without the division by √d?",
            f"{KEYS} 个键、d = 128：均匀 logits 的 softmax 熵为 {even:.2f}。不除以 √d 时是多少 nat？", raw[place], "nats")
    names = {"en": ("divided by √d", "not divided", "head size d", "entropy of softmax (nats)", "Σ p(1−p)", "FLOPs", "bytes", "length n", "one head, forward, counted"),
             "zh": ("除以 √d", "不除", "头的大小 d", "softmax 的熵 (nat)", "Σ p(1−p)", "FLOPs", "字节", "长度 n", "一个头，前向，计数")}
    lab.figure((f"Entropy of softmax over {KEYS} random keys", f"对 {KEYS} 个随机键的 softmax 熵"), lambda lang: lines({names[lang][0]: (dims, divided), names[lang][1]: (dims, raw)}, *names[lang][2:4], log_x=True))
    lab.figure(("What gradient gets through softmax", "梯度能通过 softmax 多少"), lambda lang: lines({names[lang][i]: (dims, found["slope"][k]) for i, k in enumerate(("divided", "raw"))}, names[lang][2], names[lang][4], log_x=True))
    lab.figure(("What one head costs: both grow with the square of the length", "一个头的代价：两者都随长度的平方增长"), lambda lang: lines({names[lang][5]: (lengths, flops), names[lang][6]: (lengths, moved)}, *names[lang][7:], log_x=True, log_y=True))
    lab.tell(f"At d = 128 the logits' variance is {found['variance'][place]:.4g}: undivided, softmax's entropy falls from {divided[place]:.3f} to {raw[place]:.3f} nats of {even:.3f}.",
             f"d = 128 时 logits 的方差为 {found['variance'][place]:.4g}：不除的话，softmax 的熵从 {divided[place]:.3f} 降到 {raw[place]:.3f} nat（上限 {even:.3f}）。")
    lab.tell(f"The gradient that gets through falls from {found['slope']['divided'][place]:.3f} to {found['slope']['raw'][place]:.3f}.", f"能通过的梯度从 {found['slope']['divided'][place]:.3f} 降到 {found['slope']['raw'][place]:.3f}。")
    lab.tell(f"From {lengths[0]} to {lengths[-1]} tokens, FLOPs grow {flops[-1] / flops[0]:.4g}-fold: 8 times the length, 64 times the work.",
             f"从 {lengths[0]} 到 {lengths[-1]} 个 token，FLOPs 变为 {flops[-1] / flops[0]:.4g} 倍：长度 8 倍，工作量 64 倍。", "tab=timeline&run=attention")
    lab.tell(f"A GPT that knows nothing loses ln {model.vocab} = {math.log(model.vocab):.3f} nats a token; this one {first:.3f}.",
             f"什么都不知道的 GPT 每个 token 损失 ln {model.vocab} = {math.log(model.vocab):.3f} nat；这个为 {first:.3f}。", "tab=checks&run=gpt")
    lab.conclude(f"Without √d, softmax at d = 128 keeps {raw[place]:.3f} of {even:.3f} nats of entropy.", f"不除以 √d，d = 128 时 softmax 的熵只剩 {even:.3f} nat 中的 {raw[place]:.3f}。")
    lab.explain("A dot product adds d numbers of variance 1, so the logits' deviation is √d; softmax of logits that far apart picks one key, and hardly any gradient gets through.",
                "点积把 d 个方差为 1 的数相加，所以 logits 的标准差是 √d；相差这么大的 logits 经 softmax 就只选中一个键，几乎没有梯度能通过。",
                ("Variances of independent terms add: Var(q·k) = d.", "独立项的方差相加：Var(q·k) = d。"), ("A saturated softmax has a Jacobian of zero.", "饱和的 softmax 雅可比为零。"))
    lab.own_number(f"{raw[place]:.3f} nats against {divided[place]:.3f} at d = 128.", f"d = 128：{raw[place]:.3f} nat 对 {divided[place]:.3f}。")
