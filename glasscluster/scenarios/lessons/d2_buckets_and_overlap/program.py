"""D2: gradient buckets, and how much of their reduction overlaps with backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glasscluster.scenarios.jobs.buckets import Swept, best, reductions, sweep
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.data import overlap
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.breakdown import series
from glasscluster.visualize.figures.plots import lines, stack

KIB = 1024
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # KiB of a bucket


@lesson
def buckets_and_overlap(lab: Lab, gpus: int = 4, bucket_kib: int = 256) -> None:
    """A GPT trains with hooks that launch buckets during backward; other bucket sizes are recorded beside
    it.
    """
    model = make_model("tiny", hidden=128, seq=128)
    plan: dict[str, Any] = {"dp": gpus, "micro_batch": 2, "global_batch": 2 * gpus}
    bucket, title = bucket_kib * KIB, lab.text("buckets", bucket_kib=bucket_kib)
    trained = lab.train("buckets", title, model=model, steps=1, bucket=bucket, **plan)
    late = lab.dry(model=model, bucket=bucket, overlap=False, **plan).timeline
    here = hardware(lab.hardware)
    wires = {"1": here, "1/8": here.scaled(bandwidth=1 / 8), "8": here.scaled(bandwidth=8)}
    rows = sweep(make_plan(**plan), model, list(wires.values()), [kib * KIB for kib in SIZES])
    swept = dict(zip(wires, rows, strict=True))
    best_by_wire = {wire: best(results) for wire, results in swept.items()}
    steps = [result.step_s * 1e3 for result in swept["1"]]
    best_kib = SIZES[steps.index(min(steps))]
    ends: dict[str, Any] = {"smallest": SIZES[0], "largest": SIZES[-1]}
    known = bare(lab, model, swept["1"], gpus)
    lab.ask("best_bucket", best_kib, **known, **ends)
    check_the_order(lab, steps, trained.timeline.makespan < late.makespan)

    ready, done, nbytes = reductions(trained.timeline)
    seconds_of = overlap.on_a_ring("all_reduce", gpus, here.link(0, 1), here.gpu.reduce_rate)
    end = overlap.end_of_chain(ready.tolist(), [seconds_of(size) for size in nbytes.tolist()])
    virtual: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    lab.row("end_of_last_bucket", end, None, "Eq 14", simulated=float(done.max()), **virtual)

    figures(lab, swept)
    times: dict[str, Any] = {"step_ms": trained.timeline.makespan * 1e3, "late_ms": late.makespan * 1e3}
    lab.tell("step", view="tab=timeline&run=buckets", buckets=len(done), bucket_kib=bucket_kib, **times)
    edges: dict[str, Any] = {"small_step": steps[0], "large_step": steps[-1], **ends}
    near = [kib for kib, step in zip(SIZES, steps, strict=True) if step < 1.01 * min(steps)]
    lab.tell("sweep", near=listed(map(str, near)), **edges)
    names = {"1": "own_kib", "1/8": "slow_kib", "8": "fast_kib"}
    sizes: dict[str, Any] = {name: best_by_wire[wire].size // KIB for wire, name in names.items()}
    lab.tell("other_links", view="tab=timeline&run=buckets", **sizes)
    lab.conclude(best_kib=best_kib, best=min(steps), **edges)
    lab.explain()
    lab.card(best=min(steps), **edges, **times)
    lab.own_number(best_kib=best_kib, gpus=gpus, hardware=lab.hardware)


def check_the_order(lab: Lab, steps: list[float], sooner: bool) -> None:
    """Check that neither the smallest nor the largest bucket is the best, and that overlap is sooner."""
    yes: dict[str, Any] = {"unit": "yes"}
    for key, at in (("smallest_is_not_best", 0), ("largest_is_not_best", -1)):
        lab.row(key, 1, int(steps[at] > min(steps)), "two recorded steps", **yes, kib=SIZES[at])
    lab.row("overlap_is_sooner", 1, int(sooner), "two recorded steps", **yes)


def figures(lab: Lab, swept: dict[str, Any]) -> None:
    """Draw where the time of a step goes by bucket size, and when the last bucket ends on three links."""

    def step_in_parts(lang: str) -> Any:
        shown = series([result.breakdown_s for result in swept["1"]], lang, 1e3)
        return stack([str(kib) for kib in SIZES], shown, lab.word("bucket_kib", lang), "ms")

    def on_three_wires(lang: str) -> Any:
        ended = {wire: [result.end_s * 1e3 for result in results] for wire, results in swept.items()}
        curves = {lab.word("links", lang, wire=wire): (SIZES, values) for wire, values in ended.items()}
        axes = (lab.word("bucket_kib", lang), lab.word("last_bucket", lang))
        return lines(curves, *axes, log_x=True, log_y=True)

    lab.figure("step_by_bucket", step_in_parts)
    lab.figure("best_by_link", on_three_wires)


def bare(lab: Lab, model: Any, swept: Sequence[Swept], gpus: int) -> dict[str, Any]:
    """What the best bucket is estimated from: the gradients' size, how many buckets it makes, the link, and
    the time of computing.
    """
    link, breakdown_s = hardware(lab.hardware).link(0, 1), swept[0].breakdown_s
    return {
        "mib": model.parameters() * 4 / KIB**2,
        "gpus": gpus,
        "alpha": link.alpha * 1e6,
        "beta": link.bandwidth / 1e9,
        "compute": breakdown_s["compute"] * 1e3,
        "optimizer": breakdown_s["optimizer"] * 1e3,
        "counts": listed(str(result.buckets) for result in swept),
        "sizes": listed(str(kib) for kib in SIZES),
    }
