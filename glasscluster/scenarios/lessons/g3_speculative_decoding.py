"""G3: a draft guesses, the target judges: how many tokens a pass, at what cost, and whose distribution."""

from __future__ import annotations

from collections import Counter
from math import log, sqrt
from statistics import stdev
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

P, Q = (0.1, 0.2, 0.3, 0.4), (0.3, 0.2, 0.2, 0.3)  # Σ min(p, q) = 0.8, whatever came before
SHOWN = {10: "⏎", 32: "␣", 9: "⇥"}


# fmt: off
def always(model: Any, p: tuple[float, ...]) -> dict[str, Any]:
    """Weights with which a model's next token has these probabilities after any other: the last norm gives e_0, the table log p."""
    import torch
    table = torch.zeros(len(p), model.hidden)
    table[:, 0] = torch.tensor([log(share) for share in p])
    return {"head.norm_weight": torch.zeros(model.hidden), "head.norm_bias": torch.eye(model.hidden)[0], "head.table": table}


def trained(model: Any, steps: int, seed: int) -> dict[str, Any]:
    """Weights after a short training on the first 3 kB of the built-in text."""
    import torch

    from glasscluster.model.adamw import Optimizer
    from glasscluster.model.text.data import batch, corpus
    from glasscluster.strategies.judge.single_device import train_one_device
    batches = [batch(corpus()[:3000], step, 8, 32, model.vocab, seed) for step in range(steps)]
    return train_one_device(model, batches, Optimizer(lr=5e-3, weight_decay=0.0), 1.0, seed, torch.float32).weights[-1]


