"""A4: rotary positions know distances, not places; and what becomes of them beyond the trained length."""

from __future__ import annotations

import math
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


# fmt: off
def program(gpu: Any, d: int, n: int, shift: int, factor: int) -> dict[str, Any]:
    """Scores of one query and one key put at every pair of positions, in both layouts, shifted, and squeezed."""
    import torch

    from glasscluster.model.kernels.rope import rope
    from glasscluster.strategies.plan import make_model

    def model(**more: Any) -> Any:
        return make_model("tiny", hidden=d, heads=1, seq=n, position="rope", **more)

    found: dict[str, Any] = {"moved": {}, "uneven": {}, "length": {}}
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, d, generator=draw, dtype=torch.float64).expand(2, 1, n, 1, d)
    with gpu.region("forward", layer=0, micro_batch=0):
        rope(q.contiguous(), (0, n), model())
    with gpu.unrecorded():
        for layout in ("half", "interleaved"):
            def scores(first: int, config: Any = None, layout: str = layout) -> Any:
                turned = [rope(x.contiguous(), (first, n), config or model(rope_layout=layout))[0, :, 0] for x in (q, k)]
                return turned[0] @ turned[1].T / d**0.5
            here = scores(0)
            found["moved"][layout] = float((scores(shift) - here).abs().max())
            found["uneven"][layout] = max(float(here.diagonal(o).max() - here.diagonal(o).min()) for o in range(1 - n, n))
            found["length"][layout] = float((rope(q.contiguous(), (shift, n), model(rope_layout=layout)).norm(dim=-1) - q.norm(dim=-1)).abs().max())
            if layout == "half":
                far = rope(k[:, :1].contiguous(), (0, 1), model())[0, 0, 0]
                stretched = model(rope_scaling="interpolation", rope_factor=float(factor))
                squeezed = rope(q[:, :1].contiguous(), (factor * (n - 1), 1), stretched)[0, 0, 0] @ far / d**0.5
                found["squeezed"] = float((squeezed - here[n - 1, 0]).abs())
                found["curve"] = here[:, 0].tolist()
        table = torch.randn(2 * n, d, generator=draw, dtype=torch.float64)  # learned positions, added: they know places
        apart = (q[0, 0, 0] + table[:n]) @ (k[0, 0, 0] + table[:n]).T / d**0.5
        found["learned"] = max(float(apart.diagonal(o).max() - apart.diagonal(o).min()) for o in range(1, 4))
    return found


