"""A9: why token and position embeddings may be added: the four terms of the dot product, measured before and after training."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

TERMS = ("token · token", "token · position", "position · token", "position · position")


# fmt: off
def four_terms(state: dict[str, Any], tokens: Any, config: Any) -> dict[str, Any]:
    """The first layer's scores [a, s, s] of a sequence, term by term: the norm's mean and scale are those of the sum, so it is linear.

    x = e + p;  q = W_q (γ (x − mean x) / σ + β) + b_q: the part from e, the part from p, and a constant, which goes with the position.
    """
    import torch

    e, p = state["embedding.token"][tokens], state["embedding.position"][: len(tokens)]
    h, a = config.hidden, config.heads
    x = e + p
    sigma = (x.var(-1, unbiased=False, keepdim=True) + config.norm_eps).sqrt()
    weight, bias = state["layers.0.qkv_weight"][: 2 * h], state["layers.0.qkv_bias"][: 2 * h]
    gamma, beta = state["layers.0.norm1_weight"], state["layers.0.norm1_bias"]
    of_e, of_p = (((part - part.mean(-1, keepdim=True)) / sigma * gamma) @ weight.T for part in (e, p))
    of_p = of_p + beta @ weight.T + bias
    (q_e, k_e), (q_p, k_p) = ([y.unflatten(-1, (a, -1)).transpose(0, 1) for y in part.chunk(2, -1)] for part in (of_e, of_p))
    scale = (h // a) ** -0.5
    terms = [q @ k.mT * scale for q, k in ((q_e, k_e), (q_e, k_p), (q_p, k_e), (q_p, k_p))]
    normed = torch.nn.functional.layer_norm(x, (h,), gamma, beta, config.norm_eps)
    q, k = (y.unflatten(-1, (a, -1)).transpose(0, 1) for y in (normed @ weight.T + bias).chunk(2, -1))
    score = q @ k.mT * scale
    wide, stacked = torch.cat([e, p], -1), torch.cat([weight.T, weight.T])  # laid side by side, through the matrix twice
    both = (wide @ stacked) - (x @ weight.T)
    seen = torch.ones_like(score[0], dtype=torch.bool).tril()
    return {"sum": float((sum(terms) - score).abs().max()), "side by side": float(both.abs().max()), "spread": [float(t[:, seen].var()) for t in terms],
            "cosine": float(torch.nn.functional.cosine_similarity(e[:, None], p[None], dim=-1).square().mean().sqrt())}


@lesson(
    "A9",
    title=("Why embeddings may be added", "为什么词向量与位置向量可以相加"),
    topic=("the model", "模型"),
    question=("Token and position are added into one vector. Can attention still tell them apart?", "词向量和位置向量加成一个向量，注意力还能区分它们吗？"),
    formula=Formula("A9", "(e_i+p_i)W_q · (e_j+p_j)W_k = ee + ep + pe + pp;  (e+p)W = [e, p]·[W; W]", "X", "derivation; 1706.03762 §3.5"),
    kills=("“The token–position terms of attention are useless.” After training they have a share of the scores' variance that is measured, not zero.", "“注意力里的词-位置交叉项没有用。”训练之后它们在分数方差中占有可测的份额，并不为零。"),
    card=Card(
        ("Why are token and position embeddings added, not concatenated?", "为什么词向量与位置向量相加而不是拼接？"),
        ("Adding is concatenating with shared weights: (e+p)W = [e, p][W; W]. In many dimensions the two kinds of vectors are nearly orthogonal, so a matrix can read either.", "相加就是共享权重的拼接：(e+p)W = [e, p][W; W]。维度高时两类向量几乎正交，所以一个矩阵可以分别读出。"),
        ("The score of two sums has four terms: content with content, content with place, place with content, place with place. A head can specialise: subspaces of W_q and W_k read e or p. Random vectors of dimension h have cosine about 1/√h, so the sum loses little, and training moves the two tables apart. Concatenation would widen every later matrix, "
         "or take dimensions from the content. Relative schemes keep what matters of these terms: T5 a number for place–place, DeBERTa content–place and place–content, RoPE turns q and k so that no position is in V at all.",
         "两个和的点积有四项：内容对内容、内容对位置、位置对内容、位置对位置。头可以分工：W_q 和 W_k 的子空间分别读 e 或 p。h 维随机向量的余弦约为 1/√h，所以相加损失很小，训练还会把两张表分开。拼接会加宽后面的每个矩阵，或占用内容的维度。"
         "相对方案保留这些项里重要的部分：T5 用一个数表示位置对位置，DeBERTa 用内容对位置和位置对内容，RoPE 旋转 q 和 k，V 中完全没有位置。"),
        (("What is left of the position in V?", "V 中还剩下多少位置信息？"), ("Which of the four terms does RoPE keep?", "RoPE 保留了四项中的哪些？")),
    ),
)
def adding_positions(lab: Lab, steps: int = 30, hidden: int = 64, seq: int = 64) -> None:
    """A small GPT learns real text; before and after, the first layer's scores are taken apart into their four terms."""
    import torch

    from glasscluster.model.gpt import GPTStage
    from glasscluster.strategies.job import Job
    from glasscluster.strategies.judge.single_device import train_one_device
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.plots import bars

    model = make_model("tiny", layers=2, hidden=hidden, seq=seq)
    lab.train("gpt", ("A GPT's first step", "GPT 的第一步"), model=model, steps=1, dp=2, global_batch=8)
    job = Job(make_plan(dp=2, global_batch=8, lr=5e-3), model, steps)
    text = [job.batch(step) for step in range(steps)]
    born = {n: p.detach().double() for n, (p, _) in GPTStage(model, seed=0, dtype=torch.float64).full_names().items()}
    learnt = train_one_device(model, text, job.optimizer, 1.0, 0, torch.float32)
    found = {"before": four_terms(born, text[0][0][0], model), "after": four_terms({n: p.double() for n, p in learnt.weights[-1].items()}, text[0][0][0], model)}
    for when, said in found.items():
        lab.check(f"{when}: the four terms less the score, largest", 0, said["sum"], "the dot product of two sums, float64", unit="absolute", tolerance=1e-10)
        lab.check(f"{when}: scores of added vectors less those of vectors side by side, largest", 0, said["side by side"], "(e+p)W = [e, p][W; W]", unit="absolute", tolerance=1e-12)
    lab.check("before: cosine of a token's and a position's row, rms", hidden**-0.5, found["before"]["cosine"], "random vectors of dimension h: 1/√h", unit="", match="statistical", tolerance=0.02)
    share = {w: [100 * v / sum(f["spread"]) for v in f["spread"]] for w, f in found.items()}
    cross = {w: s[1] + s[2] for w, s in share.items()}
    lab.ask(f"After {steps} steps: what percentage of the variance of the four terms is token with position and position with token?", f"{steps} 步之后：四项的方差中，词对位置与位置对词占百分之几？", cross["after"], "%")
    names = {"en": TERMS, "zh": ("词 · 词", "词 · 位置", "位置 · 词", "位置 · 位置")}
    axes = {"en": ("before training", f"after {steps} steps", "share of the variance (%)"), "zh": ("训练前", f"{steps} 步之后", "占方差的份额 (%)")}
    lab.figure(("The four terms of the first layer's scores, by their variance", "第一层分数的四项，按方差"), lambda lang: bars(names[lang], {axes[lang][i]: share[w] for i, w in enumerate(("before", "after"))}, axes[lang][2]))
    lab.tell(f"The four terms add up to the score to {max(f['sum'] for f in found.values()):.0e}: nothing is mixed up by adding.", f"四项之和与分数相差 {max(f['sum'] for f in found.values()):.0e}：相加没有混淆任何东西。", "tab=ledger")
    lab.tell(f"At birth a token's row and a position's have a cosine of about {found['before']['cosine']:.3f}, 1/√{hidden} = {hidden**-0.5:.3f}; after training {found['after']['cosine']:.3f}.", f"初始时词向量与位置向量的余弦约为 {found['before']['cosine']:.3f}，1/√{hidden} = {hidden**-0.5:.3f}；训练后为 {found['after']['cosine']:.3f}。", "tab=ledger")
    lab.tell(f"The cross terms have {cross['before']:.1f} % of the variance before, {cross['after']:.1f} % after {steps} steps.", f"交叉项在训练前占方差的 {cross['before']:.1f} %，{steps} 步之后占 {cross['after']:.1f} %。", "tab=story")
    lab.tell(f"Loss fell from {learnt.losses[0]:.3f} to {learnt.losses[-1]:.3f} nats a token on the way.", f"期间损失从每 token {learnt.losses[0]:.3f} 降到 {learnt.losses[-1]:.3f} nat。", "tab=story")
    lab.conclude(f"The score is exactly the sum of four terms; the cross terms have {cross['after']:.1f} % of their variance after training.", f"分数恰好是四项之和；训练后交叉项占其方差的 {cross['after']:.1f} %。")
    lab.explain("A matrix applied to a sum is the sum of the matrix applied to its parts, so attention sees both; near orthogonality keeps the parts apart.", "矩阵作用于和，等于分别作用再相加，所以注意力两者都看得到；近似正交使两部分互不干扰。",
                ("Adding is concatenation with one matrix used twice.", "相加就是同一矩阵用两次的拼接。"), ("In h dimensions random vectors have a cosine of about 1/√h.", "h 维随机向量的余弦约为 1/√h。"))
    lab.own_number(f"{cross['after']:.1f} % in the cross terms.", f"交叉项占 {cross['after']:.1f} %。")