@lesson(
    "G3",
    title=("Speculative decoding", "投机解码"),
    topic=("inference", "推理"),
    question=("Each guess is accepted with probability 0.8, four guesses a pass: how many tokens does a pass of the target give?", "每个猜测以 0.8 的概率被接受，每次猜四个：目标模型一次前向平均得到几个 token？"),
    formula=Formula("Eq 32", "(1 − α^(γ+1)) / (1 − α) tokens a pass; speed-up: that over (γc + 1)", "T", "Leviathan et al. 2211.17192, eq. 1, theorem 3.8; Chen et al. 2302.01318"),
    kills=("“It changes the output; longer γ is better.” A rejected guess is replaced by a draw from (p − q)₊, so every token has the target's distribution; and each guess more is accepted less often and costs as much as the one before.",
           "“投机会改变输出；γ 越长越好。”被拒绝的猜测由 (p − q)₊ 的抽样替换，因此每个 token 都服从目标模型的分布；而每多猜一个，被接受的可能更小，代价却不变。"),
    card=Card(
        ("How does speculative decoding speed up generation without changing what is generated?", "投机解码怎样在不改变生成结果的前提下加速？"),
        ("A draft proposes γ tokens; one pass of the target gives p at all γ + 1 places, for about the price of one, as decode waits for weights. Accept x with min(1, p/q); at the first rejection draw from (p − q)₊: what comes out is p. With α = 0.8 and γ = 4 a pass gives 3.36 tokens.",
         "草稿模型提出 γ 个 token；目标模型一次前向给出全部 γ + 1 个位置的 p，代价约等于一个 token，因为解码瓶颈在读权重。以 min(1, p/q) 接受；首次拒绝时从 (p − q)₊ 抽样：结果恰好服从 p。α = 0.8、γ = 4 时一次前向得 3.36 个 token。"),
        ("P(x) = q·min(1, p/q) + (1 − β)·(p − q)₊/(1 − β) = p. β = Σ min(p, q) is one minus the total variation distance, so a draft is good where it agrees with the target. Speed-up (1 − α^(γ+1))/((1 − α)(γc + 1)): c is a draft's pass over the target's; the best γ is finite and small unless c is nearly 0 (n-grams, extra heads: Medusa, EAGLE; trees check several guesses at once). Rejected tokens leave both caches. At large batches decode becomes compute-bound, judging γ + 1 tokens is no longer free, and speculation stops paying. Greedy: accept while the argmax agrees.",
         "P(x) = q·min(1, p/q) + (1 − β)·(p − q)₊/(1 − β) = p。β = Σ min(p, q) 等于 1 减总变差距离，所以草稿与目标越一致越好。加速比 (1 − α^(γ+1))/((1 − α)(γc + 1))，c 是草稿与目标一次前向的耗时之比；除非 c 近乎 0（n-gram、附加头 Medusa、EAGLE；树可同时验证多组猜测），最优 γ 都很小。被拒绝的 token 要从两个缓存中删去。批很大时解码受算力限制，验证 γ + 1 个 token 不再免费，投机就不划算了。贪心时：argmax 一致就接受。"),
        (("Why is (p − q)₊ and not p drawn from after a rejection?", "拒绝之后为什么从 (p − q)₊ 而不是 p 抽样？"), ("Why does speculation help less at a large batch?", "为什么批大时投机的收益变小？")),
    ),
    hardware="dgx-h100",
)
def speculative_decoding(lab: Lab, gamma: int = 4) -> None:
    """Two small GPTs, trained for a moment, speculate on text; two with a constant α show Eq 32; a tiny pair is held against its exact distribution."""
    import torch

    from glasscluster.model.config import ModelConfig
    from glasscluster.model.decoding.generate import Sampling, generate
    from glasscluster.model.decoding.speculative import predict_speedup, predict_tokens, speculate
    from glasscluster.model.gpt import GPTStage
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.exchange.replica import one_thread
    from glasscluster.strategies.plan import make_model
    from glasscluster.strategies.serving.generation import phases
    from glasscluster.strategies.serving.speculation import (
        SpeculationJob,
        chi_square,
        fill,
        joint,
        judge_alone,
        pass_seconds,
        speculate_rank,
    )
    from glasscluster.visualize.figures.cells import Table, cells_figure
    from glasscluster.visualize.figures.plots import lines

    shape: dict[str, Any] = {"vocab": 128, "seq": 96, "position": "rope", "norm": "rmsnorm", "bias": False, "init_std": 0.05, "heads": 4}
    large, small = ModelConfig(layers=2, hidden=64, **shape), ModelConfig(layers=1, hidden=32, **shape)
    warm, prompts = Sampling(temperature=1.0, seed=lab.seed), (tuple(b"Each line is "),)
    tiny: dict[str, Any] = {"hidden": 8, "heads": 2, "vocab": 5, "seq": 16, "init_std": 0.7, "tied": False}
    target, draft = (GPTStage(ModelConfig(layers=n, **tiny), seed=lab.seed + n, dtype=torch.float64) for n in (1, 2))
    samples, prompt = 900, (2, 0, 3)
    with one_thread():
        states = trained(large, 100, lab.seed), trained(small, 60, lab.seed)
        stages = [GPTStage(m, dtype=torch.float64) for m in (large, small)]
        for stage, state in zip(stages, states, strict=True):
            fill(stage, state)
        greedy, alone = speculate(stages[0], stages[1], prompts, 40, gamma).generated[0], generate(stages[0], prompts, 40).tokens[0]
        drawn = Counter(tuple(s) for s in speculate(target, draft, [prompt] * samples, 3, 2, warm).generated)
        statistic, degrees, tail = chi_square(drawn, {c: samples * share for c, share in joint(target, prompt, 3, warm).items()})
    lab.check("greedy tokens that the target alone chooses otherwise, float64", 0, sum(a != b for a, b in zip(greedy, alone, strict=True)), "the target alone, no draft, no cache", unit="tokens")
    lab.check(f"χ² of {samples} samples of three tokens against the exact distribution", degrees, statistic, "mean and 4 σ of χ²", unit="χ²", match="statistical", tolerance=4 * sqrt(2 * degrees))
    job = SpeculationJob(large, small, prompts, 60, gamma, warm, target_state=states[0], draft_state=states[1])
    text = lab.run("text", ("Two GPTs of bytes, trained for a moment", "两个短暂训练过的字节 GPT"), speculate_rank, job, gpus=1, precision="fp32").results[0]

    fixed: dict[str, Any] = {"hidden": 16, "heads": 1, "vocab": len(P), "seq": 64, "tied": False}
    deep, flat = ModelConfig(layers=4, **fixed), ModelConfig(layers=1, **fixed)
    alpha, sizes = sum(map(min, P, Q)), (0, 1, 2, 4, 8, 16)
    counted, speed, seconds = {}, {}, {}
    for n in sizes:
        constant = SpeculationJob(deep, flat, ((1,),) * 14, 30 if n else 8, n, warm, target_state=always(deep, P), draft_state=always(flat, Q))
        run = lab.cluster(1).run(speculate_rank, constant, info={"precision": "fp32"})
        tokens = [1 + a for a in run.results[0].accepted]
        counted[n], seconds[n] = sum(tokens) / len(tokens), pass_seconds(run.timeline)
        speed[n] = counted[n] / sum(seconds[n])
        if n:
            error = stdev(tokens) / sqrt(len(tokens))
            lab.check(f"tokens a pass, α = 0.8, γ = {n}", predict_tokens(alpha, n), counted[n], "Eq 32, 4 standard errors", unit="tokens", match="statistical", tolerance=4 * error)
    said = {n: predict_tokens(alpha, n) / sum(seconds[n]) for n in sizes}
    few = (1, 4, 16)
    lab.check("the fastest of γ = 1, 4, 16", max(few, key=said.__getitem__), max(few, key=speed.__getitem__), "Eq 32 ÷ the run's seconds a pass", unit="γ")
    lab.check("β of every guess of the constant pair", alpha, run.results[0].alpha, "Σ min(p, q)", unit="fraction", tolerance=1e-6)
    cost = seconds[4][0] / 4 / seconds[0][1]

    model, h100 = make_model("llama3-8b"), hardware("dgx-h100")
    one, five = (phases(Cluster(h100, 1, "dry", memory_bytes=None).run(judge_alone, model, 128, n, info={"precision": "bf16"}).timeline, h100, "bf16")[0] for n in (1, 5))
    ridge = h100.gpu.peak("bf16") / h100.gpu.memory_bandwidth
    lab.check("Llama 3 8B on an H100, judging five tokens is bound by memory", 1, int(five.intensity < ridge), "Eq 31", unit="yes")
    lab.check("Llama 3 8B, FLOPs of judging five tokens over one", 5, five.flops / one.flops, "2P a token, and attention to one more each", unit="×", tolerance=0.01)

    lab.ask("α = 0.8, γ = 4: how many tokens does a pass of the target give on average?", "α = 0.8，γ = 4：目标模型一次前向平均得到几个 token？", predict_tokens(alpha, 4), "tokens")
    colours = {"yes": "#0072B2", "no": "#D55E00", "own": "#00795a", "off": "#e4e7eb"}
    rows = list(zip(text.judged[0].guessed, text.judged[0].accepted, text.judged[0].own, strict=True))[:12]

    def strips(lang: str) -> Any:
        def char(t: int) -> str:
            return SHOWN.get(t, chr(t) if t > 32 else "·")
        cells = [[*(f"{char(t)} {'✓' if i < n else '✗' if i == n else ''}" for i, t in enumerate(guessed)), f"+ {char(own)}"] for guessed, n, own in rows]
        fill = [[*(colours["yes" if i < n else "no" if i == n else "off"] for i in range(gamma)), colours["own"]] for _, n, _ in rows]
        names = {"en": ("pass", "guesses: ✓ accepted, ✗ rejected, grey: never looked at; +: the target's own token"), "zh": ("前向", "猜测：✓ 接受，✗ 拒绝，灰色：未被检视；+：目标自己的 token")}[lang]
        return cells_figure([Table("", [f"{names[0]} {i}" for i in range(len(rows))], [*(str(i + 1) for i in range(gamma)), "+"], cells, fill, names[1])])

    lab.figure(("Accepted and rejected guesses on text, pass by pass", "文本上被接受与被拒绝的猜测，逐次前向"), strips)
    words = {"en": ("γ, guesses a pass", "tokens a pass", "Eq 32, α = 0.8", "counted", "× as fast as no draft", "Eq 32 and seconds a pass", "counted and seconds a pass", "no draft"),
             "zh": ("γ，每次猜测数", "每次前向的 token 数", "Eq 32，α = 0.8", "计数", "相对不用草稿的倍数", "Eq 32 与每次前向的秒数", "计数与每次前向的秒数", "不用草稿")}
    lab.figure(("Tokens a pass where each guess is accepted with probability 0.8", "每个猜测以 0.8 的概率被接受时，每次前向的 token 数"),
               lambda lang: lines({words[lang][2]: (sizes, [predict_tokens(alpha, n) for n in sizes]), words[lang][3]: (sizes, [counted[n] for n in sizes])}, words[lang][0], words[lang][1]))
    lab.figure((f"Speed by γ on {lab.hardware}: each guess more costs as much as the last, and is accepted less often", f"{lab.hardware} 上的速度随 γ 的变化：多猜一个的代价不变，被接受的机会却更小"),
               lambda lang: lines({words[lang][5]: (sizes, [said[n] / said[0] for n in sizes]), words[lang][6]: (sizes, [speed[n] / speed[0] for n in sizes]), words[lang][7]: ((sizes[0], sizes[-1]), (1, 1))}, words[lang][0], words[lang][4]))
    mean, betas = predict_tokens(text.alpha, gamma), text.judged[0].overlap
    best = max(sizes, key=speed.__getitem__)
    lab.tell(f"With α = 0.8 at every place and γ = 4 the passes gave {counted[4]:.2f} tokens on average; Eq 32 says {predict_tokens(alpha, 4):.2f}.",
             f"每处 α = 0.8、γ = 4 时，平均每次前向得到 {counted[4]:.2f} 个 token；Eq 32 给出 {predict_tokens(alpha, 4):.2f}。")
    lab.tell(f"A pass of this draft costs {cost:.2f} of the target's: γ = {best} is the fastest, {speed[best] / speed[0]:.2f} times no draft, and γ = 16 is {speed[16] / speed[0]:.2f} times (theorem 3.8: {predict_speedup(alpha, 16, cost):.2f}).",
             f"这个草稿一次前向的代价是目标的 {cost:.2f}：γ = {best} 最快，为不用草稿的 {speed[best] / speed[0]:.2f} 倍，而 γ = 16 是 {speed[16] / speed[0]:.2f} 倍（定理 3.8：{predict_speedup(alpha, 16, cost):.2f}）。")
    lab.tell(f"On text the mean β is {text.alpha:.2f} and a pass gave {text.tokens_per_pass:.2f} tokens; Eq 32 with that mean says {mean:.2f}. Its assumption does not hold here: β is {min(betas):.2f} at one place and {max(betas):.2f} at another.",
             f"在文本上 β 的均值为 {text.alpha:.2f}，每次前向得到 {text.tokens_per_pass:.2f} 个 token；以该均值代入 Eq 32 得 {mean:.2f}。Eq 32 的假设在这里不成立：β 在各处从 {min(betas):.2f} 到 {max(betas):.2f} 不等。", "tab=timeline&run=text")
    lab.tell(f"χ² of {samples} samples against the exact distribution of the target is {statistic:.0f} at {degrees} degrees of freedom (probability of more: {tail:.2f}). The draft leaves no trace.",
             f"{samples} 个样本相对目标精确分布的 χ² 为 {statistic:.0f}，自由度 {degrees}（更大值的概率 {tail:.2f}）。草稿没有留下痕迹。")
    lab.tell(f"Why it pays: for Llama 3 8B on an H100 judging five tokens has {five.flops / one.flops:.2f} times the FLOPs of one and takes {five.roof_s / one.roof_s:.2f} times as long by Eq 31: the weights are read once.",
             f"为什么划算：H100 上的 Llama 3 8B 验证五个 token 的运算是一个的 {five.flops / one.flops:.2f} 倍，按 Eq 31 时间只是 {five.roof_s / one.roof_s:.2f} 倍：权重只读一遍。")
    lab.conclude(f"Four guesses at α = 0.8 give {predict_tokens(alpha, 4):.2f} tokens a pass, with the target's distribution unchanged; γ = {best} was the fastest here, γ = 16 {speed[16] / speed[0]:.2f} times no draft.",
                 f"α = 0.8、四个猜测平均每次前向得到 {predict_tokens(alpha, 4):.2f} 个 token，且目标分布不变；这里 γ = {best} 最快，γ = 16 为不用草稿的 {speed[16] / speed[0]:.2f} 倍。")
    lab.explain("Guess i counts only if all before it were accepted: α^i. The sum of α^0 ... α^γ is Eq 32. What the draft says too often is rejected as often as it must be, and what it says too seldom comes from (p − q)₊.",
                "第 i 个猜测只有在之前全部被接受时才有用：α^i。α^0 到 α^γ 之和就是 Eq 32。草稿说得过多的按比例拒绝，说得过少的由 (p − q)₊ 补上。",
                ("The output is the target's: accepted and corrected tokens together have distribution p.", "输出属于目标：被接受和被修正的 token 合起来服从 p。"),
                ("Tokens a pass saturate at 1/(1 − α), the draft's cost does not: γ has an optimum.", "每次前向的 token 数趋于 1/(1 − α)，草稿的代价却不断增加：γ 有最优值。"))
    lab.own_number(f"{counted[4]:.2f} tokens a pass at α = 0.8, γ = 4; fastest γ = {best}.", f"α = 0.8、γ = 4 时每次前向 {counted[4]:.2f} 个 token；最快的 γ = {best}。")
