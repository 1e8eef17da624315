"""E8: weight gradients that are deferred fill the bubble."""

from __future__ import annotations

from typing import Any

from glasscluster.base.text import Said
from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.pipeline.schedules import dualpipe_v, predict_live, zb_h1, zb_h2, zb_v
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.pipelines import ScheduleRun, comparison_figure, held
from glasscluster.visualize.figures.plots import bars
from glasscluster.visualize.words import word

F = 1e-3  # seconds of F, I and W of a rank's whole share
NAMES = {"1f1b": "1F1B", "zb-h1": "ZB-H1", "zb-h2": "ZB-H2", "zb-v": "ZB-V", "dualpipe-v": "DualPipe-V"}
TWO_CHUNKS = ("zb-v", "dualpipe-v")
VIRTUAL: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9}


@lesson
def zero_bubble(lab: Lab, p: int = 4, m: int = 8) -> None:
    """Five schedules really run on equal stages with F = I = W; a GPT trained with two of them is checked
    against one device.
    """
    runs = {key: run_one(lab, key, p, m) for key in NAMES}
    spans = {key: span_less_work(drawn, p) for key, (_, _, _, drawn) in runs.items()}
    theory = spans_by_formula(p, m)
    for key, ran in runs.items():
        check_as_run(lab, key, ran, theory[key], spans[key])
    ratio = spans["1f1b"] / spans["zb-h1"]
    lab.row("1f1b_over_zb_h1", 3.0, None, "Eq 24", simulated=ratio, unit="×", **VIRTUAL)
    pairs = runs["dualpipe-v"][1].validate(F / 2, F, 0.0, F / 2)
    source, simulated = "Eq 25: (p−1)(F&B + B − 3W)", pairs.stage_span_bubble
    lab.row(
        "dualpipe_as_written", theory["dualpipe-v"], None, source, simulated=simulated, unit="s", **VIRTUAL
    )
    wrong = equal_stages.wrong_gradients((run, schedule) for run, schedule, *_ in runs.values())
    lab.row("wrong_gradients", 0, wrong, "all ones: every element is known", unit="elements")
    plan: dict[str, Any] = {
        "model": make_model("tiny", layers=2 * p, hidden=32, seq=32),
        "steps": 2,
        "pp": p,
        "global_batch": m,
    }
    for key in ("zb-h1", "dualpipe-v"):
        lab.train(f"{key}-gpt", lab.text("gpt", schedule=NAMES[key]), schedule=key, compared=False, **plan)

    in_f = {key: span / F for key, span in spans.items()}
    lab.ask("span_bubble", in_f["zb-h1"], p=p, f1b=in_f["1f1b"])
    most = {key: most_held(drawn, p, key) for key, (_, _, _, drawn) in runs.items()}
    less = {key: (run.timeline.makespan - 3 * m * F) / F for key, (run, *_) in runs.items()}
    lab.figure("as_they_ran", lambda lang: as_they_ran(runs, in_f, lang))

    def two_bubbles(lang: str) -> Any:
        series = {lab.word("span_bubble", lang): in_f, lab.word("makespan_less_work", lang): less}
        values = {name: list(by_schedule.values()) for name, by_schedule in series.items()}
        return bars(list(NAMES.values()), values, lab.word("units", lang))

    def activations_held(lang: str) -> Any:
        held = lab.word("most_held", lang)
        return bars(list(NAMES.values()), {held: list(most.values())}, held)

    lab.figure("two_bubbles", two_bubbles)
    lab.figure("activations_held", activations_held)
    each = [f"{NAMES[key]} {span:.2g}" for key, span in in_f.items()]
    lab.tell("span_bubble", view="tab=timeline&run=zb-h1", each=Said(", ".join(each), "，".join(each)))
    took = {key: run.timeline.makespan * 1e3 for key, (run, *_) in runs.items()}
    times: dict[str, Any] = {"zb_h1_ms": took["zb-h1"], "f1b_ms": took["1f1b"]}
    lab.tell("zb_h1", view="tab=timeline&run=zb-h1", **times, zb_h1_held=most["zb-h1"])
    lab.tell("zb_h2", view="tab=timeline&run=zb-h2", zb_h2_held=most["zb-h2"], zb_h2_less=less["zb-h2"])
    lab.tell("folded", view="tab=timeline&run=zb-v", zb_v_held=most["zb-v"], dualpipe_v=in_f["dualpipe-v"])
    lab.conclude(f1b=in_f["1f1b"], zb_h1=in_f["zb-h1"])
    lab.explain()
    lab.card(zb_h1_held=most["zb-h1"], zb_h2_held=most["zb-h2"], zb_h2_less=less["zb-h2"])
    lab.own_number(f1b=in_f["1f1b"], zb_h1=in_f["zb-h1"], p=p)