@lesson(
    "A4",
    title=("RoPE is relative", "旋转位置编码"),
    topic=("the model", "模型"),
    question=("Shift every position by 1000: what changes in RoPE's scores? And beyond the trained length?", "把所有位置都平移 1000：RoPE 的分数会怎样变化？超过训练长度呢？"),
    formula=Formula("Eq 4", "⟨R_m q, R_n k⟩ depends on m − n alone; pair i turns θ_i = base^(−2i/d) a position", "X", "RoPE 2104.09864 §3.2"),
    kills=("“RoPE extrapolates for free.” Beyond the trained length the slow pairs come to angles that training never saw; positions must be squeezed, or the base changed.",
           "“RoPE 天然可以外推。”超过训练长度后，慢的那些对会转到训练中从未见过的角度；需要压缩位置或改变基数。"),
    card=Card(
        ("Prove that RoPE is relative. How is a context extended?", "证明 RoPE 是相对的。怎样扩展上下文？"),
        ("Each pair of q and k is turned by an angle that grows with the position; the product of two turned vectors depends on the difference of their angles. To go further, divide the positions (interpolation) or enlarge the base (NTK).",
         "q 和 k 的每一对坐标都按位置转一个角度；两个旋转后的向量的内积只取决于角度之差。要更长，就压缩位置（插值）或加大基数（NTK）。"),
        ("As complex numbers: q e^{imθ} times the conjugate of k e^{inθ} is q k* e^{i(m−n)θ}. d/2 pairs have θ_i = base^(−2i/d): the fastest turns 1 radian a token, the slowest once in about 2π·base. Turning keeps lengths, costs no parameters, and touches q and k only, so V carries no position. "
         "Pairs whose wavelength is longer than the trained length have seen only part of their circle: beyond it their angles are new. Position interpolation uses m/s, so nothing new appears but neighbours come closer; NTK-aware scaling enlarges the base so that the slowest pair is stretched by s and the fastest not at all; "
         "YaRN decides pair by pair and cools the softmax. Layouts differ between libraries (halves or neighbours): the same function after permuting columns.",
         "用复数写：q e^{imθ} 乘 k e^{inθ} 的共轭，等于 q k* e^{i(m−n)θ}。d/2 对的 θ_i = base^(−2i/d)：最快的每个 token 转 1 弧度，最慢的约 2π·base 个 token 转一圈。旋转保持长度，没有参数，只作用于 q 和 k，所以 V 不含位置。"
         "波长超过训练长度的那些对只见过圆的一部分：再往后角度就是新的。位置插值用 m/s，没有新角度，但相邻位置更近；NTK 缩放加大基数，使最慢的对拉长 s 倍而最快的不变；"
         "YaRN 逐对决定，并给 softmax 降温。各库的排列不同（前后两半或相邻两个）：交换列之后是同一个函数。"),
        (("Why is V not turned?", "为什么不旋转 V？"), ("What does a larger base do to nearby tokens?", "更大的基数对邻近 token 有什么影响？")),
    ),
)
def rope_is_relative(lab: Lab, d: int = 64, n: int = 128, shift: int = 1000, factor: int = 4) -> None:
    """One query and one key are put at every pair of positions; then everything is shifted, and positions are squeezed."""
    from glasscluster.model.kernels.rope import frequencies
    from glasscluster.visualize.figures.plots import lines

    run = lab.run("turned", ("Queries and keys, turned", "旋转后的查询与键"), program, d, n, shift, factor, gpus=1)
    found = run.results[0]
    for layout in ("half", "interleaved"):
        lab.check(f"{layout}: largest change of a score when all positions shift by {shift}", 0, found["moved"][layout], "Eq 4, float64", unit="absolute", tolerance=1e-11)
        lab.check(f"{layout}: largest difference of scores at the same distance", 0, found["uneven"][layout], "Eq 4, float64", unit="absolute", tolerance=1e-12)
        lab.check(f"{layout}: largest change of a vector's length", 0, found["length"][layout], "a rotation", unit="absolute", tolerance=1e-12)
    lab.check(f"interpolated by {factor}: score at distance {factor} × {n - 1} less that at {n - 1}", 0, found["squeezed"], "2306.15595: positions over s", unit="absolute", tolerance=1e-12)
    base, pairs = 10_000.0, d // 2
    plain, ntk = frequencies(d, base), frequencies(d, base, "ntk", float(factor))
    lab.check("NTK: the slowest pair is stretched by", factor, plain[-1] / ntk[-1], "base · s^(d/(d−2))", unit="×", tolerance=1e-9)
    lab.check("NTK: the fastest pair is stretched by", 1, plain[0] / ntk[0], "θ_0 = 1 for any base", unit="×", tolerance=1e-12)
    new = sum(2 * math.pi / t > n for t in plain)
    expected = pairs - 1 - math.floor(pairs * math.log(n / (2 * math.pi)) / math.log(base))
    lab.check(f"pairs that have not turned once within {n} tokens", expected, new, "2π/θ_i > L ⇔ i > d/2 · ln(L/2π)/ln base", unit="pairs")
    lab.ask(f"d = {d}, base 10000: how many of the {pairs} pairs have not turned once within {n} tokens?", f"d = {d}，基数 10000：{pairs} 对中有多少对在 {n} 个 token 内还没转完一圈？", new, "pairs")
    curve = [math.cos(t * m) for t in plain for m in range(n)]
    chosen = [0, pairs // 4, pairs // 2, pairs - 1]
    names = {"en": ("pair {}", "distance m − n", "cos of the angle", "score of this q and k", "as trained", "interpolated", "NTK", "pair", "tokens for one turn"),
             "zh": ("第 {} 对", "距离 m − n", "角度的余弦", "这一对 q、k 的分数", "训练时", "插值", "NTK", "第几对", "转一圈的 token 数")}
    lab.figure(("What each pair says about the distance: fast ones tell neighbours apart, slow ones far from near", "每一对坐标所说的距离：快的区分相邻，慢的区分远近"),
               lambda lang: lines({names[lang][0].format(i): (list(range(n)), curve[i * n : (i + 1) * n]) for i in chosen}, *names[lang][1:3]).update_traces(mode="lines"))
    lab.figure(("The score of one query and one key against their distance", "同一对查询与键的分数随距离的变化"), lambda lang: lines({names[lang][3]: (list(range(n)), found["curve"])}, names[lang][1], names[lang][3]).update_traces(mode="lines"))
    ways = {"none": 4, "interpolation": 5, "ntk": 6}
    lab.figure((f"How many tokens a pair needs for one turn, {factor} × as long as trained", f"每一对转一圈所需的 token 数（长度为训练的 {factor} 倍）"),
               lambda lang: lines({names[lang][j]: (list(range(pairs)), [2 * math.pi / t for t in frequencies(d, base, w, float(factor))]) for w, j in ways.items()}, *names[lang][7:], log_y=True))
    lab.tell(f"Shifting all positions by {shift} changes no score: {found['moved']['half']:.0e} is rounding.", f"所有位置平移 {shift}，分数都不变：{found['moved']['half']:.0e} 只是舍入。", "tab=ledger")
    lab.tell(f"Learned positions, added, tell places: at the same distance their scores differ by up to {found['learned']:.2f}.", f"相加的可学习位置知道的是位置本身：同样的距离，分数相差可达 {found['learned']:.2f}。", "tab=ledger")
    lab.tell(f"{new} of {pairs} pairs have not turned once within {n} tokens: beyond, their angles are new to the model.", f"{pairs} 对中有 {new} 对在 {n} 个 token 内还没转完一圈：再往后，它们的角度对模型是新的。", "tab=story")
    lab.tell(f"Interpolation by {factor} puts distance {factor * (n - 1)} exactly where {n - 1} was.", f"插值 {factor} 倍后，距离 {factor * (n - 1)} 恰好落在原来 {n - 1} 的位置。", "tab=ledger")
    lab.conclude(f"A shift by {shift} changes nothing; going {factor} times as far needs {new} of {pairs} pairs to be slowed down.", f"平移 {shift} 什么都不变；要走 {factor} 倍远，{pairs} 对中有 {new} 对需要放慢。")
    lab.explain("Turning q by mθ and k by nθ turns their product by (m − n)θ; a common shift cancels.", "q 转 mθ、k 转 nθ，乘积就转 (m − n)θ；共同的平移相互抵消。",
                ("The product of two rotations depends on the difference of their angles.", "两个旋转的乘积只取决于角度之差。"), ("What was not seen in training is the angle, not the position.", "训练中没见过的是角度，而不是位置。"))
    lab.own_number(f"{new} of {pairs} pairs are new beyond {n} tokens.", f"超过 {n} 个 token 后，{pairs} 对中 {new} 对是新的。")
