"""E6: hops that take time: strict 1F1B pays for a trip there and back every round, GPipe and eager 1F1B do not."""

from __future__ import annotations

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.pipeline.schedules import eager_1f1b, gpipe, one_f_one_b
from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held
from glasscluster.visualize.figures.plots import bars, lines


@lesson
def ping_pong_tax(lab: Lab, p: int = 4, m: int = 8, hop_ms: float = 0.25) -> None:
    """Three schedules on equal stages really run, with f = 1 ms and b = 2 ms; their recordings are replayed on ever longer hops."""

    f, b, hop = 1e-3, 2e-3, hop_ms * 1e-3
    names = {"gpipe": "GPipe", "1f1b": "1F1B", "eager-1f1b": "eager 1F1B"}
    runs = {
        n: equal_stages.played(
            lab, n, (said, said if n != "eager-1f1b" else "eager 1F1B（提前）"), n, p, m, hop=hop
        )
        for n, said in names.items()
    }

    def theory(name: str, c: float) -> float | None:
        if name == "gpipe":
            return gpipe.predict_makespan([f] * p, [b] * p, m, c)
        return (one_f_one_b if name == "1f1b" else eager_1f1b).predict_makespan(p, m, f, b, c)

    took = {n: run.timeline.makespan for n, (run, *_) in runs.items()}
    shown = []
    for name, (run, _schedule, judged, drawn) in runs.items():
        lab.row(
            "time_step_ms_hop",
            theory(name, hop),
            None,
            "F23",
            simulated=run.timeline.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            schedule=names[name],
            hop_ms=hop_ms,
        )
        lab.row(
            "same_list_alone",
            judged.makespan,
            None,
            "the list, played",
            simulated=run.timeline.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            schedule=names[name],
        )
        live = [
            min(m, 2 * (p - s) - 1) if name == "eager-1f1b" else m if name == "gpipe" else min(m, p - s)
            for s in range(p)
        ]
        for s in range(p):
            lab.row(
                "most_micro_batches_held_stage",
                live[s],
                max(held(drawn, s)[1]),
                "F22, F23",
                unit="micro-batches",
                schedule=names[name],
                s=s,
            )
        lab.row(
            "messages",
            2 * m * (p - 1),
            run.graph.count("send"),
            "2m over each of p−1 hops",
            unit="messages",
            schedule=names[name],
        )
        shown.append(Played(f"<b>{names[name]}</b>: {run.timeline.makespan * 1e3:g} ms", drawn))
    hops = [k * 0.25e-3 for k in range(11)]
    swept = {
        n: [run.replay(equal_stages.machine(f, c)).makespan for c in hops] for n, (run, *_) in runs.items()
    }
    for name, times in swept.items():
        known = [(theory(name, c), t) for c, t in zip(hops, times, strict=True)]
        apart = max(abs(t - k) / k for k, t in known if k is not None)
        lab.row(
            "largest_error_formula_over_hops_domain",
            0,
            apart,
            "F23",
            unit="relative",
            tolerance=1e-9,
            schedule=names[name],
            hops=sum((k is not None for k, _ in known)),
        )
    lab.row(
        "eager_f1b_longest_hop_hides",
        eager_1f1b.predict_hop_limit(p, m, f, b),
        None,
        "F23: (f+b)/2, by search",
        simulated=eager_1f1b.search_hop_limit(p, m, f, b),
        unit="s",
        match="virtual",
        tolerance=1e-6,
    )
    lab.row(
        "elements_gradients_not",
        0,
        equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()),
        "all ones: every element is known",
        unit="elements",
    )
    lab.ask("number", took["1f1b"] * 1e3, "ms", p=p, m=m, hop_ms=hop_ms, gpipe_ms=took["gpipe"] * 1000.0)

    # under a memory cap: one warm-up forward more at a time, the same on every stage
    depths = []
    for extra in range(p):
        ranks = [one_f_one_b.one_rank(s, m, min(m, p - s + min(extra, p - 1 - s))) for s in range(p)]
        judged = Schedule("a deeper warm-up", p, m, ranks).validate(f, b, hop, 0.0)
        depths.append((max(judged.peak_live), judged.makespan))
    lab.figure(
        lab.text("three_schedules_they_ran", hop_ms=hop_ms),
        lambda lang: comparison_figure(shown, lang, f"c = {hop_ms:g} ms"),
    )
    lab.figure(
        "recordings_replayed_longer_hops",
        lambda lang: lines(
            {names[n]: ([c * 1e3 for c in hops], [t * 1e3 for t in times]) for n, times in swept.items()},
            lab.word("hop_ms", lang),
            lab.word("time_step_ms", lang),
        ),
    )
    lab.figure(
        "deeper_warm_up_under",
        lambda lang: bars(
            [lab.word("most_held", lang).format(k) for k, _ in depths],
            {"1F1B": [t * 1e3 for _, t in depths]},
            lab.word("time_step_ms", lang),
        ),
    )
    lab.tell(
        "ms_hop_gpipe_ms",
        view="tab=timeline&run=1f1b",
        hop_ms=hop_ms,
        gpipe_ms=took["gpipe"] * 1000.0,
        f1b_ms=took["1f1b"] * 1000.0,
        eager_ms=took["eager-1f1b"] * 1000.0,
    )
    lab.tell("f1b_steady_state_every", view="tab=timeline&run=1f1b")
    lab.tell(
        "eager_f1b_holds_micro",
        view="tab=timeline&run=eager-1f1b",
        eager_held=min(m, 2 * p - 1),
        f1b_held=min(m, p),
        limit_ms=eager_1f1b.predict_hop_limit(p, m, f, b) * 1000.0,
    )
    lab.tell("move_latency_slider_timeline", view="tab=timeline&run=1f1b")
    lab.conclude(hop_ms=hop_ms, f1b_ms=took["1f1b"] * 1000.0, gpipe_ms=took["gpipe"] * 1000.0)
    lab.explain()
    lab.own_number(f1b_ms=took["1f1b"] * 1000.0, gpipe_ms=took["gpipe"] * 1000.0)
