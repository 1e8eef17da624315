"""E5: 1F1B takes as long as GPipe and holds less."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.pipeline.schedules import gpipe, one_f_one_b
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.pipelines import ScheduleRun, comparison_figure, held, staircase_figure
from glasscluster.visualize.figures.plots import bars, lines

SCHEDULES = {"gpipe": gpipe, "1f1b": one_f_one_b}
NAMES = {"gpipe": "GPipe", "1f1b": "1F1B"}


@lesson
def memory_of_1f1b(lab: Lab, p: int = 4, m: int = 8, hidden: int = 64) -> None:
    """Equal stages run both schedules, then a GPT trains with both while every tensor that backward waits
    for is counted.
    """
    runs = {
        key: equal_stages.run_schedule(lab, key, lab.text("equal_stages", schedule=name), key, p, m)
        for key, name in NAMES.items()
    }
    shown = [check_equal_stages(lab, key, run, drawn, p, m) for key, (run, _, _, drawn) in runs.items()]
    wrong = equal_stages.wrong_gradients((run, schedule) for run, schedule, *_ in runs.values())
    lab.row("wrong_gradients", 0, wrong, "all ones: every element is known", unit="elements")

    model = make_model("tiny", layers=p, hidden=hidden, seq=64)
    plan: dict[str, Any] = {"model": model, "steps": 1, "pp": p, "global_batch": m}
    trained = {
        key: lab.train(f"{key}-gpt", lab.text("gpt", schedule=name), schedule=key, **plan)
        for key, name in NAMES.items()
    }
    held_bytes = {key: activations(t.run) for key, t in trained.items()}  # bytes of each stage at its peak
    counts = [p, m, 2 * m, 4 * m]
    grown = {
        key: [activations(lab.dry(model=model, pp=p, schedule=key, global_batch=k)) for k in counts]
        for key in SCHEDULES
    }
    some, twice = grown["gpipe"][1:3]
    # bytes of a micro-batch, by stage
    micro_batch_bytes = [(b - a) / m for a, b in zip(some, twice, strict=True)]
    check_growth(lab, grown, micro_batch_bytes, m)
    for s in range(p):
        # 1F1B is fullest in the middle, where the gradient it sent last may still be on its way
        on_its_way = model.seq * hidden * 4 if s else 0
        expected = micro_batch_bytes[s] * (m - min(m, p - s)) - on_its_way
        source, less = (
            "Eq 22: m − min(m, p−s) micro-batches; a gradient on its way",
            held_bytes["gpipe"][s] - held_bytes["1f1b"][s],
        )
        lab.row("holds_less", expected, less, source, s=s)
    shares = {n: check_bubble(lab, p, n) for n in (m, 4 * m)}

    step_ms = runs["1f1b"][0].timeline.makespan * 1e3
    gpipe_ms = runs["gpipe"][0].timeline.makespan * 1e3
    lab.ask("time_of_1f1b", step_ms, "ms", p=p, m=m, f_ms=1, b_ms=2, gpipe_ms=gpipe_ms)
    lab.figure("same_bubble", lambda lang: comparison_figure(shown, lang, "f = 1 ms, b = 2 ms"))
    lab.figure("staircase", lambda lang: staircase_figure(shown, lang))
    figures_of_the_gpt(lab, held_bytes, grown, counts)
    lab.tell("same_time", view="tab=timeline&run=1f1b", step_ms=step_ms, fill=p - 1, slots=m + p - 1)
    lab.tell("held", view="tab=timeline&run=gpipe", m=m, p=p)
    total = {key: sum(by_stage) / 1e6 for key, by_stage in held_bytes.items()}
    lab.tell("gpt", view="tab=memory&run=1f1b-gpt", gpipe_mb=total["gpipe"], f1b_mb=total["1f1b"])
    fullest = {key: max(by_count[3]) / 1e6 for key, by_count in grown.items()}
    many: dict[str, Any] = {"many": 4 * m, "gpipe_many_mb": fullest["gpipe"], "f1b_many_mb": fullest["1f1b"]}
    lab.tell("more_micro_batches", view="tab=memory&run=gpipe-gpt", **many)
    ratio = sum(held_bytes["gpipe"]) / sum(held_bytes["1f1b"])
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.own_number(ratio=ratio, p=p, m=m)
    lab.card(share=shares[m], share_many=shares[4 * m], many=4 * m)


def check_equal_stages(lab: Lab, key: str, run: Any, drawn: Any, p: int, m: int) -> ScheduleRun:
    """Check the micro-batches held by each stage, and the time of the step; return what the figures draw."""
    name = NAMES[key]
    for s in range(p):
        expected, most = SCHEDULES[key].predict_in_flight(p, m, s), max(held(drawn, s)[1])
        lab.row("most_held", expected, most, "Eq 22", unit="micro-batches", schedule=name, s=s)
    time = run.timeline.makespan
    virtual: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}
    lab.row("time_of_a_step", (m + p - 1) * 3e-3, None, "Eq 20", simulated=time, **virtual, schedule=name)
    return ScheduleRun(f"<b>{name}</b>: {time * 1e3:g} ms", drawn)


def check_bubble(lab: Lab, p: int, n: int) -> float:
    """Check the bubble of 1F1B with n micro-batches: its list, played; return its share of the whole."""
    share = one_f_one_b.schedule(p, n).validate(1e-3, 2e-3, 0.0, 0.0).bubble_fraction
    expected, source = one_f_one_b.predict_bubble(p, n)[0], "Eq 20: (p−1)/(m+p−1)"
    exactly: dict[str, Any] = {"unit": "", "match": "virtual", "tolerance": 1e-9}
    lab.row("bubble", expected, None, source, simulated=share, **exactly, n=n)
    return share


def activations(run: Any) -> list[int]:
    """The bytes of activations of each stage at its peak."""
    return [split["activations"] for _, split in run.peak_memory()]


def check_growth(lab: Lab, grown: dict[str, list[list[int]]], micro_batch_bytes: list[float], m: int) -> None:
    """Check what 3m more micro-batches cost: GPipe holds each of them, 1F1B none."""
    source = "Eq 22: each micro-batch is held"
    for s, nbytes in enumerate(micro_batch_bytes):
        more = grown["gpipe"][3][s] - grown["gpipe"][1][s]
        lab.row("more_in_gpipe", nbytes * 3 * m, more, source, s=s, more=3 * m)
    more = sum(grown["1f1b"][3]) - sum(grown["1f1b"][1])
    lab.row("more_in_1f1b", 0, more, "Eq 22: min(m, p−s) for m ≥ p", more=3 * m)


def figures_of_the_gpt(lab: Lab, held_bytes: Any, grown: Any, counts: list[int]) -> None:
    """Draw the activations of each stage, and of the fullest one against the number of micro-batches."""

    def by_stage(lang: str) -> Any:
        series = {NAMES[key]: [nbytes / 1e6 for nbytes in by_stage] for key, by_stage in held_bytes.items()}
        stages = [lab.word("stage", lang, s=s) for s in range(len(held_bytes["gpipe"]))]
        return bars(stages, series, lab.word("activations_at_peak", lang))

    def by_micro_batches(lang: str) -> Any:
        series = {
            NAMES[key]: (counts, [max(stages) / 1e6 for stages in by_count])
            for key, by_count in grown.items()
        }
        return lines(
            series, lab.word("micro_batches", lang), lab.word("activations_of_fullest", lang), log_x=True
        )

    lab.figure("gpt_by_stage", by_stage)
    lab.figure("gpt_by_micro_batches", by_micro_batches)
