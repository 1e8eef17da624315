"""E6: hops that take time: strict 1F1B pays for a trip there and back every round, GPipe and eager 1F1B do
not.
"""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.strategies.pipeline.schedules import eager_1f1b, gpipe, one_f_one_b
from glasscluster.strategies.pipeline.schedules.base import Schedule
from glasscluster.visualize.figures.pipelines import ScheduleRun, comparison_figure, held
from glasscluster.visualize.figures.plots import bars, lines

F, B = 1e-3, 2e-3  # seconds of a stage's forward and backward
NAMES = {"gpipe": "GPipe", "1f1b": "1F1B", "eager-1f1b": "eager 1F1B"}
HOPS = [k * 0.25e-3 for k in range(11)]  # seconds
VIRTUAL: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-9}


@lesson
def ping_pong_tax(lab: Lab, p: int = 4, m: int = 8, hop_ms: float = 0.25) -> None:
    """Three schedules on equal stages really run, with f = 1 ms and b = 2 ms; their recordings are replayed
    on ever longer hops.
    """
    hop = hop_ms * 1e-3
    runs = {key: equal_stages.run_schedule(lab, key, lab.text(key), key, p, m, hop=hop) for key in NAMES}
    took = {key: run.timeline.makespan * 1e3 for key, (run, *_) in runs.items()}
    shown = []
    for key, (_, _, _, drawn) in runs.items():
        check_as_run(lab, key, runs[key], hop_ms)
        shown.append(ScheduleRun(f"<b>{NAMES[key]}</b>: {took[key]:g} ms", drawn))
    swept = {
        key: [run.replay(equal_stages.machine(F, c)).makespan for c in HOPS]
        for key, (run, *_) in runs.items()
    }
    for key, by_hop in swept.items():
        check_longer_hops(lab, key, by_hop, p, m)
    limit = check_limit(lab, p, m)
    wrong = equal_stages.wrong_gradients((run, schedule) for run, schedule, *_ in runs.values())
    lab.row("wrong_gradients", 0, wrong, "all ones: every element is known", unit="elements")

    times: dict[str, Any] = {"hop_ms": hop_ms, "gpipe_ms": took["gpipe"], "f1b_ms": took["1f1b"]}
    tax = check_rounds(lab, p, hop_ms)
    free_ms = (m + p - 1) * (F + B) * 1e3
    lab.ask(
        "time_of_1f1b", took["1f1b"], "ms", **times, p=p, m=m, f_ms=F * 1e3, b_ms=B * 1e3, free_ms=free_ms
    )
    lab.figure(
        "as_they_ran", lambda lang: comparison_figure(shown, lang, f"c = {hop_ms:g} ms"), hop_ms=hop_ms
    )

    def longer_hops(lang: str) -> Any:
        hops = [c * 1e3 for c in HOPS]
        series = {NAMES[key]: (hops, [time * 1e3 for time in by_hop]) for key, by_hop in swept.items()}
        return lines(series, lab.word("hop_c", lang), lab.word("time_of_a_step", lang))

    lab.figure("longer_hops", longer_hops)
    depths = deeper_warm_ups(p, m, hop)

    def deeper(lang: str) -> Any:
        series = {"1F1B": [seconds * 1e3 for _, seconds in depths]}
        return bars(
            [lab.word("most_held", lang, k=k) for k, _ in depths], series, lab.word("time_of_a_step", lang)
        )

    lab.figure("deeper_warm_up", deeper)
    lab.tell("times", view="tab=timeline&run=1f1b", **times, eager_ms=took["eager-1f1b"])
    lab.tell("steady_state", view="tab=timeline&run=1f1b", p=p, tax_ms=tax * 1e3)
    most: dict[str, Any] = {"eager_held": min(m, 2 * p - 1), "f1b_held": min(m, p), "limit_ms": limit * 1e3}
    lab.tell("eager", view="tab=timeline&run=eager-1f1b", **most)
    lab.tell("slider", view="tab=timeline&run=1f1b")
    lab.conclude(**times, eager_ms=took["eager-1f1b"])
    lab.explain()
    lab.own_number(f1b_ms=took["1f1b"], gpipe_ms=took["gpipe"])
    ends: dict[str, Any] = {"ends_ms": 2 * (p - 2) * hop_ms, "slower_ms": took["1f1b"] - free_ms}
    lab.card(p=p, tax_ms=tax * 1e3, **ends, **most)
    each = {
        "held_each": listed(f"{k}" for k, _ in depths),
        "ms_each": listed(f"{time * 1e3:.4g}" for _, time in depths),
    }
    lab.card(**each)


