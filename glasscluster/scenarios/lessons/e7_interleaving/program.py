"""E7: more chunks a rank: the bubble shrinks v-fold, messages and memory grow."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.texts import listed
from glasscluster.strategies.pipeline.schedules import interleaved, one_f_one_b
from glasscluster.strategies.pipeline.schedules.tools import largest
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.pipelines import ScheduleRun, comparison_figure, held
from glasscluster.visualize.figures.plots import bars, lines
from glasscluster.visualize.words import word

CHUNKS = (1, 2, 4)  # of a rank
HOPS = [k * 0.05e-3 for k in range(11)]  # seconds
VIRTUAL: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9}


@lesson
def interleaving(lab: Lab, p: int = 4, m: int = 8) -> None:
    """The same work in one, two and four chunks a rank really runs; a GPT in two chunks is checked against
    one device.
    """
    runs = {v: run_one(lab, p, m, v) for v in CHUNKS}
    over = {v: run.timeline.bubble()["bubble_over_ideal"] for v, (run, *_) in runs.items()}
    most = {
        v: max(held(drawn, 0)[1]) / v for v, (*_, drawn) in runs.items()
    }  # micro-batches that rank 0 holds
    sent = {v: run.graph.count("send") for v, (run, *_) in runs.items()}
    for v, ran in runs.items():
        check_as_run(lab, v, ran, over[v])
    for v in CHUNKS[1:]:
        factor, source = 1 + (p - 1) / (p * v), "Eq 22: 1 + (p−1)/(pv)"
        lab.row("held_over_1f1b", factor, most[v] / most[1], source, unit="×", tolerance=1e-12, v=v)
        fewer: dict[str, Any] = {"simulated": over[v] / over[1], "unit": "×", **VIRTUAL, "v": v}
        lab.row("bubble_over_1f1b", 1 / v, None, "Eq 21: 1/v", **fewer)
    wrong = equal_stages.wrong_gradients((run, schedule) for run, schedule, *_ in runs.values())
    lab.row("wrong_gradients", 0, wrong, "all ones: every element is known", unit="elements")
    model = make_model("tiny", layers=2 * p, hidden=32, seq=32)
    plan: dict[str, Any] = {"pp": p, "virtual_stages": 2, "schedule": "interleaved", "global_batch": m}
    lab.train("gpt", lab.text("gpt"), model=model, steps=2, compared=False, **plan)

    lab.ask("bubble", 100 * over[4], "%", p=p, m=m, over_1=over[1], chunks=CHUNKS[-1])
    slow = {
        v: [run.replay(equal_stages.machine(1e-3 / v, hop)).makespan * 1e3 for hop in HOPS]
        for v, (run, *_) in runs.items()
    }
    lab.figure("as_they_ran", lambda lang: as_they_ran(runs, over, lang))
    figures(lab, p, over, most, sent, slow)
    lab.tell(
        "bubbles", view="tab=timeline&run=v4", over_each=listed(f"{bubble:.3%}" for bubble in over.values())
    )
    price: dict[str, Any] = {f"sent_{v}": count for v, count in sent.items()} | {
        f"most_{v}": held for v, held in most.items()
    }
    lab.tell("price", view="tab=network&run=v4", **price)
    cross = check_cross(lab, p, m, runs)
    lab.tell("slower", view="tab=timeline&run=v4", cross_ms=cross * 1e3)
    lab.tell("gpt", view="tab=checks&run=gpt", stages=2 * p, p=p)
    summary: dict[str, Any] = {"over_1": over[1], "over_4": over[4], "times_messages": sent[4] / sent[1]}
    lab.conclude(**summary)
    lab.explain()
    lab.own_number(**summary)
    held_more: dict[str, Any] = {f"times_held_{v}": most[v] / most[1] for v in CHUNKS[1:]}
    lab.card(p=p, m=m, chunks=CHUNKS[-1], cross_ms=cross * 1e3, **held_more)


def run_one(lab: Lab, p: int, m: int, v: int) -> Any:
    """Run v chunks a rank; returns (run, schedule, its metrics, its bars)."""
    name = "1f1b" if v == 1 else "interleaved"
    return equal_stages.run_schedule(lab, f"v{v}", lab.text("run", v=v), name, p, m, v)


def check_cross(lab: Lab, p: int, m: int, runs: Any) -> float:
    """Find the hop from which the most chunks take longer than one, by the lists, and check that the
    recordings take the same time there; returns it in seconds.
    """
    v = CHUNKS[-1]
    whole, cut = one_f_one_b.schedule(p, m), interleaved.schedule(p, m, v)

    def faster(hop: float) -> bool:
        times = [x.validate(f, 2 * f, hop, 0.0).makespan for x, f in ((whole, 1e-3), (cut, 1e-3 / v))]
        return times[1] <= times[0]

    cross = largest(faster, 0.01)
    one, many = (runs[n][0].replay(equal_stages.machine(1e-3 / n, cross)).makespan for n in (1, v))
    exactly: dict[str, Any] = {"unit": "s", "match": "virtual", "tolerance": 1e-6, "v": v}
    lab.row(
        "cross", one, None, "both lists, played", simulated=many, **exactly, cross_ms=f"{cross * 1e3:.3g}"
    )
    return cross


def bubble_by_formula(p: int, m: int, v: int) -> float:
    """The bubble over the useful time by Eq 21; 0 where it is not defined."""
    if v == 1:
        return one_f_one_b.predict_bubble(p, m)[1]
    return (interleaved.predict_bubble(p, m, v) or (0.0, 0.0))[1]


def check_as_run(lab: Lab, v: int, ran: Any, bubble: float) -> None:
    """Check bubble, time, messages and held chunks of one run."""
    run, schedule, metrics, drawn = ran
    p, m = len(schedule.ranks), schedule.micro_batches
    ideal = bubble_by_formula(p, m, v)
    lab.row("bubble_over_ideal", ideal, None, "Eq 21", simulated=bubble, unit="of the work", **VIRTUAL, v=v)
    time = run.timeline.makespan
    lab.row(
        "time_by_its_list",
        metrics.makespan,
        None,
        "the list, played",
        simulated=time,
        unit="s",
        **VIRTUAL,
        v=v,
    )
    expected, sent = interleaved.predict_messages(p, m, v), run.graph.count("send")
    lab.row("messages", expected, sent, "Eq 21", unit="messages", v=v)
    for r in range(p):
        live = interleaved.predict_in_flight(p, m, v, r) if v > 1 else one_f_one_b.predict_in_flight(p, m, r)
        lab.row("chunks_held", live, max(held(drawn, r)[1]), "Eq 22", unit="chunks", v=v, r=r)


def as_they_ran(runs: dict[int, Any], over: dict[int, float], lang: str) -> Any:
    """Draw the runs one below the other."""
    shown = []
    for v, (run, _, _, drawn) in runs.items():
        idle = word("idle_over_work", lang, x=f"{over[v]:.3%}")
        shown.append(ScheduleRun(f"<b>v = {v}</b>: {run.timeline.makespan * 1e3:g} ms, {idle}", drawn))
    return comparison_figure(shown, lang, "f = 1 ms, b = 2 ms")


def figures(lab: Lab, p: int, over: Any, most: Any, sent: Any, slow: dict[int, list[float]]) -> None:
    """Draw the bubble against micro-batches, the price of chunks, and longer hops."""
    names = {v: f"v = {v}" for v in CHUNKS}

    def by_micro_batches(lang: str) -> Any:
        counts = [p * k for k in (1, 2, 4, 8)]
        series = {}
        for v in CHUNKS:
            bubbles = [interleaved.predict_bubble(p, count, v) or (0, 0) for count in counts]
            series[names[v]] = (counts, [100 * over_ideal for _, over_ideal in bubbles])
        return lines(series, lab.word("micro_batches", lang), lab.word("bubble_percent", lang), log_x=True)

    def price(lang: str) -> Any:
        series = {
            lab.word("messages", lang): [sent[v] / sent[1] for v in CHUNKS],
            lab.word("held_by_rank_0", lang): [most[v] / most[1] for v in CHUNKS],
        }
        return bars(list(names.values()), series, lab.word("times_f1b", lang))

    def longer_hops(lang: str) -> Any:
        series = {names[v]: ([hop * 1e3 for hop in HOPS], times) for v, times in slow.items()}
        return lines(series, lab.word("hop_c", lang), lab.word("time_of_a_step", lang))

    lab.figure("bubble_by_micro_batches", by_micro_batches)
    lab.figure("price", price)
    lab.figure("longer_hops", longer_hops)
