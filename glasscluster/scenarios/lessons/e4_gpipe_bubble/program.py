"""E4: the pipeline bubble, predicted, run and timed."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import lines

SWEEP = (1, 2, 4, 8, 16, 32)  # numbers of micro-batches


@lesson
def gpipe_bubble(lab: Lab, p: int = 4, m: int = 8, hidden: int = 128) -> None:
    """Real stages of a GPT run GPipe's schedule; the bubble is what their recorded idle time adds up to."""
    model = make_model("tiny", layers=p, hidden=hidden, seq=64)
    shape: dict[str, Any] = {"model": model, "steps": 1, "pp": p, "global_batch": m}
    gpipe = lab.train("gpipe", lab.text("gpipe"), schedule="gpipe", **shape)
    one_f_one_b = lab.train("1f1b", lab.text("one_f_one_b"), schedule="1f1b", **shape)
    bubble = gpipe.timeline.bubble()
    share, ideal = bubble["bubble_fraction"], ideal_share(p, m)
    (slow, hop), many = stages_of(gpipe.timeline, p, m), 4 * m
    lab.ask("idle_percent", 100 * share, "%", p=p, m=m, slow=slow, hop=hop)

    # the two runs have rows of their own for Eq 20 with unequal stages; here it is on stages that are equal
    source, exactly = "Eq 20: (p−1)/(m+p−1)", 1e-9
    for n in (m, many):
        counted = share_of_equal_stages(lab, p, n)
        row: dict[str, Any] = {"simulated": counted, "unit": "", "match": "virtual", "tolerance": exactly}
        lab.row("equal_stages_bubble", ideal_share(p, n), None, source, **row, n=n)

    swept = [100 * share_of_a_gpt(lab, model, p, n) for n in SWEEP]
    theory = [100 * ideal_share(p, n) for n in SWEEP]

    def against_micro_batches(lang: str) -> Any:
        series = {lab.word("this_gpt", lang): (SWEEP, swept), lab.word("equal_stages", lang): (SWEEP, theory)}
        return lines(series, lab.word("micro_batches", lang), lab.word("bubble_percent", lang), log_x=True)

    lab.figure("bubble_by_micro_batches", against_micro_batches)

    over_useful = bubble["bubble_over_ideal"]
    lab.tell(
        "bubble", view="tab=timeline&run=gpipe", p=p, m=m, share=share, over_useful=over_useful, ideal=ideal
    )
    more: dict[str, Any] = {"many": many, "ideal_many": ideal_share(p, many)}
    lab.tell("more_micro_batches", **more, share_many=share_of_a_gpt(lab, model, p, many))
    lab.tell(
        "one_f_one_b",
        view="tab=memory&run=1f1b",
        share_1f1b=one_f_one_b.timeline.bubble()["bubble_fraction"],
        peak_1f1b=fullest_rank(one_f_one_b) / 1e6,
        peak_gpipe=fullest_rank(gpipe) / 1e6,
    )
    lab.conclude(share=share, ideal=ideal)
    lab.explain()
    lab.card(**more, ideal=ideal, slow=slow)
    lab.own_number(p=p, m=m, share=share)


def stages_of(timeline: Any, p: int, m: int) -> tuple[float, float]:
    """Over the time of a micro-batch on a stage before the last: that on the last stage, and of a message.

    The message is what Eq 20 leaves over; a row of the run holds it against the hardware's.
    """
    first, last = timeline.window
    stages = timeline.useful() / m
    others = float(stages[:-1].mean())
    hop = (last - first - stages.sum() - (m - 1) * stages.max()) / (2 * (p - 1))
    return float(stages[-1]) / others, float(hop) / others


def ideal_share(p: int, m: int) -> float:
    """The idle share of all GPU time when stages are equal and messages are free."""
    return (p - 1) / (m + p - 1)


def share_of_equal_stages(lab: Lab, p: int, m: int) -> float:
    """The idle share with stages of one matmul each, run on ranks and timed where messages cost nothing."""
    run = lab.cluster(p).run(equal_stages.stages, "gpipe", m)
    run.hardware = equal_stages.machine()
    return run.timeline.bubble()["bubble_fraction"]


def share_of_a_gpt(lab: Lab, model: Any, p: int, m: int) -> float:
    """The idle share of a GPT's stages, from shapes alone."""
    run = lab.dry(model=model, pp=p, schedule="gpipe", global_batch=m)
    return run.timeline.bubble()["bubble_fraction"]


def fullest_rank(trained: Any) -> float:
    """The peak bytes of the rank that holds most."""
    return max(total for total, _ in trained.run.peak_memory())
