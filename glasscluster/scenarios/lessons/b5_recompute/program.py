"""B5: memory bought with time, and how much of each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import CATEGORIES
from glasscluster.strategies.judge.activations import predict
from glasscluster.strategies.memory.recompute import best_every, predict_peak
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import lines

GIB = 1024**3


@lesson
def recompute(lab: Lab, layers: int = 8, hidden: int = 64, seq: int = 192) -> None:
    """The same training five times, keeping less and less; then every segment length on shapes, to find the best by trying all."""

    model = make_model(
        "tiny", layers=layers, hidden=hidden, seq=seq, attention="unfused", dropout=0.1, vocab=64
    )
    options: dict[str, dict[str, Any]] = {"none": {}, "selective": {"recompute": "selective"}}
    options |= {
        f"full{k}": {"recompute": "full", "recompute_every": k}
        for k in range(1, layers + 1)
        if layers % k == 0
    }
    titles = {"none": lab.text("keep_everything_2"), "selective": lab.text("selective_2")}
    common: dict[str, Any] = {"global_batch": 2, "precision": "fp32"}

    def most(run: Any) -> int:
        log = np.asarray(run.graph.memory[0]["log"])
        return int(np.cumsum(log[log[:, 1] == CATEGORIES.index("activations"), 2]).max())

    runs = {}
    for key, chosen in options.items():
        k = chosen.get("recompute_every")
        title = titles.get(key, lab.text("full_segment", k=k))
        runs[key] = lab.train(
            key,
            title,
            model=model,
            steps=1,
            checked=key in ("none", "selective", "full2"),
            **common,
            **chosen,
        ).run
    peak, time = {k: most(r) for k, r in runs.items()}, {k: r.timeline.makespan for k, r in runs.items()}
    c, kept = 4 * seq * hidden, predict(seq, 1, hidden, model.heads, w=4) + 16 * seq
    lengths = [int(k.removeprefix("full")) for k in options if k.startswith("full")]
    for k in lengths[:-1]:
        lab.row(
            "peak_segment_above_segment",
            predict_peak(layers, k, c, kept) - predict_peak(layers, layers, c, kept),
            peak[f"full{k}"] - peak[f"full{layers}"],
            "F29; A from F17 and the norms' statistics",
            k=k,
            layers=layers,
        )
    rule = min(lengths, key=lambda k: abs(k - best_every(layers, c, kept)))
    tried = min(lengths, key=lambda k: peak[f"full{k}"])
    lab.row("best_segment_length_nc_trying_all", rule, tried, "Chen 1604.06174 §4", unit="layers")
    half = [k for k in options if peak[k] <= peak["none"] / 2]
    cheapest = min(half, key=lambda k: time[k])
    extra = 100 * (time[cheapest] / time["none"] - 1)
    lab.ask("number", extra, "%", layers=layers)
    n, gc = 96, 2.0 * 2048 * 12288 / GIB
    span = [k for k in (1, 2, 3, 4, 6, 8, 12, 24, 48, 96) if n % k == 0]
    big = {k: predict_peak(n, k, gc, 17 * gc) for k in span}
    best = min(range(1, n + 1), key=lambda k: predict_peak(n, k, gc, 17 * gc))
    lab.row(
        "gpt_best_segment_length_rule_trying",
        round(best_every(n, 1, 17)),
        best,
        "F29: n = 96, C = 2sbh, A = 34sbh",
        unit="layers",
    )

    def pareto(lang: str) -> Any:
        at = {k: (peak[k] / 1e6, time[k] * 1e3) for k in options}
        full = [f"full{k}" for k in lengths]
        shown = {
            lab.word("keep_everything", lang): ([at["none"][0]], [at["none"][1]]),
            lab.word("selective", lang): ([at["selective"][0]], [at["selective"][1]]),
        }
        shown[lab.word("full_layers_segment", lang)] = ([at[k][0] for k in full], [at[k][1] for k in full])
        figure = lines(
            shown,
            lab.word("most_activations_once_mb", lang),
            lab.word("time_step_ms", lang, hardware=lab.hardware),
        ).update_xaxes(rangemode="tozero")
        for k in lengths:
            figure.add_annotation(
                x=at[f"full{k}"][0], y=at[f"full{k}"][1], text=f"k={k}", showarrow=False, yshift=18
            )
        return figure

    lab.figure("memory_against_time", pareto)
    terms = (list(big.values()), [n / k * gc for k in span], [17 * k * gc for k in span])

    def two_terms(lang: str) -> Any:
        figure = lines(
            dict(
                zip(
                    (
                        lab.word("ka", lang),
                        lab.word("checkpoints", lang),
                        lab.word("segment_ka", lang),
                        lab.word("layers_segment", lang),
                        lab.word("gib_gpu", lang),
                    ),
                    [(span, t) for t in terms],
                    strict=False,
                )
            ),
            lab.word("layers_segment", lang),
            lab.word("gib_gpu", lang),
            log_x=True,
            log_y=True,
        ).update_yaxes(dtick=1)
        for k in (best, 12):
            figure.add_annotation(
                x=math.log10(k),
                y=math.log10(big[k]),
                text=f"k = {k}: {big[k]:.1f} GiB",
                showarrow=True,
                ay=-36,
                ax=-10,
            )
        return figure

    lab.figure(
        "layers_gpt_flash_attention",
        two_terms,
    )
    slow = {k: 100 * (time[k] / time["none"] - 1) for k in ("selective", "full1")}
    work = {k: 100 * (int(runs[k].graph.flops.sum()) / int(runs["none"].graph.flops.sum()) - 1) for k in slow}
    lab.tell(
        "keeping_everything_needs_mb",
        view="tab=memory&run=full2",
        peak_none=peak["none"] / 1000000.0,
        peak_selective=peak["selective"] / 1000000.0,
        tried=tried,
        peak_full=peak[f"full{tried}"] / 1000000.0,
    )
    lab.tell(
        "full_recomputation_runs_more",
        view="tab=timeline&run=full1",
        work_full=work["full1"],
        slow_full=slow["full1"],
        work_selective=work["selective"],
        slow_selective=slow["selective"],
    )
    lab.tell("segment_all_layers_saves", view=f"tab=memory&run=full{layers}", layers=layers)
    lab.conclude(extra=extra)
    lab.explain()
    lab.own_number(extra=extra, times_less=peak["none"] / peak[cheapest])
