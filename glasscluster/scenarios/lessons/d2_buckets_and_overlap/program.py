"""D2: gradient buckets, and what of their reduction fits behind backward."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.jobs.buckets import best, reductions, sweep
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.data import overlap
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.palette import TIME
from glasscluster.visualize.figures.plots import lines, stack
from glasscluster.visualize.page.words import word

KIB = 1024


@lesson
def buckets_and_overlap(lab: Lab, gpus: int = 4, bucket_kib: int = 256) -> None:
    """A GPT trains with hooks that launch buckets during backward; other bucket sizes are recorded beside it."""

    model = make_model("tiny", hidden=128, seq=128)
    plan: dict[str, Any] = {"model": model, "dp": gpus, "micro_batch": 2, "global_batch": 2 * gpus}
    trained = lab.train(
        "buckets", lab.text("buckets_kib", bucket_kib=bucket_kib), steps=1, bucket=bucket_kib * KIB, **plan
    )
    sizes = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    here, layout = hardware(lab.hardware), make_plan(**{k: v for k, v in plan.items() if k != "model"})
    wires = {
        "1": here,
        "1/8": here.scaled(bandwidth=1 / 8),
        "8": here.scaled(bandwidth=8),
    }  # links so many times as wide
    swept = dict(
        zip(wires, sweep(layout, model, list(wires.values()), [kib * KIB for kib in sizes]), strict=True)
    )
    steps = [s.step_s * 1e3 for s in swept["1"]]
    late = lab.dry(bucket=bucket_kib * KIB, overlap=False, **plan).timeline
    found = {wire: best(rows) for wire, rows in swept.items()}
    best_kib = sizes[steps.index(min(steps))]
    lab.ask("number", best_kib, "KiB", smallest=sizes[0], largest=sizes[-1])
    ready, done, nbytes = reductions(trained.timeline)
    cost = [
        overlap.on_a_ring("all_reduce", gpus, here.link(0, 1), here.gpu.reduce_rate)(b)
        for b in nbytes.tolist()
    ]
    end = overlap.end_of_chain(ready.tolist(), cost)
    lab.row(
        "end_last_bucket",
        end,
        None,
        "F14",
        simulated=float(done.max()),
        unit="s",
        match="virtual",
        tolerance=1e-9,
    )
    parts = {"compute": "compute_s", "optimizer": "optimizer_s", "exposed": "exposed_s", "bubble": "bubble_s"}

    def step_in_parts(lang: str) -> Any:
        shown = {
            word("waiting" if k == "bubble" else k, lang): (
                TIME[k],
                [getattr(s, f) * 1e3 for s in swept["1"]],
            )
            for k, f in parts.items()
        }
        return stack(
            [str(kib) for kib in sizes],
            {k: v for k, v in shown.items() if any(v[1])},
            lab.word("bucket_kib", lang),
            "ms",
        )

    def on_three_wires(lang: str) -> Any:
        said = lab.word("links", lang)
        series = {said.format(wire): (sizes, [s.end_s * 1e3 for s in rows]) for wire, rows in swept.items()}
        return lines(
            series,
            lab.word("bucket_kib", lang),
            lab.word("last_bucket_reduced_ms", lang),
            log_x=True,
            log_y=True,
        )

    lab.figure("step_bucket_size_exposed", step_in_parts)
    lab.figure("best_size_depends_link", on_three_wires)
    own = trained.timeline
    lab.tell(
        "buckets_up_kib_step",
        view="tab=timeline&run=buckets",
        buckets=len(done),
        bucket_kib=bucket_kib,
        step_ms=own.makespan * 1000.0,
        late_ms=late.makespan * 1000.0,
    )
    lab.tell(
        "links_eighth_wide_last",
        view="tab=timeline&run=buckets",
        slow_kib=found["1/8"].size // KIB,
        fast_kib=found["8"].size // KIB,
    )
    lab.conclude(
        best_kib=best_kib,
        best=min(steps),
        small_step=steps[0],
        smallest=sizes[0],
        large_step=steps[-1],
        largest=sizes[-1],
    )
    lab.explain()
    lab.own_number(best_kib=best_kib, gpus=gpus, hardware=lab.hardware)
