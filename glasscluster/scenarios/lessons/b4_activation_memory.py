"""B4: what a layer keeps for backward, tensor by tensor."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

GIB = 1024**3
ZH = {
    "input of norm": "归一化 {0} 的输入", "mean and 1/std of norm": "归一化 {0} 的均值与 1/标准差", "output of norm": "归一化 {0} 的输出",
    "softmax": "softmax", "mask of the softmax's dropout": "softmax 的 dropout 掩码", "softmax after dropout": "dropout 之后的 softmax",
    "attention of all heads, input of the output matrix": "所有头的注意力输出", "mask of the attention's dropout": "注意力 dropout 掩码",
    "input of GELU": "GELU 的输入", "output of GELU": "GELU 的输出", "mask of the MLP's dropout": "MLP dropout 掩码",
}  # fmt: skip


def named(name: str, lang: str) -> str:
    """A tensor's name in a language."""
    stem, _, number = name.rpartition(" ")
    return name if lang == "en" else ZH[name] if name in ZH else ZH[stem].format(number) if stem in ZH else name


@lesson(
    "B4",
    title=("Activation memory", "激活显存"),
    topic=("one GPU", "单卡"),
    question=("How many GiB does one layer of GPT-3 keep for backward?", "GPT-3 的一层为反向保留多少 GiB？"),
    formula=Formula(
        "Eq 17", "sbh(16w+2) + as²b(2w+1);  w = 2: sbh(34 + 5as/h);  t ranks: sbh(10 + 24/t + 5as/(ht))", "X", "Korthikanti 2205.05198 §4"
    ),
    kills=(
        "“Weights dominate memory.” In training activations grow with b, s and s²; weights do not. What optimisers add is fixed, too.",
        "“权重占显存的大头。”训练时激活随 b、s、s² 增长，权重不会；优化器加上的部分也是固定的。",
    ),
    card=Card(
        ("What does a transformer layer keep for backward, in bytes?", "一个 Transformer 层为反向保留多少字节？"),
        (
            "In 16 bits with dropout: sbh(34 + 5as/h). 34 is 11 for attention, 19 for the MLP, 4 for two norms; 5as²b are the softmax, its mask and its dropped copy.",
            "16 位、有 dropout：sbh(34 + 5as/h)。34 = 注意力 11 + MLP 19 + 两个归一化 4；5as²b 是 softmax、其掩码和 dropout 后的副本。",
        ),
        (
            "Every operation keeps what its derivative needs: a matrix its input, softmax and GELU one tensor each, dropout a mask of one byte. Attention: input 2, Q and K 4, V 2, "
            "output 2, mask 1; MLP: inputs 2 and 8, GELU 8, mask 1; norms 4. Tensor parallelism cuts 24 of the 34 and the s² term; norms and masks outside stay whole, "
            "until sequence parallelism cuts them too. FlashAttention drops the s² term and keeps 4asb of log-sum-exp; layer-norm statistics are 8sb each.",
            "每个算子保留其导数所需：矩阵保留输入，softmax 与 GELU 各一个张量，dropout 保留 1 字节掩码。注意力：输入 2，Q、K 4，V 2，输出 2，掩码 1；"
            "MLP：输入 2 与 8，GELU 8，掩码 1；归一化 4。张量并行切分 34 中的 24 和 s² 项；归一化与外侧掩码保持完整，直到序列并行也把它们切开。"
            "FlashAttention 去掉 s² 项，保留 4asb 的 log-sum-exp；归一化的统计量各 8sb。",
        ),
        (
            ("Which terms does FlashAttention remove?", "FlashAttention 去掉哪些项？"),
            ("What is left whole under tensor parallelism, and what cuts it?", "张量并行下什么仍是完整的？怎样切开它？"),
        ),
    ),
)
def activation_memory(lab: Lab, hidden: int = 64, heads: int = 4, seq: int = 64) -> None:
    """A real block runs forward while torch says which tensors it saves: a small one on real numbers, GPT-3's on shapes alone."""
    import numpy as np

    from glasscluster.sim.recording.events import CATEGORIES
    from glasscluster.sim.run import Cluster
    from glasscluster.strategies.judge.activations import (
        Line,
        account,
        kept_by_a_layer,
        predict,
        predict_layer,
    )
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.kept import waterfall
    from glasscluster.visualize.figures.plots import bars

    def count(model: Any, t: int, recompute: str, backend: str = "dry", cut: bool = False) -> list[Line]:
        saved = Cluster("classroom", t, backend, memory_bytes=None).run(kept_by_a_layer, model, 1, "bf16", recompute, cut).results[0]
        return account(predict_layer(model, 1, t, 2, recompute, cut), saved)

    def total(lines: list[Line]) -> int:
        return sum(x.counted for x in lines if not x.apart)

    small = make_model("tiny", hidden=hidden, heads=heads, seq=seq, attention="unfused", dropout=0.1)
    trained = lab.train(
        "tiny",
        ("A small GPT, unfused attention", "小 GPT，未融合的注意力"),
        model=small,
        steps=1,
        precision="bf16",
        micro_batch=4,
        global_batch=4,
    )
    mine = count(small, 1, "none", "threads")
    lab.check("kept by your layer", predict(seq, 1, hidden, heads), total(mine), "Eq 17")
    lab.check(
        "tensors that the list does not name, or sizes them wrongly",
        0,
        sum(not x.ok for x in mine),
        "Korthikanti section 4",
        unit="tensors",
    )
    giant = make_model("gpt3-175b", attention="unfused", dropout=0.1)
    s, h, a = giant.seq, giant.hidden, giant.heads
    flash = giant.model_copy(update={"attention": "flash"})
    runs = {"none": count(giant, 1, "none"), "flash": count(flash, 1, "none"), "tp8": count(giant, 8, "none"),
            "sp": count(giant, 8, "none", cut=True), "selective": count(giant, 8, "selective", cut=True), "full": count(giant, 8, "full", cut=True)}  # fmt: skip
    theory = {"none": predict(s, 1, h, a), "flash": predict(s, 1, h, a, flash=True), "tp8": predict(s, 1, h, a, 8)}
    theory |= {
        k: predict(s, 1, h, a, 8, sequence_parallel=True, recompute=r)
        for k, r in (("sp", "none"), ("selective", "selective"), ("full", "full"))
    }
    words = {"none": ("whole", "完整"), "flash": ("whole, flash", "完整，flash"), "tp8": ("t = 8", "t = 8"), "sp": ("t = 8, SP", "t = 8，SP"),
             "selective": ("SP, selective", "SP，选择性重算"), "full": ("SP, full", "SP，全部重算")}  # fmt: skip
    for key, lines in runs.items():
        lab.check(f"GPT-3's layer, {words[key][0]}", theory[key], total(lines), "Eq 17")
    gib = {k: total(v) / GIB for k, v in runs.items()}
    lab.ask(
        "GPT-3's layer, s = 2048, one sequence, 16 bits, with dropout: how many GiB does it keep?",
        "GPT-3 的一层，s = 2048，一条序列，16 位，有 dropout：保留多少 GiB？",
        gib["none"],
        "GiB",
    )
    axes = {
        "en": ("GiB kept, counted", "sum", ("grows with s", "grows with s²")),
        "zh": ("保留的 GiB（计数）", "总和", ("随 s 增长", "随 s² 增长")),
    }
    lab.figure(
        ("One layer of GPT-3, tensor by tensor", "GPT-3 的一层，逐个张量"),
        lambda lang: waterfall(
            [(named(x.name, lang), x.term, x.counted / GIB, "s²" in x.term) for x in runs["none"] if not x.apart], *axes[lang]
        ),
    )
    lab.figure(
        ("The same layer, kept by one GPU", "同一层，每块 GPU 保留的量"),
        lambda lang: bars(
            [words[k][lang == "zh"] for k in runs],
            {
                {"en": "predicted (Eq 17)", "zh": "预测（Eq 17）"}[lang]: [v / GIB for v in theory.values()],
                {"en": "counted", "zh": "计数"}[lang]: list(gib.values()),
            },
            {"en": "GiB a layer and GPU", "zh": "每层每卡 GiB"}[lang],
        ),
    )
    weights, log = trained.run.results[0].state_bytes["parameters"], np.asarray(trained.run.graph.memory[0]["log"])
    held = int(np.cumsum(log[log[:, 1] == CATEGORIES.index("activations"), 2]).max())
    lab.tell(f"GPT-3's layer keeps {gib['none']:.2f} GiB for one sequence; softmax, its mask and its dropped copy are {sum(x.counted for x in runs['none'] if 's²' in x.term) / GIB:.2f} GiB of it.",
             f"GPT-3 的一层为一条序列保留 {gib['none']:.2f} GiB；其中 softmax、掩码和 dropout 后的副本占 {sum(x.counted for x in runs['none'] if 's²' in x.term) / GIB:.2f} GiB。")  # fmt: skip
    lab.tell(f"Eight tensor-parallel ranks keep {gib['tp8']:.2f} GiB each, not an eighth: norms and outer masks stay whole. Sequence parallelism cuts those too: {gib['sp']:.2f}, with selective recomputation {gib['selective']:.2f}.",
             f"八个张量并行 rank 各保留 {gib['tp8']:.2f} GiB，而不是八分之一：归一化和外侧掩码仍完整。序列并行把它们也切开：{gib['sp']:.2f}，再加选择性重算为 {gib['selective']:.2f}。")  # fmt: skip
    lab.tell(f"In the small GPT that was trained here, activations reach {held / 1e6:.2f} MB for four sequences of {seq} tokens; its 16-bit weights are {weights / 1e6:.2f} MB.",
             f"在此训练的小 GPT 中，四条 {seq} 个 token 的序列使激活达到 {held / 1e6:.2f} MB；16 位权重为 {weights / 1e6:.2f} MB。", "tab=memory")  # fmt: skip
    lab.conclude(
        f"{gib['none']:.2f} GiB a layer and sequence; 96 layers would not fit any GPU.",
        f"每层每序列 {gib['none']:.2f} GiB；96 层放不进任何一块 GPU。",
    )
    lab.explain("Each operation keeps what its derivative needs, and attention's softmax is a × s × s. What is kept was counted where torch saves it.",
                "每个算子保留其导数所需，而注意力的 softmax 是 a × s × s。保留的量是在 torch 保存处计得的。",
                ("The s² term is more than half of it, and flash attention does not have it.", "s² 项占一半以上，而 flash 注意力没有它。"),
                ("Tensor parallelism does not cut norms and the masks between the matrices.", "张量并行不切分归一化以及矩阵之间的掩码。"))  # fmt: skip
    lab.own_number(
        f"{gib['none']:.2f} GiB for GPT-3's layer; {total(mine):,} bytes for h = {hidden}, s = {seq}.",
        f"GPT-3 的一层 {gib['none']:.2f} GiB；h = {hidden}、s = {seq} 时 {total(mine):,} 字节。",
    )
