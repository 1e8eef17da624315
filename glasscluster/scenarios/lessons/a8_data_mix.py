"""A8: what a weight does to a source, and how ranks read on after a stop without losing a row or reading one twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def read_on(gpu: Any, order: Any, consumed: int, batch: int, steps: int) -> list[list[Any]]:
    """A data-parallel rank's samples, step by step, from the one number that was saved; all ranks add up what they read of each source."""
    import torch

    comm, seen = gpu.make_mesh({"dp": gpu.size})["dp"], []
    for step in range(steps):
        gpu.start_step()
        with gpu.unrecorded():
            share = order.share(consumed + step * batch, batch, comm.rank, comm.size)
            counts = torch.tensor([float(sum(s.source == i for s in share)) for i in range(len(order.sizes))])
        comm.all_reduce(counts, purpose="scalars", label="rows read of each source")
        seen.append(share)
    return seen


def own_places(ranks: int, others: int, each: int, steps: int) -> tuple[int, int]:
    """If every rank saved how far it had come itself, and others began there: numbers read twice, and numbers that nobody reads."""
    before = {place * ranks + rank for rank in range(ranks) for place in range(each * steps)}
    start = each * steps * others  # rank r of the others goes on with its own `each·steps`-th number
    return len(before & set(range(start, start + len(before)))), len(set(range(start)) - before)


