"""E3: cross-entropy over a vocabulary that is cut over ranks, without ever putting a row of logits together."""

from __future__ import annotations

from math import log
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

HIDDEN = 16


def inputs(vocab: int, tokens: int) -> tuple[Any, Any, Any]:
    """The same hidden states [1, tokens, h], table [V, h] and targets everywhere."""
    import torch

    generator = torch.Generator().manual_seed(vocab)
    x, table = (torch.randn(*shape, HIDDEN, generator=generator, dtype=torch.float64) for shape in ((1, tokens), (vocab,)))
    return x, table / HIDDEN**0.5, torch.randint(vocab, (1, tokens), generator=generator)


def alone(vocab: int, tokens: int) -> tuple[float, Any, Any]:
    """Loss, gradient of x and of the table on one device: torch's own cross-entropy."""
    from torch.nn.functional import cross_entropy

    x, table, targets = inputs(vocab, tokens)
    loss = cross_entropy((x.requires_grad_() @ table.requires_grad_().T).flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    return float(loss.detach()), x.grad, table.grad


def program(gpu: Any, vocab: int, tokens: int, gathers: bool, pads: bool) -> dict[str, Any]:
    """This rank's rows of the table, and the loss either way. `pads` False: rows of padding pass for tokens (the mistake)."""
    import torch
    from torch.nn.functional import cross_entropy

    from glasscluster.model.parallel import Shard
    from glasscluster.strategies.tensor.tensor_parallel import TensorParallel

    seen: list[tuple[float, float]] = []

    class Watched(TensorParallel):
        """Notes what the first token's scalar was before and after each sum or maximum over ranks."""

        def all_reduce(self, x: Any, label: str, op: str = "sum") -> Any:
            before = float(x.flatten()[0])
            seen.append((before, float(super().all_reduce(x, label, op).flatten()[0])))
            return x

    x, table, targets = inputs(vocab, tokens)
    parallel, shard = Watched(gpu.comm), Shard(0)
    mine = shard.take(table, gpu.rank, gpu.size).requires_grad_()
    logits = parallel.column(x.requires_grad_(), mine)
    if gathers:
        whole = torch.zeros(gpu.size, *logits.shape, dtype=logits.dtype)
        whole[gpu.rank] = logits.detach()
        gpu.comm.all_gather(whole, purpose="activations", label="logits")
        return {"loss": float(cross_entropy(whole.permute(1, 2, 0, 3).flatten(2)[0, :, :vocab], targets.flatten(), reduction="sum"))}
    logits.retain_grad()
    loss = parallel.cross_entropy(logits, targets, vocab if pads else len(mine) * gpu.size)
    loss.backward()
    real = max(0, min(len(mine), vocab - gpu.rank * len(mine)))
    touched = int((logits.grad[..., real:] != 0).sum()) if logits.grad is not None else -1
    return {"loss": float(loss.detach()), "x": x.grad, "table": mine.grad, "seen": seen[:3], "padded": len(mine) - real, "touched": touched}


# fmt: off
@lesson(
    "E3",
    title=("Vocab-parallel loss", "词表并行交叉熵"),
    topic=("tensor parallel", "张量并行"),
    question=("Each rank has the logits of V/t tokens of the vocabulary. Can we have the loss without gathering them?",
              "每个 rank 只有词表中 V/t 个 token 的 logits。能否不聚集它们就得到损失？"),
    formula=Formula("Eq 19", "3 all-reduces of bs scalars (max, target logit, Σexp): 6(t−1)/t · bs elements a rank, instead of (t−1)/t · bsV", "X", "Megatron-LM 1909.08053 §3 and its code"),
    kills=("“Softmax needs the full row on one GPU.” It needs the row's maximum and the sum of its exponentials: two scalars, and the target's logit is a third.",
           "“softmax 需要一块 GPU 上有完整的一行。”它只需要这一行的最大值与指数之和：两个标量；目标的 logit 是第三个。"),
    card=Card(
        ("How does tensor parallelism compute the loss without gathering logits?", "张量并行怎样不聚集 logits 就算出损失？"),
        ("Three all-reduces of one scalar a token: the maximum, the target's logit (only its owner adds something but zero) and the sum of exponentials. The gradient softmax − one-hot is then local.",
         "每个 token 三次标量 all-reduce：最大值、目标的 logit（只有拥有者贡献非零）、指数之和。此后梯度 softmax − one-hot 在本地得到。"),
        ("The embedding table is cut by rows, so each rank has logits for V/t tokens. loss = log Σ exp(z − m) − (z_target − m). m is a maximum over ranks, Σ exp a sum, and the target's logit is on one rank, others add zero. "
         "6(t−1)/t·bs elements a rank instead of (t−1)/t·bsV, and a [bs, V] matrix is never allocated: for V = 50,257 thousands of times less. Backward needs no message: each rank has p and its one-hot columns; only the head's input gradient "
         "is summed. If t does not divide V, rows of padding get logits of −∞: probability 0, gradient 0. In 16-bit training the scalars are fp32.",
         "嵌入表按行切，每个 rank 得到 V/t 个 token 的 logits。loss = log Σ exp(z − m) − (z_target − m)。m 是跨 rank 的最大值，Σ exp 是求和，目标的 logit 在某一个 rank 上，其余加零。"
         "每个 rank 发送 6(t−1)/t·bs 个元素，而不是 (t−1)/t·bsV；也从不分配 [bs, V] 的矩阵：V = 50,257 时少数千倍。反向不需要消息：每个 rank 都有 p 和自己的 one-hot 列；只有输出层输入的梯度"
         "要求和。t 不整除 V 时，填充行的 logits 为 −∞：概率 0，梯度 0。16 位训练时这些标量用 fp32。"),
        (("Why must the maximum be over all ranks, and not each rank's own?", "为什么最大值必须是所有 rank 的，而不是各自的？"),
         ("What goes wrong if padding's logits are 0 instead of −∞?", "填充的 logits 若为 0 而不是 −∞，会出什么错？")),
    ),
)
def vocab_parallel_loss(lab: Lab, t: int = 4, tokens: int = 32) -> None:
    """The loss of several vocabularies on real ranks, cut and gathered; then a whole GPT whose vocabulary the ranks do not divide."""
    from glasscluster.model.parallel import Shard
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.cells import Table, cells_figure, shade
    from glasscluster.visualize.figures.plots import lines

    vocabularies, odd, largest = (64, 1_001, 8_192, 50_257), 1_001, 50_257
    rows = {v: -(-v // t) * t for v in vocabularies}  # padded
    scalars, gathered, worst, cut, seconds = {}, {}, {"loss": 0.0, "gradient": 0.0}, {}, {}
    for vocab in vocabularies:
        loss, d_x, d_table = alone(vocab, tokens)
        shown = {False: ("scalars", (f"V = {vocab:,}: three scalars", f"V = {vocab:,}：三个标量")), True: ("gather", (f"V = {vocab:,}: logits gathered", f"V = {vocab:,}：聚集 logits"))}
        run, other = (lab.run(*shown[g], program, vocab, tokens, g, True, gpus=t) if vocab == odd else lab.cluster(t).run(program, vocab, tokens, g, True) for g in shown)
        scalars[vocab] = sum(sum(run.graph.bytes_sent(label=f"cross_entropy {k}")) for k in ("max", "target", "sum"))
        cut[vocab], gathered[vocab], seconds[vocab] = run, sum(other.graph.bytes_sent(label="logits")), (run.timeline.makespan, other.timeline.makespan)
        for rank, mine in enumerate(run.results):
            for got, want, whole in ((mine["x"], d_x, d_x), (mine["table"], Shard(0).take(d_table, rank, t), d_table)):
                worst["gradient"] = max(worst["gradient"], float((got - want).abs().max() / whole.abs().max()))
            worst["loss"] = max(worst["loss"], abs(mine["loss"] / loss - 1), abs(other.results[rank]["loss"] / loss - 1))
    times = {v: gathered[v] / scalars[v] for v in vocabularies}
    lab.ask(f"V = {largest:,}, t = {t}: gathering the logits sends how many times the bytes of three scalars a token?",
            f"V = {largest:,}，t = {t}：聚集 logits 的字节数是每 token 三个标量的多少倍？", times[largest], "×")
    for vocab in vocabularies:
        lab.check(f"V = {vocab}: three scalars a token, all ranks", 3 * 2 * (t - 1) * tokens * 8, scalars[vocab], "Eq 19, Eq 9")
        lab.check(f"V = {vocab}: logits gathered, all ranks", (t - 1) * tokens * rows[vocab] * 8, gathered[vocab], "Eq 10")
    for what in worst:
        lab.check(f"largest {what} difference of the cut vocabularies from torch's cross-entropy", 0, worst[what], "one device", unit="relative", tolerance=1e-12)
    padded, touched = (sum(r[what] for v in vocabularies for r in cut[v].results) for what in ("padded", "touched"))
    lab.check("rows of padding, all vocabularies", sum(rows.values()) - sum(rows), padded, "V padded to a multiple of t", unit="rows")
    lab.check("padded logits with a gradient", 0, touched, "their logit is minus infinity", unit="logits")
    trained = lab.train("gpt", ("A GPT with a vocabulary of 253", "词表大小为 253 的 GPT"), model=make_model("tiny", vocab=253), steps=2, tp=t)
    mistake = lab.cluster(t).run(program, 66, tokens, False, False).results[0]["loss"] / alone(66, tokens)[0] - 1
    words = {"en": ("largest<br>logit", "max over<br>ranks", "target's logit<br>− max", "sum over<br>ranks", "Σ exp(logit<br>− max)", "sum over<br>ranks", "rank {}: V {}-{}"),
             "zh": ("最大<br>logit", "跨 rank<br>取最大", "目标 logit<br>− 最大", "跨 rank<br>求和", "Σ exp(logit<br>− 最大)", "跨 rank<br>求和", "rank {}：V {}-{}")}

    def table(lang: str) -> Any:
        text = [[f"{v:.4g}" for pair in r["seen"] for v in pair] for r in cut[odd].results]
        fill, each, say = [[shade(0.15), shade(0.95)] * 3] * t, rows[odd] // t, words[lang]
        names = [say[6].format(r, r * each, min(odd, (r + 1) * each) - 1) for r in range(t)]
        return cells_figure([Table("", names, say[:6], text, fill)])

    axes = {"en": ("logits gathered", "three scalars a token", "vocabulary V", "bytes sent a token, all ranks"), "zh": ("聚集 logits", "每 token 三个标量", "词表 V", "每 token 发送的字节，全部 rank")}
    lab.figure((f"One token's three all-reduces, V = {odd:,}: each rank before, all after", f"一个 token 的三次 all-reduce，V = {odd:,}：各 rank 之前，全体之后"), table)
    lab.figure(("Gathered logits grow with the vocabulary, three scalars a token do not", "聚集的 logits 随词表增长，每 token 三个标量不变"),
               lambda lang: lines({axes[lang][i]: (vocabularies, [d[v] / tokens for v in vocabularies]) for i, d in enumerate((gathered, scalars))}, *axes[lang][2:], log_x=True, log_y=True))
    peak, target, total = (after for _, after in cut[odd].results[0]["seen"])
    lab.tell(f"For the first token the largest logit of all ranks is {peak:.2f}; the target's, less that, is {target:.2f}, and one rank has it; the exponentials add up to {total:.3f}. Its loss is log {total:.3f} − ({target:.2f}) = {log(total) - target:.2f}.",
             f"第一个 token：所有 rank 中最大的 logit 为 {peak:.2f}；目标的 logit 减去它为 {target:.2f}，只有一个 rank 拥有；指数之和为 {total:.3f}。损失为 log {total:.3f} − ({target:.2f}) = {log(total) - target:.2f}。", "tab=network&run=scalars")
    lab.tell(f"Three scalars send {scalars[largest] / tokens:,.0f} bytes a token whatever V is; gathering {largest:,} logits sends {gathered[largest] / tokens:,.0f}: {times[largest]:,.0f} times as many.",
             f"无论 V 多大，三个标量每 token 发送 {scalars[largest] / tokens:,.0f} 字节；聚集 {largest:,} 个 logits 要发送 {gathered[largest] / tokens:,.0f} 字节：{times[largest]:,.0f} 倍。", "tab=network&run=gather")
    lab.tell(f"Fewer bytes are not always less time: for V = {odd:,} and {tokens} tokens the scalars take {1e3 * seconds[odd][0]:.3g} ms and gathering {1e3 * seconds[odd][1]:.3g}, because three all-reduces wait for latency; for V = {largest:,} it is {1e3 * seconds[largest][0]:.3g} and {1e3 * seconds[largest][1]:.3g} ms.",
             f"字节少不总是更快：V = {odd:,}、{tokens} 个 token 时，标量用 {1e3 * seconds[odd][0]:.3g} ms，聚集用 {1e3 * seconds[odd][1]:.3g} ms，因为三次 all-reduce 要等延迟；V = {largest:,} 时为 {1e3 * seconds[largest][0]:.3g} 与 {1e3 * seconds[largest][1]:.3g} ms。", "tab=timeline&run=scalars")
    lab.tell(f"{odd:,} and {largest:,} are not multiples of {t}: the last rank has rows of padding, whose logits are −∞. Were they 0, the loss for V = 66 would be wrong by {mistake:.2%}. "
             f"A whole GPT with 253 tokens on {t} ranks trains as on one device: largest gradient difference {trained.comparison['max_rel_grad_diff']:.1e}.",
             f"{odd:,} 和 {largest:,} 不是 {t} 的倍数：最后一个 rank 有填充行，其 logits 为 −∞。若为 0，V = 66 时损失会错 {mistake:.2%}。"
             f"词表为 253 的完整 GPT 在 {t} 个 rank 上的训练与单卡一致：最大梯度差异 {trained.comparison['max_rel_grad_diff']:.1e}。", "tab=checks&run=gpt")
    lab.conclude(f"Three scalars a token give the loss; gathering {largest:,} logits would send {times[largest]:,.0f} times as much.",
                 f"每 token 三个标量就得到损失；聚集 {largest:,} 个 logits 的发送量是它的 {times[largest]:,.0f} 倍。")
    lab.explain("Softmax's denominator is a sum, and sums can be added in pieces once all agree on the maximum; the target's logit is one number that one rank has.",
                "softmax 的分母是求和，只要大家约定同一个最大值就能分块相加；目标的 logit 只是某一个 rank 拥有的一个数。",
                ("Max, target logit, Σexp: three scalars a token, whatever V is.", "最大值、目标 logit、指数之和：每 token 三个标量，与 V 无关。"),
                ("The gradient softmax − one-hot is local; padding at −∞ gets none.", "梯度 softmax − one-hot 在本地；取 −∞ 的填充没有梯度。"))
    lab.own_number(f"{times[largest]:,.0f} times the bytes for V = {largest:,}.", f"V = {largest:,} 时 {times[largest]:,.0f} 倍字节。")
