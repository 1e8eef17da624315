"""E8: if the weights' gradients can wait, they fill the holes."""

from __future__ import annotations

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.pipeline.schedules import dualpipe_v, predict_live, zb_h1, zb_h2, zb_v
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held
from glasscluster.visualize.figures.plots import bars
from glasscluster.visualize.page.words import word


@lesson
def zero_bubble(lab: Lab, p: int = 4, m: int = 8) -> None:
    """Five schedules really run on equal stages with F = I = W; a GPT trained with two of them is checked against one device."""

    f = 1e-3  # F, I and W of a rank's whole share
    names = {"1f1b": "1F1B", "zb-h1": "ZB-H1", "zb-h2": "ZB-H2", "zb-v": "ZB-V", "dualpipe-v": "DualPipe-V"}
    chunks = {n: 2 if n in ("zb-v", "dualpipe-v") else 1 for n in names}
    g = f / 2
    spans = {
        "1f1b": (p - 1) * 3 * f,
        "zb-h1": zb_h1.predict_span_bubble(p, m, f, 2 * f, f),
        "zb-h2": zb_h2.predict_span_bubble(p, m, f, 2 * f, f),
        "zb-v": zb_v.predict_span_bubble(p, m, g, 2 * g, g),
        "dualpipe-v": dualpipe_v.predict_bubble(p, m, g, 2 * g, g),
    }
    runs, shown, found, most = {}, [], {}, {}
    for name, said in names.items():
        v = chunks[name]
        run, _schedule, judged, drawn = runs[name] = equal_stages.played(
            lab, name, (said, said if v == 1 and name != "1f1b" else f"{said} 调度"), name, p, m, v, f
        )
        line = run.timeline
        spent = [
            max(b.end for b in drawn if b.rank == r) - min(b.begin for b in drawn if b.rank == r)
            for r in range(p)
        ]
        largest = spent.index(max(spent))
        found[name] = spent[largest] - sum(b.end - b.begin for b in drawn if b.rank == largest)
        if (
            name != "dualpipe-v"
        ):  # its slots of two really run one after the other: its formula is checked on the list, below
            lab.row(
                "largest_span_less_work",
                spans[name],
                found[name],
                "F24, F25",
                unit="s",
                tolerance=1e-12,
                said=said,
            )
        lab.row(
            "time_step_list",
            judged.makespan,
            None,
            "the list, played",
            simulated=line.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            said=said,
        )
        live = predict_live(name, p, m, v)
        for r in range(p):
            lab.row(
                "chunks_held_most_rank", live[r], run.results[r]["live"], "F22", unit="chunks", said=said, r=r
            )
        most[name] = max(max(held(drawn, r)[1]) for r in range(p)) / v
        shown.append((f"<b>{said}</b>: {line.makespan * 1e3:g} ms", f"{found[name] / f:.3g} F", drawn))
    pairs = runs["dualpipe-v"][1].validate(g, 2 * g, 0.0, g)
    lab.row(
        "f1b_over_zb_h1_largest_span",
        3.0,
        None,
        "F24",
        simulated=found["1f1b"] / found["zb-h1"],
        unit="×",
        match="virtual",
        tolerance=1e-9,
    )
    lab.row(
        "dualpipe_slots_two_written_largest_span",
        spans["dualpipe-v"],
        None,
        "F25: (p−1)(F&B + B − 3W)",
        simulated=pairs.stage_span_bubble,
        unit="s",
        match="virtual",
        tolerance=1e-9,
    )
    lab.row(
        "elements_gradients_not",
        0,
        equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()),
        "all ones: every element is known",
        unit="elements",
    )
    model = make_model("tiny", layers=2 * p, hidden=32, seq=32)
    for name in ("zb-h1", "dualpipe-v"):
        lab.train(
            f"{name}-gpt",
            lab.text("gpt", schedule=names[name]),
            model=model,
            steps=2,
            pp=p,
            schedule=name,
            global_batch=m,
            compared=False,
        )
    lab.ask("number", found["zb-h1"] / f, "F", p=p, f1b=found["1f1b"] / f)
    less = {n: (r[0].timeline.makespan - 3 * m * f) / f for n, r in runs.items()}
    lab.figure(
        "five_schedules_they_ran",
        lambda lang: comparison_figure(
            [Played(f"{title}, {word('span_bubble', lang, x=x)}", drawn) for title, x, drawn in shown],
            lang,
            "F = I = W = 1 ms",
        ),
    )
    lab.figure(
        "two_bubbles_largest_stage",
        lambda lang: bars(
            list(names.values()),
            {
                lab.word("span_bubble", lang): [found[n] / f for n in names],
                lab.word("makespan_less_work", lang): [less[n] for n in names],
            },
            lab.word("units", lang),
        ),
    )
    lab.figure(
        "costs_activations_held_fullest",
        lambda lang: bars(
            list(names.values()),
            {lab.word("micro_batches_held_most", lang): [most[n] for n in names]},
            lab.word("micro_batches_held_most", lang),
        ),
    )
    lab.tell(
        "span_bubble",
        view="tab=timeline&run=zb-h1",
        each="，".join((f"{names[n]} {found[n] / f:.2g}" for n in names)),
    )
    lab.tell(
        "zb_h1_takes_ms",
        view="tab=timeline&run=zb-h1",
        zb_h1_ms=runs["zb-h1"][0].timeline.makespan * 1000.0,
        f1b_ms=runs["1f1b"][0].timeline.makespan * 1000.0,
        zb_h1_held=most["zb-h1"],
    )
    lab.tell(
        "zb_h2_stages_never",
        view="tab=timeline&run=zb-h2",
        zb_h2_held=most["zb-h2"],
        zb_h2_less=less["zb-h2"],
    )
    lab.tell(
        "zb_folds_model_no",
        view="tab=timeline&run=zb-v",
        zb_v_held=most["zb-v"],
        dualpipe_v=found["dualpipe-v"] / f,
    )
    lab.conclude(f1b=found["1f1b"] / f, zb_h1=found["zb-h1"] / f)
    lab.explain()
    lab.own_number(f1b=found["1f1b"] / f, zb_h1=found["zb-h1"] / f, p=p)
