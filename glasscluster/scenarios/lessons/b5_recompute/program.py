"""B5: memory saved by recomputation, and the time it costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import CATEGORIES, COMPUTE, PHASES
from glasscluster.strategies.judge.activations import predict
from glasscluster.strategies.memory.recompute import best_every, predict_flops, predict_peak
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import lines

GIB = 1024**3
GPT3: dict[str, Any] = {
    "n": 96,
    "c": 2.0 * 2048 * 12288 / GIB,
}  # layers; GiB of a checkpoint, 2sbh. A layer keeps 17 of them

SEQUENCES = 2  # of a step


@lesson
def recompute(lab: Lab, layers: int = 8, hidden: int = 64, seq: int = 192) -> None:
    """The same training five times, keeping less and less; then every segment length on shapes, to find the
    best by trying all.
    """
    shape: dict[str, Any] = {"layers": layers, "hidden": hidden, "seq": seq, "vocab": 64}
    model = make_model("tiny", **shape, attention="unfused", dropout=0.1)
    lengths = [k for k in range(1, layers + 1) if layers % k == 0]
    runs = train_each_way(lab, model, lengths)
    peak = {key: most_activations(run) for key, run in runs.items()}
    time = {key: run.timeline.makespan for key, run in runs.items()}

    c = 4 * seq * hidden  # bytes of a checkpoint
    a = predict(seq, 1, hidden, model.heads, w=4) + 16 * seq  # of a layer's activations
    for k in lengths[:-1]:
        expected = predict_peak(layers, k, c, a) - predict_peak(layers, layers, c, a)
        source, counted = (
            "Eq 29; A from Eq 17 and the norms' statistics",
            peak[f"full{k}"] - peak[f"full{layers}"],
        )
        lab.row("peak_above_one_segment", expected, counted, source, k=k, layers=layers)
    rule = min(lengths, key=lambda k: abs(k - best_every(layers, c, a)))
    tried = min(lengths, key=lambda k: peak[f"full{k}"])
    lab.row("best_length", rule, tried, "Chen 1604.06174 §4", unit="layers")
    by_rule, best = round(best_every(GPT3["n"], 1, 17)), min(range(1, GPT3["n"] + 1), key=gib_of_gpt3)
    lab.row("best_length_of_gpt3", by_rule, best, "Eq 29: n = 96, C = 2sbh, A = 34sbh", unit="layers")

    root, flops = root_over_best(lab, best), flops_that_ran(lab, model, runs)

    half = [key for key in runs if peak[key] <= peak["none"] / 2]
    cheapest = min(half, key=lambda key: time[key])
    extra = 100 * (time[cheapest] / time["none"] - 1)
    lab.figure("memory_against_time", lambda lang: memory_against_time(lab, peak, time, lengths, lang))
    lab.figure("two_terms", lambda lang: two_terms(lab, best, lang))
    kinds = {"none": "none", "selective": "selective", "full": f"full{tried}"}
    peaks: dict[str, Any] = {f"peak_{kind}": peak[key] / 1e6 for kind, key in kinds.items()}
    repeated = {f"again_{kind}": 1e3 * seconds_again(runs[key]) for kind, key in kinds.items()}
    lab.ask("extra_time", extra, layers=layers, step=1e3 * time["none"], **peaks, **repeated)
    lab.tell("memory", view="tab=memory&run=full2", tried=tried, **peaks)
    more: dict[str, Any] = {
        "work_full": percent_more(flops, "full1"),
        "slow_full": percent_more(time, "full1"),
        "work_selective": percent_more(flops, "selective"),
        "slow_selective": percent_more(time, "selective"),
    }
    lab.tell("time", view="tab=timeline&run=full1", **more)
    lab.tell("one_segment", view=f"tab=memory&run=full{layers}", layers=layers)
    lab.conclude(extra=extra)
    lab.explain()
    lab.card(n=GPT3["n"], best=best, root=root, **more)
    lab.own_number(extra=extra, times_less=peak["none"] / peak[cheapest])


def root_over_best(lab: Lab, best: int) -> float:
    """How many times the best peak GPT-3 has with √n layers a segment, checked by hand."""
    n, root = GPT3["n"], math.ceil(math.sqrt(GPT3["n"]))
    by_hand = (math.ceil(n / root) + 17 * root) / (n / 2 + 17 * 2)
    over = gib_of_gpt3(root) / gib_of_gpt3(best)
    lab.row("root_over_best", by_hand, over, "Eq 29, k = 2 the best", unit="×", tolerance=1e-9)
    return over


def flops_that_ran(lab: Lab, model: Any, runs: dict[str, Any]) -> dict[str, int]:
    """The FLOPs of each run, those that ran again checked against the formula."""
    flops = {key: int(run.graph.flops.sum()) for key, run in runs.items()}
    for kind, key in (("selective", "selective"), ("full", "full1")):
        way, again = lab.text(f"title_{kind}", k=1), flops[key] - flops["none"]
        expected = predict_flops(kind, model, model.layers, 1, SEQUENCES)
        lab.row("repeated", expected, again, "Eq 29, Eq 30", unit="FLOPs", way=way)
    return flops


def train_each_way(lab: Lab, model: Any, lengths: list[int]) -> dict[str, Any]:
    """One step that keeps everything, one that recomputes what is cheap, and one for each segment length."""
    common: dict[str, Any] = {"model": model, "steps": 1, "global_batch": SEQUENCES, "precision": "fp32"}
    runs = {
        "none": lab.train("none", lab.text("title_none"), **common),
        "selective": lab.train("selective", lab.text("title_selective"), recompute="selective", **common),
    }
    for k in lengths:
        key, title = f"full{k}", lab.text("title_full", k=k)
        plan: dict[str, Any] = {"recompute": "full", "recompute_every": k, "checked": k == 2}
        runs[key] = lab.train(key, title, **plan, **common)
    return {key: trained.run for key, trained in runs.items()}


def seconds_again(run: Any) -> float:
    """Seconds of the operations that a step computes again."""
    line, graph = run.timeline, run.graph
    rows = (graph.kind == COMPUTE) & (graph.phase == PHASES.index("recompute"))
    return float((line.end - line.start)[rows].sum())


def most_activations(run: Any) -> int:
    """The most bytes of activations that rank 0 held at once, from its memory log."""
    log = np.asarray(run.graph.memory[0]["log"])
    return int(np.cumsum(log[log[:, 1] == CATEGORIES.index("activations"), 2]).max())


def gib_of_gpt3(k: int) -> float:
    """GPT-3's peak in GiB with flash attention and one sequence, k layers a segment."""
    return predict_peak(GPT3["n"], k, GPT3["c"], 17 * GPT3["c"])