# fmt: off
@lesson(
    "A8",
    title=("Data mix and epochs", "数据配比"),
    topic=("text", "文本"),
    question=("With weights 70/20/10, which source repeats nine times?", "权重 70/20/10 时，哪个数据源会重复九遍？"),
    formula=Formula("Eq 40", "epochs of source i = w_i·T / |D_i|; up to about 4 epochs are nearly as good as fresh text", "X", "Muennighoff et al. 2305.16264"),
    kills=("“Weights are dataset sizes.” They are shares of what is read. A small source with a large weight comes again and again, a large one is not read to its end.",
           "“权重就是数据集大小。”权重是所读内容的份额。数据源小而权重大，就会一遍遍重来；大的可能读不完一遍。"),
    card=Card(
        ("How do you mix sources, and what must a data loader save?", "怎样混合数据源？数据加载器要保存什么？"),
        ("Weights are shares of the tokens read: epochs = w·T/|D|, so watch the small sources; beyond about four epochs repeats teach little. If the n-th sample is a function of n and the seed, the only state is how many were consumed, and any number of ranks can go on.",
         "权重是所读 token 的份额：轮数 = w·T/|D|，所以要盯住小数据源；超过约四轮，重复就教不了多少。如果第 n 个样本是 n 与种子的函数，唯一的状态就是已读了多少个，任意数量的 rank 都能接着读。"),
        ("Each block of numbers holds every source's quota, so shares are exact and the count before any number is known. An epoch is a permutation; a Feistel network with cycle walking gives its n-th element without a list. A step takes G numbers, and rank r of R the r-th R-th part: "
         "what is trained does not depend on R. A loader that saves each rank's own place is right only while the number of ranks stays. Save the number with the checkpoint, count only finished steps, and log epochs per source. Weights can follow a schedule, for instance better text at the end; then quotas "
         "are known per block.",
         "每一段编号都含有各数据源的配额，所以份额精确，任一编号之前读了多少也是已知的。一轮是一个排列；带循环游走的 Feistel 网络无需列表即可给出第 n 个元素。一步取 G 个编号，R 个 rank 中的第 r 个取第 r 份：训练内容与 R 无关。"
         "每个 rank 各存各的位置，只有 rank 数不变时才对。要把这个编号与检查点一起保存，只算完成的步，并记录每个数据源的轮数。权重可以随训练变化，例如最后用更好的文本；此时每段的配额是已知的。"),
        (("What changes when documents are packed into rows?", "文档打包成行之后有什么变化？"), ("Why shuffle anew in every epoch?", "为什么每一轮都要重新打乱？")),
    ),
)
def data_mix(lab: Lab, ranks: int = 4, others: int = 3, stopped: int = 3, seq: int = 128) -> None:
    """Four ranks read three real sources by weight until the smallest has come nine times; a second reading is stopped and goes on with fewer ranks."""
    from glasscluster.model.text.mixture import Mixture, read
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.cells import Table, cells_figure
    from glasscluster.visualize.figures.palette import SERIES
    from glasscluster.visualize.figures.plots import bars

    names, weights = ("python", "english", "chinese"), (0.7, 0.2, 0.1)
    mixture = Mixture(tuple(zip(names, weights, strict=True)), block=100)
    order = read(mixture, seq).sampler(lab.seed)
    total = round(9 * order.sizes[2] / weights[2] / order.block) * order.block
    batch = ranks * others
    trained = lab.train("mixed", ("A GPT on the mixture", "用混合数据训练 GPT"), model=make_model("tiny", layers=1, hidden=32, seq=seq), steps=1, dp=ranks, global_batch=batch, data=mixture)
    before = lab.run("before", (f"{ranks} ranks, stopped", f"{ranks} 个 rank，被中断"), read_on, order, 0, batch, stopped, gpus=ranks)
    after = lab.run("after", (f"{others} ranks go on", f"{others} 个 rank 接着读"), read_on, order, stopped * batch, batch, stopped, gpus=others)
    long = lab.cluster(ranks).run(read_on, order, 0, total // 20, 20, record=False)
    if not lab.leader:
        return
    for entry in lab.entries:
        entry.compared = False  # a training step and two readings: bars side by side would compare nothing
    rows = [sample for seen in long.results for share in seen for sample in share]
    counted = [sum(s.source == i for s in rows) for i in range(len(names))]
    epochs = [many / size for many, size in zip(counted, order.sizes, strict=True)]
    expected = [w * total / size for w, size in zip(weights, order.sizes, strict=True)]
    for i, name in enumerate(names):
        lab.check(f"epochs of {name} after {total:,} rows", expected[i], epochs[i], "Eq 40", unit="epochs", tolerance=1e-9)
    lab.check("rows read twice within an epoch", 0, sum(n - 1 for n in Counter(rows).values()), "an epoch is a permutation", unit="rows")
    read_rows = [sample for run in (before, after) for step in zip(*run.results, strict=True) for share in step for sample in share]
    wanted = [order.sample(n) for n in range(2 * stopped * batch)]
    missing, twice = Counter(wanted) - Counter(read_rows), Counter(read_rows) - Counter(wanted)
    lab.check(f"numbers lost by going on with {others} ranks instead of {ranks}", 0, missing.total(), "state: one number", unit="rows")
    lab.check(f"numbers read twice by going on with {others} ranks instead of {ranks}", 0, twice.total(), "state: one number", unit="rows")
    lab.check(f"rows that are not those of a run without the stop, {others} ranks", 0, sum(a != b for a, b in zip(read_rows, wanted, strict=False)), "the n-th row is a function of n", unit="rows")
    repeated, skipped = own_places(ranks, others, batch // ranks, stopped)[0], own_places(ranks, 2 * ranks, batch // ranks, stopped)[1]
    share = [size / sum(order.sizes) for size in order.sizes]
    lab.ask(f"The Chinese source has {order.sizes[2]:,} rows and weight 0.1; {total:,} rows are read in all. How often was it read?", f"中文数据源有 {order.sizes[2]:,} 行，权重 0.1；一共读 {total:,} 行。它被读了多少遍？", epochs[2], "epochs")
    words = {"en": (("Python", "English", "Chinese"), "Eq 40: w·T/|D|", "counted from the rows that ranks read", "epochs", "share of the text", "share of what is read", "share (%)", "rank", "step"),
             "zh": (("Python 源码", "英文", "中文"), "Eq 40：w·T/|D|", "由各 rank 所读的行计数", "轮数", "占文本的份额", "占所读内容的份额", "份额 (%)", "rank", "步")}
    lab.figure((f"Epochs of each source after {total:,} rows; dashed: four", f"读 {total:,} 行之后各数据源的轮数；虚线：四轮"),
               lambda lang: bars(words[lang][0], {words[lang][1]: expected, words[lang][2]: epochs}, words[lang][3]).add_hline(y=4, line={"color": "#000000", "dash": "dash", "width": 2}))
    lab.figure(("A weight is not a size", "权重不是大小"), lambda lang: bars(words[lang][0], {words[lang][4]: [100 * x for x in share], words[lang][5]: [100 * c / total for c in counted]}, words[lang][6]))
    titles = {"en": (f"{ranks} ranks, stopped after step {stopped - 1}", f"{others} ranks go on from number {stopped * batch}"), "zh": (f"{ranks} 个 rank，第 {stopped - 1} 步后中断", f"{others} 个 rank 从编号 {stopped * batch} 接着读")}

    def strip(lang: str) -> Any:
        tables = []
        for title, run, first in zip(titles[lang], (before, after), (0, stopped), strict=True):
            many = len(run.results)
            each = batch // many
            numbers = [[(first + step) * batch + rank * each + i for step in range(stopped) for i in range(each)] for rank in range(many)]
            shares = [[sample for share in seen for sample in share] for seen in run.results]
            text = [["PEC"[s.source] + str(n) for n, s in zip(ns, ss, strict=True)] for ns, ss in zip(numbers, shares, strict=True)]
            fill = [[SERIES[s.source] for s in ss] for ss in shares]
            columns = [str(first + step) if i == 0 else "" for step in range(stopped) for i in range(each)]
            tables.append(Table(title, [f"{words[lang][7]} {r}" for r in range(many)], columns, text, fill, x=words[lang][8]))
        return cells_figure(tables)

    lab.figure(("Who reads which number, before and after: P Python, E English, C Chinese", "中断前后谁读哪个编号：P 为 Python，E 为英文，C 为中文"), strip)
    lab.tell(f"Python sources are {share[0]:.1%} of the text and 70 % of what is read: after {total:,} rows they have been read {epochs[0]:.2f} times.", f"Python 源码占文本的 {share[0]:.1%}，占所读内容的 70 %：读 {total:,} 行之后被读了 {epochs[0]:.2f} 遍。")
    lab.tell(f"The two small sources have about equal size; with weights 20 and 10 they were read {epochs[1]:.2f} and {epochs[2]:.2f} times.", f"两个小数据源大小差不多；权重为 20 与 10 时，它们被读了 {epochs[1]:.2f} 与 {epochs[2]:.2f} 遍。")
    lab.tell(f"Stopped after {stopped} steps on {ranks} ranks, {others} went on from number {stopped * batch}: nothing lost, nothing twice, and the same rows as without a stop.", f"{ranks} 个 rank 读 {stopped} 步后中断，{others} 个从编号 {stopped * batch} 接着读：不丢、不重，与不中断时的行相同。", "tab=ledger")
    lab.tell(f"Had every rank saved its own place, {others} ranks would read {repeated} numbers twice, and {2 * ranks} ranks would leave out {skipped}.", f"若每个 rank 各存各的位置，{others} 个 rank 会重复读 {repeated} 个编号，{2 * ranks} 个 rank 会漏掉 {skipped} 个。")
    lab.tell(f"The first step of a GPT on this mixture ran on {ranks} ranks and equals one device: loss {float(trained.run.results[-1].losses[0]):.4f}.", f"在这份混合数据上训练 GPT 的第一步在 {ranks} 个 rank 上运行，与单卡一致：损失 {float(trained.run.results[-1].losses[0]):.4f}。", "tab=checks&run=mixed")
    lab.conclude(f"The source with weight 10 was read {epochs[2]:.2f} times, the one with 70 only {epochs[0]:.2f} times; {ranks} ranks could stop and {others} go on without losing a row.", f"权重 10 的数据源被读了 {epochs[2]:.2f} 遍，权重 70 的只有 {epochs[0]:.2f} 遍；{ranks} 个 rank 可以中断，{others} 个接着读，一行不丢。")
    lab.explain("A weight says how much of what is read comes from a source; how often that goes round depends on the source's size alone.", "权重决定所读内容中有多少来自某个数据源；会转多少圈只取决于该数据源的大小。",
                ("Epochs are w·T/|D|: count them per source, not for the whole.", "轮数是 w·T/|D|：要逐个数据源计数，而不是笼统地算。"),
                ("If the n-th row follows from n, one number is all that must be saved.", "如果第 n 行由 n 决定，只需保存一个数。"))
    lab.own_number(f"{epochs[0]:.2f}, {epochs[1]:.2f} and {epochs[2]:.2f} epochs.", f"{epochs[0]:.2f}、{epochs[1]:.2f} 与 {epochs[2]:.2f} 轮。")
