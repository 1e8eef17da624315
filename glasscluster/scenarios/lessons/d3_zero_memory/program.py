"""D3: what each ZeRO stage leaves on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.judge.accounts import state_rows
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.memory import StateBook, memory_by_strategy
from glasscluster.visualize.figures.plots import bars


@lesson
def zero_memory(lab: Lab, gpus: int = 4, hidden: int = 64) -> None:
    """The same bf16 training at stages 0 to 3; every rank's live tensors are counted before the optimizer step."""

    model = make_model("tiny", hidden=hidden, seq=64)
    parameters = model.parameters()
    held = []
    sizes = (1, 4, 16, 64, 256, 1024)
    gb = {
        (stage, n): sum(predict_state(stage, 7_500_000_000, n, 2, 2, 12).values()) / 1e9
        for stage in range(4)
        for n in sizes
    }
    for stage, printed, digits in ((1, 31.4, 1), (2, 16.6, 1), (3, 1.88, 2)):
        lab.row(
            "table_paper_stage_parameters_gpus",
            printed,
            round(gb[stage, 64], digits),
            "ZeRO 1910.02054 Table 1",
            unit="GB",
            stage=stage,
        )
    table = Table(
        "",
        [f"ZeRO-{stage}" for stage in range(4)],
        [str(n) for n in sizes],
        [[f"{gb[stage, n]:.3g}" for n in sizes] for stage in range(4)],
        [[shade(gb[stage, n] / 120) for n in sizes] for stage in range(4)],
    )
    lab.figure(
        "gb_model_states_gpu",
        lambda lang: cells_figure([replace(table, x=lab.word("gpus", lang))]),
    )
    for stage in range(4):
        name = (f"ZeRO-{stage}" if stage else "Data parallel", f"ZeRO-{stage}" if stage else "数据并行")
        run = lab.train(
            f"zero{stage}",
            name,
            model=model,
            steps=1,
            checked=stage == 3,
            dp=gpus,
            zero=stage,
            precision="bf16",
            global_batch=2 * gpus,
        )
        held.append(run.run.results[0].state_bytes)
        units = run.run.results[0].units
        padded = sum(size for _, _, size in units)
        shard = [gpus if stage >= s else 1 for s in (3, 2, 1)]
        lab.row(
            "stage_bytes_model_states_rank",
            sum(w * padded / n for w, n in zip((2, 2, 12), shard, strict=True)),
            sum(held[-1].values()),
            "F15, each unit padded to N",
            stage=stage,
        )
    each = [{k: v / parameters for k, v in h.items()} for h in held]
    lab.ask("number", 7.5 * (2 + 14 / 64), "GB")
    stages = [f"ZeRO-{s}" for s in range(4)]
    lab.figure(
        lab.text("bytes_parameter_gpus", gpus=gpus),
        lambda lang: bars(
            stages,
            {
                words[lang][i]: [e[k] for e in each]
                for i, k in enumerate(("parameters", "gradients", "optimizer"))
            },
            lab.word("bytes_parameter_counted", lang),
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
        "peak_gpu_stages_recomputation",
        lambda lang: memory_by_strategy(
            [
                replace(b, name=f"ZeRO-{s}" + (spoken[w] if lang == "zh" else w.replace(" + ", "<br>")))
                for s, w, b in books
            ],
            lang,
        ),
    )
    totals = [sum(e.values()) for e in each]
    lab.tell(
        "counted_rank_bytes_parameter",
        view="tab=memory&run=zero3",
        by_stage="、".join((f"{t:.3g}" for t in totals)),
    )
    lab.conclude(whole=totals[0], stage_3=totals[3], gpus=gpus)
    lab.explain()
    lab.own_number(stage_2=totals[2], gpus=gpus)


def _book(lab: Lab, model: Any, **plan: Any) -> Any:
    """A plan recorded dry: its states counted and by the formula, and what else lived at the peak of the fullest rank."""

    layout, run = make_plan(**plan), lab.dry(model=model, **plan)
    rows = {
        r["name"].split(" held")[0]: r for r in state_rows(layout, model, run.results) if r["unit"] == "bytes"
    }
    counted, predicted = (
        {k: r[side] / layout.gpus for k, r in rows.items()} for side in ("counted", "predicted")
    )
    peaks = run.peak_memory()
    more = {k: sum(split[k] for _, split in peaks) / layout.gpus for k in ("activations", "buffers")}
    return StateBook("", counted, predicted, more)
