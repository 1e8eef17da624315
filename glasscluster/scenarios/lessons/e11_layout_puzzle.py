"""E11: the layout puzzle: every legal (dp, tp, pp, ZeRO) of eight GPUs in two nodes, recorded, counted, timed; the best ones run."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

GPUS, NODE, LAYERS = 8, 4, 4


# fmt: off
def legal(zeros: tuple[int, ...] = (0, 1, 3)) -> list[tuple[int, int, int, int]]:
    """All (dp, tp, pp, zero) of eight GPUs with a layer a stage at least; without data parallelism ZeRO has nothing to shard."""
    sizes = [(d, t, GPUS // (d * t)) for d, t in product((8, 4, 2, 1), (1, 2, 4, 8)) if d * t <= GPUS and GPUS // (d * t) <= LAYERS]
    return [(*size, z) for size in sizes for z in (zeros if size[0] > 1 else (0,))]


def layout(dp: int, tp: int, pp: int, zero: int, batch: int, precision: str) -> dict[str, Any]:
    """A plan's options: two micro-batches a stage, one where there are no stages; sequence parallelism wherever tensors are cut."""
    m = 2 * pp if pp > 1 else 1
    return {"dp": dp, "tp": tp, "pp": pp, "zero": zero, "global_batch": batch, "micro_batch": max(1, batch // (m * dp)), "precision": precision,
            "sequence_parallel": tp > 1, "schedule": "1f1b"}


@lesson(
    "E11",
    title=("The 3D layout puzzle", "三维并行拼图"),
    topic=("composition", "并行组合"),
    question=("13 B parameters, 64 GPUs, 8 a node: which data, tensor, pipeline sizes and which ZeRO stage?", "130 亿参数、64 块 GPU、每节点 8 块：数据、张量、流水线各取多大，ZeRO 取哪一级？"),
    formula=Formula("F15–F23", "memory: F15 a rank; bytes: F16 along dp, F18 along tp, 2m·bsh a hop along pp; time: the slowest chain of these", "X", "ZeRO 1910.02054; Megatron SC21 2104.04473 §3"),
    kills=("“More of every kind of parallelism is better.” Each one divides something and sends something; the best layout stops at what fits.",
           "“每种并行都是越多越好。”每一种都切分一样东西，也发送一样东西；最好的布局切到放得下为止。"),
    card=Card(
        ("How do you choose a layout for a model on a cluster?", "怎样为集群上的一个模型选择并行布局？"),
        ("Tensor parallelism inside the node, only as much as memory needs; pipeline stages between nodes; data parallelism for the rest, with ZeRO-1 almost for free. Then check the bubble and the batch.",
         "张量并行放在节点内，只取显存所需的大小；流水线放在节点之间；其余用数据并行，ZeRO-1 几乎免费。最后检查气泡和批大小。"),
        ("What fits: 16 bytes a parameter over tp·pp, its 12 or 14 over dp with ZeRO, and activations. What is sent per step: tp 8bsh(t−1)/t a layer and micro-batch, on the fastest links and exposed; dp 2Ψ/(tp·pp) once a step, mostly hidden; pp only 2bsh a hop, "
         "but a bubble of (p−1)/m. So tp ≤ GPUs of a node, pp as small as memory allows with m ≥ 4p, dp the rest. ZeRO-3 instead of tp and pp is simplest where links are fast and the batch large: 3Ψ a micro-batch. "
         "Two layouts within a few percent are the same: take the simpler one. And measure: the order of the best three depends on the links.",
         "放得下：每参数 16 字节除以 tp·pp，其中 12 或 14 字节可用 ZeRO 再除以 dp，另加激活。每步发送：tp 为每层每微批次 8bsh(t−1)/t，走最快的链路且暴露；dp 为 2Ψ/(tp·pp)，每步一次，大多被隐藏；"
         "pp 每跳只有 2bsh，但有 (p−1)/m 的气泡。所以 tp 不超过一个节点的 GPU 数，pp 在 m ≥ 4p 的前提下取显存允许的最小值，其余给 dp。链路快、批大时，用 ZeRO-3 代替 tp 和 pp 最简单：每个微批次 3Ψ。"
         "相差几个百分点的两种布局视为相同：取简单的。还要实测：前三名的次序取决于链路。"),
        (("Why is tensor parallelism across nodes slow?", "为什么跨节点的张量并行慢？"), ("When is ZeRO-3 better than a pipeline?", "什么时候 ZeRO-3 优于流水线？")),
    ),
    hardware="dgx-h100",
)
def layout_puzzle(lab: Lab, hidden: int = 1024, batch: int = 32, cap_gb: float = 0.6) -> None:
    """Every legal layout of a GPT on two nodes of four GPUs is recorded on shapes, counted and timed; the quickest and the slowest then really train."""
    from glasscluster.scenarios.jobs.training import Trained, counted_rows
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.data.zero import predict_state
    from glasscluster.strategies.job import Job, job_info
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.strategies.trainer import train_rank
    from glasscluster.visualize.figures.cells import Table, cells_figure, shade
    from glasscluster.visualize.figures.palette import TIME
    from glasscluster.visualize.figures.plots import stack

    machine = replace(hardware(lab.hardware), name=f"{lab.hardware}, nodes of {NODE}", node_size=NODE)
    model = make_model("tiny", layers=LAYERS, hidden=hidden, heads=16, seq=512, vocab=2048)
    found: dict[tuple[int, int, int, int], dict[str, Any]] = {}
    wrong = rows_seen = 0
    for choice in legal():
        plan = make_plan(**layout(*choice, batch, "bf16"))
        plan.check(model)
        job = Job(plan, model, steps=1)
        run = Cluster(machine, GPUS, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
        rows = [r for r in counted_rows(Trained(job, run, None)) if r["match"] == "exact" and r["predicted"] is not None]
        wrong, rows_seen = wrong + sum(not r["ok"] for r in rows), rows_seen + len(rows)
        peak = max(total for total, _ in run.peak_memory())
        states = sum(sum(r.state_bytes.values()) for r in run.results)
        found[choice] = {"ms": run.timeline.makespan * 1e3, "gb": peak / 1e9, "run": run, "states": states, "split": run.timeline.breakdown()}
    legal_ones = len(found)
    fits = {c: x for c, x in found.items() if x["gb"] <= cap_gb}
    best, worst = (pick(fits, key=lambda c: fits[c]["ms"]) for pick in (min, max))
    ratio = fits[worst]["ms"] / fits[best]["ms"]
    every = [d for d, t, p in product(range(1, GPUS + 1), repeat=3) if d * t * p == GPUS and p <= LAYERS]
    lab.check("legal layouts of 8 GPUs", sum(3 if d > 1 else 1 for d in every), legal_ones, "dp·tp·pp = 8, ZeRO where dp > 1", unit="layouts")
    lab.check("counted rows of all layouts that differ from their formula", 0, wrong, "F15, F16, F18, F19, F22 and 2m·bsh a hop", unit="rows")
    psi = model.parameters()
    for zero in (0, 1, 3):
        units = found[8, 1, 1, zero]["run"].results[0].units
        padded = sum(size for _, _, size in units)
        n = [8 if zero >= s else 1 for s in (3, 2, 1)]
        lab.check(f"dp 8, ZeRO-{zero}: model states of all GPUs", 8 * sum(w * padded / k for w, k in zip((2, 2, 12), n, strict=True)), found[8, 1, 1, zero]["states"], "F15, each unit padded to N")
    titles = {best: ("The quickest that fits, run", "放得下的最快布局，实际运行"), worst: ("The slowest that fits, run", "放得下的最慢布局，实际运行")}
    small = make_model("tiny", layers=LAYERS, hidden=32, heads=8, seq=16)
    for key, choice in (("best", best), ("worst", worst)):
        lab.train(key, titles[choice], model=small, steps=2, **layout(*choice, 16, "fp32"))
    lab.ask(f"A GPT of {psi / 1e6:.0f} M parameters on 2 nodes of {NODE} GPUs: how many times as long as the quickest layout that fits does the slowest take?",
            f"{psi / 1e6:.0f} M 参数的 GPT，2 个节点各 {NODE} 块 GPU：放得下的布局中，最慢的用时是最快的几倍？", ratio, "×")

    sizes = sorted({c[:3] for c in found}, key=lambda c: (-c[0], c[1]))
    columns = (0, 1, 3)
    cells = [[found.get((*s, z)) for z in columns] for s in sizes]
    quickest = min(x["ms"] for x in found.values())
    text = [["" if x is None else f"{x['ms']:.1f} ms · {x['gb']:.2f} GB{'' if x['gb'] <= cap_gb else ' ✗'}" for x in line] for line in cells]
    fill = [["#ffffff" if x is None else "#d9d9d9" if x["gb"] > cap_gb else shade(min(1.0, (x["ms"] / quickest - 1) / 3)) for x in line] for line in cells]
    labels = [f"dp {d} · tp {t} · pp {p}" for d, t, p in sizes]
    lab.figure((f"Time of a step and peak memory of every layout; grey ✗: more than {cap_gb:g} GB a GPU", f"每种布局一步的时间与峰值显存；灰色 ✗：每卡超过 {cap_gb:g} GB"),
               lambda lang: cells_figure([Table("", labels, [f"ZeRO-{z}" for z in columns], text, fill)]))
    order = sorted(fits, key=lambda c: fits[c]["ms"])
    short = [f"{d}·{t}·{p} Z{z}" for d, t, p, z in order]
    names = {"en": ("compute", "exposed messages", "bubble", "optimizer", "dp·tp·pp and ZeRO stage, those that fit", "ms of the last GPU to finish"),
             "zh": ("计算", "暴露的通信", "气泡", "优化器", "dp·tp·pp 与 ZeRO 级，放得下的布局", "最后完成的 GPU 的毫秒数")}
    def parts(c: tuple[int, int, int, int]) -> list[float]:
        split = fits[c]["split"]
        exposed = sum(v for k, v in split.items() if k.startswith("exposed"))
        return [1e3 * v for v in (split["compute"], exposed, split["bubble"], split["optimizer"])]
    split_up = [parts(c) for c in order]
    looks = [TIME[k] for k in ("compute", "exposed", "bubble", "optimizer")]
    lab.figure(("Where the time goes, from the quickest to the slowest", "时间去向，从最快到最慢"),
               lambda lang: stack(short, {names[lang][i]: (looks[i], [s[i] for s in split_up]) for i in range(4)}, *names[lang][4:]))
    big = [(d, t, 64 // (d * t)) for t, d in product((1, 2, 4, 8), (64, 16, 8, 4, 2)) if d * t <= 64 and 64 // (d * t) <= 8]
    giga = [[sum(predict_state(z, round(13e9 / (t * p)), d, 2, 2, 12).values()) / 1e9 for z in columns] for d, t, p in big]
    lab.figure(("By the same formula F15: GB of model states a GPU, 13 B parameters on 64 GPUs (80 GB each, activations come on top)", "同一公式 F15：130 亿参数、64 块 GPU，每卡模型状态（GB；每卡 80 GB，激活另计）"),
               lambda lang: cells_figure([Table("", [f"dp {d} · tp {t} · pp {p}" for d, t, p in big], [f"ZeRO-{z}" for z in columns], [[f"{g:.3g}" for g in line] for line in giga], [["#d9d9d9" if g > 80 else shade(g / 160) for g in line] for line in giga])]))

    def say(c: tuple[int, int, int, int]) -> str:
        return f"dp {c[0]} · tp {c[1]} · pp {c[2]} · ZeRO-{c[3]}"
    lab.tell(f"{legal_ones} legal layouts; {len(fits)} fit in {cap_gb:g} GB. {rows_seen:,} counted rows, each against its formula: {wrong} differ.",
             f"合法布局 {legal_ones} 种，{len(fits)} 种放得进 {cap_gb:g} GB。共 {rows_seen:,} 行计数，逐行对照公式：{wrong} 行不同。", "tab=ledger")
    lab.tell(f"Quickest: {say(best)}, {fits[best]['ms']:.3g} ms. Slowest: {say(worst)}, {fits[worst]['ms']:.3g} ms: {ratio:.3g} times as long.",
             f"最快：{say(best)}，{fits[best]['ms']:.3g} ms。最慢：{say(worst)}，{fits[worst]['ms']:.3g} ms：用时 {ratio:.3g} 倍。", "tab=story")
    across = min((c for c in found if c[1] == 8), key=lambda c: found[c]["ms"])
    lab.tell(f"Tensor parallelism over both nodes takes {found[across]['ms']:.3g} ms: its messages in every attention and every MLP cross the network, and nothing hides them.",
             f"张量并行跨两个节点要 {found[across]['ms']:.3g} ms：它在每个 MLP 和每个注意力里的通信都要过网络，而且无处可藏。", "tab=story")
    lab.tell("The quickest and the slowest then trained a small GPT on 8 ranks, and both equal one device.", "最快与最慢的布局随后在 8 个 rank 上训练了一个小 GPT，都与单卡一致。", "tab=checks&run=best")
    lab.conclude(f"Of {legal_ones} layouts the slowest that fits takes {ratio:.3g} times as long as the quickest, {say(best)}.",
                 f"{legal_ones} 种布局中，放得下的最慢布局用时是最快布局（{say(best)}）的 {ratio:.3g} 倍。")
    lab.explain("Each kind of parallelism divides memory and sends something: tp on every layer, pp a little with a bubble, dp once a step behind the backward. The quickest divides no further than it must.",
                "每种并行都切分显存，也都要发送：tp 每层都发，pp 发得少但有气泡，dp 每步一次、藏在反向后面。最快的布局只切到必须为止。",
                ("tp's messages are exposed, so they belong on the fastest links.", "tp 的通信是暴露的，所以要放在最快的链路上。"),
                ("dp's are mostly hidden, and ZeRO-1 saves 12 bytes a parameter at the same volume.", "dp 的通信大多被隐藏，ZeRO-1 在通信量不变时省下每参数 12 字节中的大部分。"))
    lab.own_number(f"{say(best)}; the slowest takes {ratio:.3g}×.", f"{say(best)}；最慢的用时 {ratio:.3g} 倍。")
