"""A4: rotary positions depend on distances alone; and what becomes of them beyond the trained length."""

from __future__ import annotations

import math
from typing import Any

import torch

from glasscluster.model.kernels.rope import frequencies, rope
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import lines

LAYOUTS = ("half", "interleaved")


def program(gpu: Any, d: int, n: int, shift: int, factor: int) -> dict[str, Any]:
    """Score one query and one key at every pair of positions: in both layouts, shifted, and interpolated."""

    def model(**more: Any) -> Any:
        return make_model("tiny", hidden=d, heads=1, seq=n, position="rope", **more)

    def turn(x: Any, first: int, count: int, config: Any) -> Any:
        """Rotate x [1, count, 1, d] to the positions first, first + 1, ...; returns [count, d]."""
        return rope(x.contiguous(), (first, count), config)[0, :, 0]

    def scores(first: int, config: Any) -> Any:
        """The scores [n, n] of the query at position first + i against the key at first + j."""
        return turn(q, first, n, config) @ turn(k, first, n, config).T / d**0.5

    measured: dict[str, Any] = {"moved": {}, "uneven": {}, "length": {}}
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, d, generator=draw, dtype=torch.float64).expand(2, 1, n, 1, d)
    with gpu.region("forward", layer=0, micro_batch=0):
        rope(q.contiguous(), (0, n), model())
    with gpu.unrecorded():
        for layout in LAYOUTS:
            config = model(rope_layout=layout)
            unshifted = scores(0, config)
            measured["moved"][layout] = float((scores(shift, config) - unshifted).abs().max())
            measured["uneven"][layout] = max(spread(unshifted, offset) for offset in range(1 - n, n))
            lengths = turn(q, shift, n, config).norm(dim=-1)
            measured["length"][layout] = float((lengths - q[0, :, 0].norm(dim=-1)).abs().max())

        unshifted = scores(0, model())
        stretched = model(rope_scaling="interpolation", rope_factor=float(factor))
        last, first = turn(q[:, :1], factor * (n - 1), 1, stretched)[0], turn(k[:, :1], 0, 1, model())[0]
        measured["squeezed"] = float((last @ first / d**0.5 - unshifted[n - 1, 0]).abs())
        measured["curve"] = unshifted[:, 0].tolist()

        # positions that are added, as learned ones are: scores depend on the places, not on distance alone
        table = torch.randn(2 * n, d, generator=draw, dtype=torch.float64)
        added = (q[0, 0, 0] + table[:n]) @ (k[0, 0, 0] + table[:n]).T / d**0.5
        measured["added"] = max(spread(added, offset) for offset in range(1, 4))
    return measured


def spread(scores: Any, offset: int) -> float:
    """The largest less the smallest score among pairs at one distance."""
    diagonal = scores.diagonal(offset)
    return float(diagonal.max() - diagonal.min())


@lesson
def rope_is_relative(lab: Lab, d: int = 64, n: int = 128, shift: int = 1000, factor: int = 4) -> None:
    """One query and one key are put at every pair of positions; then everything is shifted, and positions
    are squeezed.
    """
    run = lab.run("turned", lab.text("turned"), program, d, n, shift, factor, gpus=1)
    measured = run.results[0]
    rounding: dict[str, Any] = {"unit": "absolute", "tolerance": 1e-12}
    for layout in LAYOUTS:
        name = lab.text(layout)
        shifted: dict[str, Any] = {"unit": "absolute", "tolerance": 1e-11, "layout": name, "shift": shift}
        lab.row("change_by_a_shift", 0, measured["moved"][layout], "Eq 4, float64", **shifted)
        lab.row("same_distance", 0, measured["uneven"][layout], "Eq 4, float64", **rounding, layout=name)
        lab.row("length", 0, measured["length"][layout], "a rotation", **rounding, layout=name)
    source = "2306.15595: positions over s"
    lab.row("interpolated_score", 0, measured["squeezed"], source, **rounding, factor=factor, last=n - 1)

    base, pairs = 10_000.0, d // 2
    plain, ntk = frequencies(d, base), frequencies(d, base, "ntk", float(factor))
    times: dict[str, Any] = {"unit": "×", "factor": factor}
    lab.row("ntk_slowest", factor, plain[-1] / ntk[-1], "base · s^(d/(d−2))", **times, tolerance=1e-9)
    lab.row("ntk_fastest", 1, plain[0] / ntk[0], "θ_0 = 1 for any base", **times, tolerance=1e-12)
    new = sum(2 * math.pi / angle > n for angle in plain)
    expected = pairs - 1 - math.floor(pairs * math.log(n / (2 * math.pi)) / math.log(base))
    lab.row("not_turned_once", expected, new, "2π/θ_i > L ⇔ i > d/2 · ln(L/2π)/ln base", unit="pairs", n=n)

    lab.ask("pairs_not_turned", new, d=d, pairs=pairs, last=pairs - 1, n=n, base=base)
    figures(lab, d, n, float(factor), measured["curve"])
    lab.tell("shift_changes_nothing", view="tab=ledger", shift=shift, moved=max(measured["moved"].values()))
    lab.tell("learned_positions", view="tab=ledger", added=measured["added"])
    lab.tell("not_turned", view="tab=story", new=new, pairs=pairs, n=n)
    lab.tell("interpolation", view="tab=ledger", factor=factor, far=factor * (n - 1), last=n - 1)
    lab.conclude(shift=shift, n=n, new=new, pairs=pairs)
    lab.explain()
    lab.own_number(new=new, pairs=pairs, n=n, slowest=2 * math.pi / plain[-1])


def figures(lab: Lab, d: int, n: int, factor: float, curve: list[float]) -> None:
    """Draw the cosines of single pairs, the score of all pairs against distance, and how scaling lengthens
    the periods.
    """
    base, pairs, distances = 10_000.0, d // 2, list(range(n))
    angles = frequencies(d, base)

    def by_pair(lang: str) -> Any:
        chosen = [0, pairs // 4, pairs // 2, pairs - 1]
        cosines = {i: [math.cos(angles[i] * m) for m in distances] for i in chosen}
        series = {lab.word("pair", lang, number=i): (distances, values) for i, values in cosines.items()}
        return lines(series, lab.word("distance", lang), lab.word("cosine", lang)).update_traces(mode="lines")

    def together(lang: str) -> Any:
        score = lab.word("score", lang)
        return lines({score: (distances, curve)}, lab.word("distance", lang), score).update_traces(
            mode="lines"
        )

    def stretched(lang: str) -> Any:
        series = {}
        for way in ("none", "interpolation", "ntk"):
            turns = [2 * math.pi / angle for angle in frequencies(d, base, way, factor)]
            series[lab.word(way, lang)] = (list(range(pairs)), turns)
        return lines(series, lab.word("pair_number", lang), lab.word("tokens_for_one_turn", lang), log_y=True)

    lab.figure("what_pairs_say", by_pair)
    lab.figure("score_by_distance", together)
    lab.figure("turns_when_stretched", stretched, factor=int(factor))
