"""D3: what each ZeRO stage leaves on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


@lesson(
    "D3",
    title=("ZeRO memory", "ZeRO 显存"),
    topic=("data parallel", "数据并行"),
    question=(
        "7.5 billion parameters on 64 GPUs: how many GB of model states at ZeRO stage 2?",
        "75 亿参数、64 块 GPU：ZeRO-2 每卡模型状态多少 GB？",
    ),
    formula=Formula("Eq 15", "(w_p/n_p + w_g/n_g + w_o/n_o)·Ψ;  2, 2, 12 bytes with Adam in mixed precision", "X", "ZeRO 1910.02054 §3.1"),
    kills=(
        "“ZeRO-3 is model parallelism and shards activations.” It shards model states; every rank still computes every layer on its own batch.",
        "“ZeRO-3 是模型并行，会切分激活。”它切分的是模型状态；每个 rank 仍对自己的数据计算每一层。",
    ),
    card=Card(
        ("What does each ZeRO stage shard?", "ZeRO 各阶段切分什么？"),
        (
            "Of 16 bytes a parameter: stage 1 the 12 of the optimizer, stage 2 also the 2 of gradients, stage 3 also the 2 of parameters.",
            "每参数 16 字节：阶段 1 切优化器的 12 字节，阶段 2 再切梯度 2 字节，阶段 3 再切参数 2 字节。",
        ),
        (
            "Mixed-precision Adam holds 2 (weights) + 2 (gradients) + 12 (fp32 copy and two moments) bytes a parameter on every data-parallel rank. Stage 1: "
            "4 + 12/N; 2: 2 + 14/N; 3: 16/N. With N = 64 and 7.5 B: 120, 31.4, 16.6, 1.9 GB. Activations, buckets and gathered layers "
            "come on top, and stage 3 pays half as much traffic again.",
            "混合精度 Adam 在每个数据并行 rank 上每参数占 2（权重）+ 2（梯度）+ 12（fp32 副本与两个动量）字节。阶段 1：4+12/N；2：2+14/N；3：16/N。"
            "N=64、7.5B：120、31.4、16.6、1.9 GB。激活、桶和聚集的层另算，阶段 3 通信量再多一半。",
        ),
        (
            ("Where do the 12 bytes come from?", "12 字节从哪里来？"),
            ("What is left at stage 3 that is not sharded?", "阶段 3 还有什么没有切分？"),
        ),
    ),
)
def zero_memory(lab: Lab, gpus: int = 4, hidden: int = 64) -> None:
    """The same bf16 training at stages 0 to 3; every rank's live tensors are counted before the optimizer step."""
    from glasscluster.strategies.data.zero import predict_state
    from glasscluster.strategies.plan import make_model
    from glasscluster.visualize.figures.cells import Table, cells_figure, shade
    from glasscluster.visualize.figures.memory import memory_by_strategy
    from glasscluster.visualize.figures.plots import bars

    model = make_model("tiny", hidden=hidden, seq=64)
    parameters = model.parameters()
    held = []
    sizes = (1, 4, 16, 64, 256, 1024)
    gb = {(stage, n): sum(predict_state(stage, 7_500_000_000, n, 2, 2, 12).values()) / 1e9 for stage in range(4) for n in sizes}
    for stage, printed, digits in ((1, 31.4, 1), (2, 16.6, 1), (3, 1.88, 2)):
        lab.check(f"Table 1 of the paper, stage {stage}: 7.5 B parameters on 64 GPUs", printed, round(gb[stage, 64], digits),
                  "ZeRO 1910.02054 Table 1", unit="GB")  # fmt: skip
    table = Table("", [f"ZeRO-{stage}" for stage in range(4)], [str(n) for n in sizes],
                  [[f"{gb[stage, n]:.3g}" for n in sizes] for stage in range(4)],
                  [[shade(gb[stage, n] / 120) for n in sizes] for stage in range(4)])  # fmt: skip
    lab.figure(
        (
            "GB of model states on each GPU, 7.5 B parameters: Table 1 of the paper, from the formula",
            "每卡模型状态（GB），75 亿参数：由公式得到论文表 1",
        ),
        lambda lang: cells_figure([replace(table, x={"en": "GPUs", "zh": "GPU 数"}[lang])]),
    )
    for stage in range(4):
        name = (f"ZeRO-{stage}" if stage else "Data parallel", f"ZeRO-{stage}" if stage else "数据并行")
        run = lab.train(
            f"zero{stage}", name, model=model, steps=1, checked=stage == 3, dp=gpus, zero=stage, precision="bf16", global_batch=2 * gpus
        )
        held.append(run.run.results[0].state_bytes)
        units = run.run.results[0].units
        padded = sum(size for _, _, size in units)
        shard = [gpus if stage >= s else 1 for s in (3, 2, 1)]
        lab.check(f"stage {stage}: bytes of model states on a rank", sum(w * padded / n for w, n in zip((2, 2, 12), shard, strict=True)),
                  sum(held[-1].values()), "Eq 15, each unit padded to N")  # fmt: skip
    each = [{k: v / parameters for k, v in h.items()} for h in held]
    lab.ask(
        "7.5 billion parameters, 64 GPUs, stage 2: how many GB a GPU?",
        "75 亿参数、64 块 GPU、阶段 2：每卡多少 GB？",
        7.5 * (2 + 14 / 64),
        "GB",
    )
    words = {"en": ("parameters", "gradients", "optimizer"), "zh": ("参数", "梯度", "优化器状态")}
    axis = {"en": "bytes a parameter, counted", "zh": "每参数字节数（计数）"}
    stages = [f"ZeRO-{s}" for s in range(4)]
    lab.figure(
        (f"Bytes a parameter on each of {gpus} GPUs", f"{gpus} 块 GPU 上每参数的字节数"),
        lambda lang: bars(
            stages,
            {words[lang][i]: [e[k] for e in each] for i, k in enumerate(("parameters", "gradients", "optimizer"))},
            axis[lang],
            stack=True,
        ),
    )
    ways = {
        "": {},
        " + recompute": {"recompute": "full"},
        " + offload": {"offload": "optimizer"},
        " + both": {"recompute": "full", "offload": "optimizer"},
    }
    books = [
        (stage, way, _book(lab, model, dp=gpus, zero=stage, precision="bf16", global_batch=2 * gpus, **more))
        for stage in range(4)
        for way, more in ways.items()
    ]
    spoken = {"": "", " + recompute": "<br>重计算", " + offload": "<br>卸载", " + both": "<br>两者"}
    lab.figure(
        ("The peak of a GPU: stages, recomputation, offload", "每卡峰值：阶段、重计算、卸载"),
        lambda lang: memory_by_strategy(
            [replace(b, name=f"ZeRO-{s}" + (spoken[w] if lang == "zh" else w.replace(" + ", "<br>"))) for s, w, b in books], lang
        ),
    )
    totals = [sum(e.values()) for e in each]
    lab.tell(
        f"Counted on a rank, bytes a parameter at stages 0 to 3: {', '.join(f'{t:.3g}' for t in totals)}.",
        f"一个 rank 上计得的每参数字节数（阶段 0 到 3）：{'、'.join(f'{t:.3g}' for t in totals)}。",
        "tab=memory&run=zero3",
    )
    lab.conclude(
        f"From {totals[0]:.3g} to {totals[3]:.3g} bytes a parameter on {gpus} GPUs.",
        f"{gpus} 块 GPU 上每参数从 {totals[0]:.3g} 降到 {totals[3]:.3g} 字节。",
    )
    lab.explain(
        "The same formula with your N: 7.5 × (2 + 14/64) = 16.6 GB. What was counted here is that formula with four GPUs, padding included.",
        "把 N 代入同一公式：7.5 × (2 + 14/64) = 16.6 GB。这里计得的就是四块 GPU 时的公式（含填充）。",
        (
            "Stage 1 shards the optimizer, 2 also the gradients, 3 also the parameters.",
            "第 1 级切分优化器状态，第 2 级再切分梯度，第 3 级再切分参数。",
        ),
        ("Activations are not sharded by any stage.", "任何一级都不切分激活。"),
    )
    lab.own_number(f"{totals[2]:.3g} bytes a parameter at stage 2 on {gpus} GPUs.", f"{gpus} 块 GPU、阶段 2：每参数 {totals[2]:.3g} 字节。")


def _book(lab: Lab, model: Any, **plan: Any) -> Any:
    """A plan recorded dry: its states counted and by the formula, and what else lived at the peak of the fullest rank."""
    from glasscluster.strategies.judge.accounts import state_rows
    from glasscluster.strategies.plan import make_plan
    from glasscluster.visualize.figures.memory import StateBook

    layout, run = make_plan(**plan), lab.dry(model=model, **plan)
    rows = {r["name"].split(" held")[0]: r for r in state_rows(layout, model, run.results) if r["unit"] == "bytes"}
    counted, predicted = ({k: r[side] / layout.gpus for k, r in rows.items()} for side in ("counted", "predicted"))
    peaks = run.peak_memory()
    more = {k: sum(split[k] for _, split in peaks) / layout.gpus for k in ("activations", "buffers")}
    return StateBook("", counted, predicted, more)
