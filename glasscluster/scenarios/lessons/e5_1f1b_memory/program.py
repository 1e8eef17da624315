"""E5: 1F1B takes as long as GPipe and holds less."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.pipeline.schedules import gpipe, one_f_one_b
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held, staircase_figure
from glasscluster.visualize.figures.plots import bars, lines


@lesson
def memory_of_1f1b(lab: Lab, p: int = 4, m: int = 8, hidden: int = 64) -> None:
    """Equal stages run both schedules, then a GPT trains with both while every tensor that backward waits for is counted."""

    theory = {"gpipe": gpipe, "1f1b": one_f_one_b}
    names = {"gpipe": "GPipe", "1f1b": "1F1B"}
    runs = {
        n: equal_stages.played(lab, n, lab.text("equal_stages", schedule=names[n]), n, p, m) for n in theory
    }
    shown = []
    for name, (run, _, _, drawn) in runs.items():
        for s in range(p):
            lab.row(
                "most_micro_batches_held_stage",
                theory[name].predict_in_flight(p, m, s),
                max(held(drawn, s)[1]),
                "F22",
                unit="micro-batches",
                schedule=names[name],
                s=s,
            )
        lab.row(
            "time_step_ms_ms",
            (m + p - 1) * 3e-3,
            None,
            "F20",
            simulated=run.timeline.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            schedule=names[name],
        )
        shown.append(Played(f"<b>{names[name]}</b>: {run.timeline.makespan * 1e3:g} ms", drawn))
    lab.row(
        "elements_gradients_not",
        0,
        equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()),
        "all ones: every element is known",
        unit="elements",
    )

    model = make_model("tiny", layers=p, hidden=hidden, seq=64)
    trained = {
        n: lab.train(
            f"{n}-gpt",
            lab.text("gpt", schedule=names[n]),
            model=model,
            steps=1,
            schedule=n,
            pp=p,
            global_batch=m,
        )
        for n in theory
    }

    def activations(run: Any) -> list[int]:
        return [split["activations"] for _, split in run.peak_memory()]

    kept = {n: activations(t.run) for n, t in trained.items()}
    counts = [p, m, 2 * m, 4 * m]
    grown = {
        n: [activations(lab.dry(model=model, pp=p, schedule=n, global_batch=k)) for k in counts]
        for n in theory
    }
    one = [
        (b - a) / (counts[1] - counts[0]) for a, b in zip(*grown["gpipe"][:2], strict=True)
    ]  # bytes of a micro-batch, by stage
    for s in range(p):
        lab.row(
            "gpipe_bytes_more_stage_micro_batches",
            one[s] * 3 * m,
            grown["gpipe"][3][s] - grown["gpipe"][1][s],
            "F22: each micro-batch is held",
            s=s,
            more=3 * m,
        )
    lab.row(
        "f1b_bytes_more_all_stages_micro",
        0,
        sum(grown["1f1b"][3]) - sum(grown["1f1b"][1]),
        "F22: min(m, p−s) for m ≥ p",
        more=3 * m,
    )
    saved = [a - b for a, b in zip(kept["gpipe"], kept["1f1b"], strict=True)]
    for s in range(p):
        sent = (
            model.seq * hidden * 4 if s else 0
        )  # 1F1B is fullest in the middle, where the gradient it sent last may still be on its way
        lab.row(
            "bytes_f1b_holds_less_gpipe_stage",
            one[s] * (m - min(m, p - s)) - sent,
            saved[s],
            "F22: m − min(m, p−s) micro-batches; a gradient on its way",
            s=s,
        )
    ratio = sum(kept["gpipe"]) / sum(kept["1f1b"])
    lab.ask(
        "number",
        runs["1f1b"][0].timeline.makespan * 1e3,
        "ms",
        value=f"{p} stages, {m} micro-batches: GPipe takes 33 ms. How many ms does 1F1B take?"
        if (p, m) == (4, 8)
        else f"{p} stages, {m} micro-batches, f = 1 ms, b = 2 ms: how many ms does 1F1B take?",
        value_2=f"{p} 级、{m} 个微批次：GPipe 用时 33 ms。1F1B 用多少 ms？"
        if (p, m) == (4, 8)
        else f"{p} 级、{m} 个微批次，f = 1 ms，b = 2 ms：1F1B 用多少 ms？",
    )
    lab.figure(
        "same_bubble_both_schedules", lambda lang: comparison_figure(shown, lang, "f = 1 ms, b = 2 ms")
    )
    lab.figure("micro_batches_held_rank", lambda lang: staircase_figure(shown, lang))
    lab.figure(
        "gpt_activations_stage_peak",
        lambda lang: bars(
            [lab.word("stage", lang).format(s) for s in range(p)],
            {names[n]: [k / 1e6 for k in kept[n]] for n in theory},
            lab.word("activations_peak_mb_counted", lang),
        ),
    )
    lab.figure(
        "gpt_fullest_stage_against",
        lambda lang: lines(
            {names[n]: (counts, [max(g) / 1e6 for g in grown[n]]) for n in theory},
            lab.word("micro_batches", lang),
            lab.word("activations_fullest_stage_mb", lang),
            log_x=True,
        ),
    )
    lab.tell(
        "both_take_ms_fill",
        view="tab=timeline&run=1f1b",
        step_ms=runs["1f1b"][0].timeline.makespan * 1000.0,
        fill=p - 1,
        slots=m + p - 1,
    )
    lab.tell("gpipe_every_stage_comes", view="tab=timeline&run=gpipe", m=m, p=p)
    lab.tell(
        "gpt_mb_activations_gpipe",
        view="tab=memory&run=1f1b-gpt",
        gpipe_mb=sum(kept["gpipe"]) / 1000000.0,
        f1b_mb=sum(kept["1f1b"]) / 1000000.0,
    )
    lab.tell(
        "micro_batches_gpipe_fullest",
        view="tab=memory&run=gpipe-gpt",
        many=4 * m,
        gpipe_many_mb=max(grown["gpipe"][3]) / 1000000.0,
        f1b_many_mb=max(grown["1f1b"][3]) / 1000000.0,
    )
    lab.conclude(ratio=ratio)
    lab.explain()
    lab.own_number(ratio=ratio, p=p, m=m)