def percent_more(values: dict[str, Any], key: str) -> float:
    """How much more than the run that keeps everything, in percent."""
    return 100 * (values[key] / values["none"] - 1)


def memory_against_time(
    lab: Lab, peak: dict[str, int], time: dict[str, float], lengths: list[int], lang: str
) -> Any:
    """Draw every run as a point: its most activations at once, and its time of a step."""
    at = {key: (peak[key] / 1e6, time[key] * 1e3) for key in peak}
    full = [at[f"full{k}"] for k in lengths]
    series = {
        lab.word("none", lang): ([at["none"][0]], [at["none"][1]]),
        lab.word("selective", lang): ([at["selective"][0]], [at["selective"][1]]),
        lab.word("full", lang): ([x for x, _ in full], [y for _, y in full]),
    }
    seconds = lab.word("time_of_a_step", lang, hardware=lab.hardware)
    figure = lines(series, lab.word("most_activations", lang), seconds).update_xaxes(rangemode="tozero")
    for k, (x, y) in zip(lengths, full, strict=True):
        figure.add_annotation(x=x, y=y, text=f"k={k}", showarrow=False, yshift=18)
    return figure


def two_terms(lab: Lab, best: int, lang: str) -> Any:
    """Draw GPT-3's peak and its two terms against the segment length."""
    n, c = GPT3["n"], GPT3["c"]
    span = [k for k in (1, 2, 3, 4, 6, 8, 12, 24, 48, 96) if n % k == 0]
    series = {
        lab.word("both_terms", lang): (span, [gib_of_gpt3(k) for k in span]),
        lab.word("checkpoints", lang): (span, [n / k * c for k in span]),
        lab.word("one_segment", lang): (span, [17 * k * c for k in span]),
    }
    axes = (lab.word("layers_a_segment", lang), lab.word("gib_gpu", lang))
    figure = lines(series, *axes, log_x=True, log_y=True).update_yaxes(dtick=1)
    for k in (best, 12):
        gib = gib_of_gpt3(k)
        label = f"k = {k}: {gib:.1f} GiB"
        figure.add_annotation(x=math.log10(k), y=math.log10(gib), text=label, showarrow=True, ay=-36, ax=-10)
    return figure