def seconds_by_formula(key: str, p: int, m: int, hop: float) -> float | None:
    """A step's seconds by Eq 23; None outside its domain."""
    if key == "gpipe":
        return gpipe.predict_makespan([F] * p, [B] * p, m, hop)
    schedule = one_f_one_b if key == "1f1b" else eager_1f1b
    return schedule.predict_makespan(p, m, F, B, hop)


def held_by_formula(key: str, p: int, m: int, s: int) -> int:
    """The most micro-batches that stage s holds at once."""
    return {"gpipe": m, "1f1b": min(m, p - s), "eager-1f1b": min(m, 2 * (p - s) - 1)}[key]


def check_as_run(lab: Lab, key: str, ran: Any, hop_ms: float) -> None:
    """Check time, held micro-batches and messages of one schedule as it ran."""
    run, schedule, metrics, drawn = ran
    p, m = run.gpus, schedule.micro_batches
    name: dict[str, Any] = {"schedule": NAMES[key]}
    time, expected = run.timeline.makespan, seconds_by_formula(key, p, m, hop_ms * 1e-3)
    lab.row("time_of_a_step", expected, None, "Eq 23", simulated=time, **VIRTUAL, **name, hop_ms=hop_ms)
    lab.row("time_by_its_list", metrics.makespan, None, "the list, played", simulated=time, **VIRTUAL, **name)
    for s in range(p):
        most = max(held(drawn, s)[1])
        lab.row(
            "most_held",
            held_by_formula(key, p, m, s),
            most,
            "Eq 22, Eq 23",
            unit="micro-batches",
            **name,
            s=s,
        )
    source, sent = "2m over each of p−1 hops", run.graph.count("send")
    lab.row("messages", 2 * m * (p - 1), sent, source, unit="messages", **name)


def check_longer_hops(lab: Lab, key: str, times: list[float], p: int, m: int) -> None:
    """Check the formula's largest relative error over the hops of its domain."""
    formula = [seconds_by_formula(key, p, m, c) for c in HOPS]
    errors = [
        abs(time - known) / known for known, time in zip(formula, times, strict=True) if known is not None
    ]
    names: dict[str, Any] = {"schedule": NAMES[key], "hops": len(errors)}
    lab.row("error_of_formula", 0, max(errors), "Eq 23", unit="relative", tolerance=1e-9, **names)


def check_limit(lab: Lab, p: int, m: int) -> float:
    """Check the longest hop that eager 1F1B hides, by a search over its list; returns it in seconds."""
    limit = eager_1f1b.predict_hop_limit(p, m, F, B)
    searched = eager_1f1b.search_hop_limit(p, m, F, B)
    to_the_search: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-6}
    lab.row(
        "longest_hidden_hop", limit, None, "Eq 23: (f+b)/2, by search", simulated=searched, **to_the_search
    )
    return limit


def check_rounds(lab: Lab, p: int, hop_ms: float) -> float:
    """Check how long a further round of p micro-batches takes, by the lists: p(f+b), and in strict 1F1B
    2(p−1)c more. Returns how much more it is, in seconds.
    """
    hop, work, tax = hop_ms * 1e-3, p * (F + B), 0.0
    for key, schedule in (("gpipe", gpipe.schedule), ("1f1b", one_f_one_b.schedule)):
        two, three = (schedule(p, rounds * p).validate(F, B, hop, 0.0).makespan for rounds in (2, 3))
        tax = three - two - work
        expected = work + (2 * (p - 1) * hop if key == "1f1b" else 0.0)
        name: dict[str, Any] = {"schedule": NAMES[key], "hop_ms": hop_ms}
        lab.row("time_of_a_round", expected, None, "Eq 23", simulated=three - two, **VIRTUAL, **name)
    return tax


def deeper_warm_ups(p: int, m: int, hop: float) -> list[tuple[int, float]]:
    """(most held, seconds) under a memory cap, with one more warm-up forward at a time, the same on every
    stage.
    """
    depths = []
    for extra in range(p):
        ranks = [one_f_one_b.one_rank(s, m, min(m, p - s + min(extra, p - 1 - s))) for s in range(p)]
        metrics = Schedule("a deeper warm-up", p, m, ranks).validate(F, B, hop, 0.0)
        depths.append((max(metrics.peak_live), metrics.makespan))
    return depths
