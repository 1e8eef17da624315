"""E7: more chunks a rank: the bubble shrinks v-fold, messages and memory grow."""

from __future__ import annotations

from glasscluster.scenarios.jobs import equal_stages
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.pipeline.schedules import interleaved, one_f_one_b
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.pipelines import Played, comparison_figure, held
from glasscluster.visualize.figures.plots import bars, lines
from glasscluster.visualize.page.words import word


@lesson
def interleaving(lab: Lab, p: int = 4, m: int = 8) -> None:
    """The same work in one, two and four chunks a rank really runs; a GPT in two chunks is checked against one device."""

    chunks, shown, over, most, sent = (1, 2, 4), [], [], [], []
    runs = {}
    for v in chunks:
        name = "1f1b" if v == 1 else "interleaved"
        run, _schedule, judged, drawn = runs[v] = equal_stages.played(
            lab, f"v{v}", lab.text("text", v=v), name, p, m, v
        )
        ideal = (
            one_f_one_b.predict_bubble(p, m) if v == 1 else interleaved.predict_bubble(p, m, v) or (0.0, 0.0)
        )[1]
        bubble = run.timeline.bubble()["bubble_over_ideal"]
        lab.row(
            "bubble_over_ideal",
            ideal,
            None,
            "F21",
            simulated=bubble,
            unit="of the work",
            match="virtual",
            tolerance=1e-9,
            v=v,
        )
        lab.row(
            "time_step_list",
            judged.makespan,
            None,
            "the list, played",
            simulated=run.timeline.makespan,
            unit="s",
            match="virtual",
            tolerance=1e-9,
            v=v,
        )
        lab.row(
            "messages",
            interleaved.predict_messages(p, m, v),
            run.graph.count("send"),
            "F21",
            unit="messages",
            v=v,
        )
        for r in range(p):
            live = (
                one_f_one_b.predict_in_flight(p, m, r)
                if v == 1
                else interleaved.predict_in_flight(p, m, v, r)
            )
            lab.row("chunks_held_most_rank", live, max(held(drawn, r)[1]), "F22", unit="chunks", v=v, r=r)
        over.append(bubble)
        most.append(max(held(drawn, 0)[1]) / v)
        sent.append(run.graph.count("send"))
        shown.append((f"<b>v = {v}</b>: {run.timeline.makespan * 1e3:g} ms", f"{bubble:.3%}", drawn))
    for v, factor in zip(chunks[1:], most[1:], strict=True):
        lab.row(
            "held_rank_over_f1b",
            1 + (p - 1) / (p * v),
            factor / most[0],
            "F22: 1 + (p−1)/(pv)",
            unit="×",
            tolerance=1e-12,
            v=v,
        )
    lab.row(
        "elements_gradients_not",
        0,
        equal_stages.wrong_gradients((r, s) for r, s, *_ in runs.values()),
        "all ones: every element is known",
        unit="elements",
    )
    model = make_model("tiny", layers=2 * p, hidden=32, seq=32)
    lab.train(
        "gpt",
        lab.text("gpt_two_chunks_rank"),
        model=model,
        steps=2,
        pp=p,
        virtual_stages=2,
        schedule="interleaved",
        global_batch=m,
        compared=False,
    )
    lab.ask("number", 100 * over[-1], "%", p=p, m=m, over_1=over[0], chunks=chunks[-1])

    counts = [p * k for k in (1, 2, 4, 8)]
    swept = {v: [100 * (interleaved.predict_bubble(p, k, v) or (0, 0))[1] for k in counts] for v in chunks}
    hops = [k * 0.05e-3 for k in range(11)]
    slow = {
        v: [runs[v][0].replay(equal_stages.machine(1e-3 / v, c)).makespan * 1e3 for c in hops] for v in chunks
    }
    cross = next((c for c, a, b in zip(hops, slow[1], slow[chunks[-1]], strict=True) if b > a), None)
    lab.figure(
        "same_work_chunks_rank",
        lambda lang: comparison_figure(
            [Played(f"{title}, {word('idle_over_work', lang, x=x)}", drawn) for title, x, drawn in shown],
            lang,
            "f = 1 ms, b = 2 ms",
        ),
    )
    lab.figure(
        "bubble_against_micro_batches",
        lambda lang: lines(
            {f"v = {v}": (counts, s) for v, s in swept.items()},
            lab.word("micro_batches", lang),
            lab.word("bubble_over_ideal_f21", lang),
            log_x=True,
        ),
    )
    lab.figure(
        "price_messages_rank_holds",
        lambda lang: bars(
            [f"v = {v}" for v in chunks],
            {
                (
                    lab.word("messages", lang),
                    lab.word("held_rank", lang),
                )[0]: [s / sent[0] for s in sent],
                (
                    lab.word("messages", lang),
                    lab.word("held_rank", lang),
                )[1]: [x / most[0] for x in most],
            },
            lab.word("times_f1b", lang),
        ),
    )
    lab.figure(
        "recordings_replayed_longer_hops",
        lambda lang: lines(
            {f"v = {v}": ([c * 1e3 for c in hops], t) for v, t in slow.items()},
            lab.word("hop_ms", lang),
            lab.word("time_step_ms", lang),
        ),
    )
    lab.tell(
        "idle_over_work_doubling", view="tab=timeline&run=v4", over_each="、".join((f"{o:.3%}" for o in over))
    )
    lab.tell(
        "messages_rank_holds_micro",
        view="tab=network&run=v4",
        sent_1=sent[0],
        sent_2=sent[1],
        sent_4=sent[2],
        most_1=most[0],
        most_2=most[1],
        most_4=most[2],
    )
    if cross is not None:
        lab.tell("hops_ms_chunks_slower", view="tab=timeline&run=v4", cross_ms=cross * 1000.0)
    lab.tell("gpt_cut_into_stages", view="tab=checks&run=gpt")
    lab.conclude(over_1=over[0], over_4=over[2], times_messages=sent[2] / sent[0])
    lab.explain()
    lab.own_number(over_1=over[0], over_4=over[2], times_messages=sent[2] / sent[0])
