"""F5: what a loss curve says by itself, which causes it cannot distinguish, and the probe that does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.scenarios.emergency_room.curves import (
    CURVE_CASES,
    MICRO_BATCHES,
    SOUND,
    Curve,
    curve_of,
    losses_of,
)
from glasscluster.scenarios.emergency_room.diagnosis import HEALTHY
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.blowups import curves_figure
from glasscluster.visualize.figures.plots import dots

CASES = {case.name: case for case in CURVE_CASES}
OTHER_SEEDS = (101, 102)  # added to the run's seed
SAID_BY_CURVE = (  # what a curve says by itself, and so what is asked
    "labels-not-shifted",
    "sorted-text",
    "rate-too-high",
    "repeated-data",
    "bad-batch",
)
FAR = ("rate-too-high", "rate-too-low", "loss-scale-too-large", "labels-not-shifted", "sorted-text")
NEAR = ("missing-all-reduce", "gradients-not-divided", "dropout-in-evaluation")


@lesson
def reading_a_loss_curve(lab: Lab, cause: str = "drawn", steps: int = 24) -> None:
    """A small GPT is trained twelve times on two ranks: once as it should be, and with eleven faults, one at
    a time. The curves are shown in an order that the seed draws; the probes come after them.
    """
    if cause != "drawn" and cause not in SAID_BY_CURVE:
        raise InputError("cause", cause, "is not one that a curve says", ["drawn", *SAID_BY_CURVE])
    wanted = cause if cause != "drawn" else SAID_BY_CURVE[lab.seed % len(SAID_BY_CURVE)]
    order = [CURVE_CASES[i] for i in np.random.default_rng(lab.seed).permutation(len(CURVE_CASES))]
    curves: dict[str, Curve] = {}
    for case in order:
        lab.say(f"curve {len(curves) + 1} of {len(order)}")
        title = lab.text("patient") if case is SOUND else None
        curves[case.name] = curve_of(case, lab, steps, lab.seed, title=title)
    again = {seed: losses_of(SOUND, lab, steps, lab.seed + seed) for seed in OTHER_SEEDS}
    slow = losses_of(CASES["rate-too-low"], lab, steps, lab.seed + OTHER_SEEDS[0])
    if not lab.leader:
        return
    distances = check_distances(lab, curves, list(again.values()))
    flat = check_flat(lab, curves, slow)
    probes = check_probes(lab, curves) | named_by_rules(lab, curves)
    number = [case.name for case in order].index(wanted) + 1
    readings = Said(*(all_readings(lab, curves, lang) for lang in ("en", "zh")))
    lab.ask("number", number, readings=readings, cause=Said(*CASES[wanted].title), many=len(order))
    figures(lab, curves, distances)
    names: dict[str, Any] = {"faults": len(order) - 1, "alike": len(NEAR)}
    leak, repeated = curves["labels-not-shifted"], curves["repeated-data"]
    held_out: dict[str, Any] = {"leak": leak.losses[-1], "leak_held": leak.held_out[1][-1]}
    held_out |= {"repeated": repeated.losses[-1], "repeated_held": repeated.held_out[1][-1]}
    near: dict[str, Any] = {name.replace("-", "_"): distances[name] for name in NEAR} | {"flat": flat}
    lab.tell("held_out", view="tab=story", **held_out)
    lab.tell("alike", view="tab=story", **near)
    lab.tell("flat", view="tab=ledger", flat=flat)
    lab.tell("probes", view="tab=ledger", **probes)
    lab.tell("rules", view="tab=ledger", **names, **probes)
    lab.conclude(**names)
    lab.explain()
    lab.card(**names, **near, **probes, **held_out)
    lab.own_number(**near)


# ---- check -------------------------------------------------------------------------------------------------
def distance(a: list[float], b: list[float]) -> float:
    """Root of the mean squared difference of two curves, in nats."""
    return float(np.sqrt(np.mean(np.square(np.array(a) - np.array(b)))))


def check_distances(lab: Lab, curves: dict[str, Curve], others: list[list[float]]) -> dict[str, float]:
    """Check which curves lie nearer to the sound one than the sound run's own curve with another seed;
    returns every distance from it in units of that one.
    """
    sound = curves["sound"].losses
    one_seed = min(distance(sound, other) for other in others)
    distances = {name: distance(curve.losses, sound) / one_seed for name, curve in curves.items()}
    chance: dict[str, Any] = {"match": "statistical"}
    source = "the sound run with another seed: 1"
    for name in NEAR:
        title = Said(*CASES[name].title)
        lab.row("near", 0, distances[name], source, unit="seeds", tolerance=1.0, cause=title, **chance)
    for name in FAR:
        title = Said(*CASES[name].title)
        lab.row("far", 1, int(distances[name] > 1), source, unit="yes", cause=title, **chance)
    return distances


def check_flat(lab: Lab, curves: dict[str, Curve], slow: list[float]) -> float:
    """Check that the two flat curves lie nearer to each other than one of them to itself with another seed;
    returns that ratio.
    """
    low, skipped = curves["rate-too-low"].losses, curves["loss-scale-too-large"].losses
    ratio = distance(low, skipped) / distance(low, slow)
    source = "the low rate with another seed: 1"
    lab.row("flat", 0, ratio, source, unit="seeds", match="statistical", tolerance=1.0)
    return ratio


def check_probes(lab: Lab, curves: dict[str, Curve]) -> dict[str, float]:
    """Check the probe that separates each pair of curves that look alike; returns what they read."""
    sound, dropped = curves["sound"], curves["dropout-in-evaluation"]
    differ = [curves[name].signs.replicas_differ for name in ("missing-all-reduce", "sound")]
    lab.row("replicas", 1, int(differ[0]) - int(differ[1]), "bits of both ranks", unit="yes")
    norms = [curves[name].vitals[0].gradient_norm for name in ("gradients-not-divided", "sound")]
    # two pieces are added up in another order than one whole: fp32's rounding
    lab.row("norm", MICRO_BATCHES, norms[0] / norms[1], "Eq 13: divide once", unit="×", tolerance=1e-4)
    skipped = [curves[name].signs.skipped_fraction for name in ("loss-scale-too-large", "rate-too-low")]
    lab.row("skipped", 1, skipped[0] - skipped[1], "steps skipped of all steps", unit="")
    lab.row("twice_sound", 0, sound.twice, "no dropout, no chance", unit="nats")
    lab.row("twice_dropped", 1, int(dropped.twice > 0), "a mask for each evaluation", unit="yes")
    own = curves["labels-not-shifted"].own_target
    lab.row("own_target", 1, own, "targets that are their own input", unit="")
    return {
        "norm_ratio": norms[0] / norms[1],
        "twice": dropped.twice,
        "own": own,
        "own_sound": sound.own_target,
    }


def named_by_rules(lab: Lab, curves: dict[str, Curve]) -> dict[str, int]:
    """Count the faults that the rules of diagnosis.py name rightly, wrongly, and not at all."""
    lab.row("sound", 0, int(curves["sound"].named != HEALTHY), "diagnosis.py", unit="causes")
    faulty = [curve for name, curve in curves.items() if name != "sound"]
    right = sum(curve.named == curve.case.name for curve in faulty)
    silent = sum(curve.named == HEALTHY for curve in faulty)
    return {"right": right, "silent": silent, "wrong": len(faulty) - right - silent}


# ---- show --------------------------------------------------------------------------------------------------
def all_readings(lab: Lab, curves: dict[str, Curve], lang: str) -> str:
    """What can be read off every curve, in their order: the question is answered from it."""
    return "; ".join(
        lab.word(
            "reading",
            lang,
            number=number,
            first=curve.losses[0],
            last=curve.losses[-1],
            rise=max(b - a for a, b in pairwise(curve.losses)),
            held=curve.held_out[1][-1],
        )
        for number, curve in enumerate(curves.values(), start=1)
    )


def figures(lab: Lab, curves: dict[str, Curve], distances: dict[str, float]) -> None:
    """Draw all curves without a name, then with it, and how far each lies from the sound one."""
    steps = range(len(curves["sound"].losses))
    points = [((steps, curve.losses), curve.held_out) for curve in curves.values()]

    def numbered(lang: str) -> Any:
        panels = {str(number): both for number, both in enumerate(points, start=1)}
        return curves_figure(panels, lang, both_names(lab, lang))

    def titled(lang: str) -> Any:
        titles = [lab.word(f"title_{name.replace('-', '_')}", lang) for name in curves]
        panels = {
            f"{i}: {title}": both for i, (title, both) in enumerate(zip(titles, points, strict=True), 1)
        }
        return curves_figure(panels, lang, both_names(lab, lang), (steps, curves["sound"].losses))

    def far(lang: str) -> Any:
        order = sorted((name for name in curves if name != "sound"), key=lambda name: distances[name])
        rows = [lab.word(f"title_{name.replace('-', '_')}", lang) for name in order]
        series = {lab.word("training", lang): [distances[name] for name in order]}
        return dots(rows, series, lab.word("seeds", lang), least=1e-3, limit=1.0)

    lab.figure("numbered", numbered)
    lab.figure("titled", titled)
    lab.figure("far", far)


def both_names(lab: Lab, lang: str) -> tuple[str, str]:
    """What the line and the marks are."""
    return lab.word("training", lang), lab.word("held_out_loss", lang)
