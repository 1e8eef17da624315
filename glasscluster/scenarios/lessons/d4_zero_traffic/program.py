"""D4: what ZeRO's stages cost in traffic, and what prefetch hides."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import bars


@lesson
def zero_traffic(lab: Lab, gpus: int = 4) -> None:
    """Stages 0 to 3 train the same GPT with every byte counted; stage 3 runs with and without prefetch."""

    model = make_model("tiny", hidden=128, seq=128)
    common: dict[str, Any] = {
        "model": model,
        "steps": 1,
        "dp": gpus,
        "micro_batch": 2,
        "global_batch": 2 * gpus,
    }
    sent, exposed = [], {}
    for stage in range(4):
        title = (f"ZeRO-{stage}" if stage else "Data parallel", f"ZeRO-{stage}" if stage else "数据并行")
        run = lab.train(f"zero{stage}", title, checked=stage == 3, zero=stage, **common)
        graph = run.run.graph
        counted = sum(graph.bytes_sent(axis="dp", purpose="gradients")) + sum(
            graph.bytes_sent(axis="dp", purpose="parameters")
        )
        padded = sum(size for _, _, size in run.run.results[0].units)
        lab.row(
            "stage_bytes_sent_all_ranks",
            (3 if stage == 3 else 2) * (gpus - 1) * padded * 4,
            counted,
            "F16, m = 1",
            stage=stage,
        )
        sent.append(counted / gpus / (padded * 4 * (gpus - 1) / gpus))
        exposed[stage] = run.timeline.summary()["exposed_comm_s"]
    for name, options, times in (
        ("stage 3, parameters kept until backward", {"zero": 3, "reshard": False}, 2),
        ("stage 2, 3 micro-batches", {"zero": 2, "global_batch": 6 * gpus}, 4),
        (
            "stage 2, 3 micro-batches added up whole",
            {"zero": 2, "global_batch": 6 * gpus, "accumulate": "whole"},
            2,
        ),
    ):
        other = lab.dry(**{k: v for k, v in common.items() if k != "steps"} | options)
        counted = sum(sum(other.graph.bytes_sent(axis="dp", purpose=p)) for p in ("gradients", "parameters"))
        padded = sum(size for _, _, size in other.results[0].units)
        lab.row("bytes_sent_all_ranks", times * (gpus - 1) * padded * 4, counted, "F16", name=name)
    bare = lab.train(
        "no-prefetch", lab.text("zero_without_prefetch"), checked=False, zero=3, prefetch=0, **common
    )
    without = bare.timeline.summary()["exposed_comm_s"]
    lab.ask("number", sent[3] / sent[0], "×")
    lab.figure(
        "traffic_step_stage",
        lambda lang: bars(
            [f"ZeRO-{s}" for s in range(4)],
            {lab.word("sent_elements", lang): sent},
            lab.word("sent_elements", lang),
        ),
    )
    lab.tell(
        "stages_send_elements_rank",
        view="tab=network&run=zero3",
        by_stage="、".join((f"{s:.3g}" for s in sent)),
    )
    lab.tell(
        "prefetch_ms_stage_communication",
        view="tab=timeline&run=no-prefetch",
        exposed_ms=exposed[3] * 1000.0,
        without_ms=without * 1000.0,
    )
    lab.conclude(times_bytes=sent[3] / sent[0], hidden_share=1 - exposed[3] / without)
    lab.explain()
    lab.own_number(times_bytes=sent[3] / sent[0], times_longer=without / exposed[3])