def chunks(key: str) -> int:
    """The number of chunks of a rank."""
    return 2 if key in TWO_CHUNKS else 1


def run_one(lab: Lab, key: str, p: int, m: int) -> Any:
    """Run a schedule; returns (run, schedule, its metrics, its bars)."""
    return equal_stages.run_schedule(lab, key, lab.text(key), key, p, m, chunks(key), F)


def spans_by_formula(p: int, m: int) -> dict[str, float | None]:
    """The longest span of a stage less its work, in seconds, by Eq 24 and Eq 25."""
    half = F / 2  # of a chunk where a rank has two
    return {
        "1f1b": (p - 1) * 3 * F,
        "zb-h1": zb_h1.predict_span_bubble(p, m, F, 2 * F, F),
        "zb-h2": zb_h2.predict_span_bubble(p, m, F, 2 * F, F),
        "zb-v": zb_v.predict_span_bubble(p, m, half, 2 * half, half),
        "dualpipe-v": dualpipe_v.predict_bubble(p, m, half, 2 * half, half),
    }


def span_less_work(drawn: Any, p: int) -> float:
    """The longest time between a rank's first and last operation, less what that rank computed."""
    of_rank = [[bar for bar in drawn if bar.rank == rank] for rank in range(p)]
    spans = [max(bar.end for bar in mine) - min(bar.begin for bar in mine) for mine in of_rank]
    largest = spans.index(max(spans))
    return spans[largest] - sum(bar.end - bar.begin for bar in of_rank[largest])


def check_as_run(lab: Lab, key: str, ran: Any, theory: float | None, span: float) -> None:
    """Check bubble, time and held chunks of one schedule."""
    run, schedule, metrics, _ = ran
    name: dict[str, Any] = {"said": NAMES[key]}
    if (
        key != "dualpipe-v"
    ):  # a slot of two operations runs one after the other here: the formula is checked on the schedule
        lab.row("span_less_work", theory, span, "Eq 24, Eq 25", unit="s", tolerance=1e-12, **name)
    time, source = run.timeline.makespan, "the list, played"
    lab.row("time_by_its_list", metrics.makespan, None, source, simulated=time, unit="s", **VIRTUAL, **name)
    live = predict_live(key, len(schedule.ranks), schedule.micro_batches, chunks(key))
    for r, expected in enumerate(live):
        lab.row("chunks_held", expected, run.results[r]["live"], "Eq 22", unit="chunks", **name, r=r)


def most_held(drawn: Any, p: int, key: str) -> float:
    """The micro-batches that the fullest rank holds at once."""
    return max(max(held(drawn, rank)[1]) for rank in range(p)) / chunks(key)


def as_they_ran(runs: dict[str, Any], in_f: dict[str, float], lang: str) -> Any:
    """Draw the schedules one below the other."""
    shown = []
    for key, (run, _, _, drawn) in runs.items():
        bubble = word("span_bubble", lang, x=f"{in_f[key]:.3g} F")
        shown.append(ScheduleRun(f"<b>{NAMES[key]}</b>: {run.timeline.makespan * 1e3:g} ms, {bubble}", drawn))
    return comparison_figure(shown, lang, "F = I = W = 1 ms")
