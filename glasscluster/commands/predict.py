"""`glass predict`: what a plan will cost on some hardware."""

from __future__ import annotations

from typing import Any

from glasscluster.base.text import counted
from glasscluster.base.utilisation import DEFINITIONS
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress, show_time
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.predict import PredictRequest


@command(PredictRequest)
def predict(request: PredictRequest, as_json: bool) -> int:
    """What a plan will cost on some hardware, recorded dry:
    shapes only, no partners, the strategies' own code.
    Seconds are virtual, from data sheets and formulas; they are not validated against measured clusters.
    """
    if request.csv is not None:
        return predict_rows(request, as_json)
    assert request.shape is not None  # no folder of weights can be asked for
    with progress() as say:
        say(f"glass predict: {counted(request.plan.gpus, 'GPU')}, {request.shape.parameters():,} parameters")
        content = body("predict")(request, say)
    if as_json:
        emit(content)
        return 0
    show(content)
    return 0


def predict_rows(request: PredictRequest, as_json: bool) -> int:
    """Every row of a file; exit code 1 where none succeeded, else 0: a row's error is in its row."""
    with progress() as say:
        say(f"glass predict: rows of {request.csv}")
        done, bad, path = body("predict_csv")(request, say)
    if as_json:
        emit({"schema": "glass.predict-csv/1", "rows": done, "errors": bad, "out": str(path)})
    else:
        print(f"{counted(done, 'row')}, {bad} with an error: {path}")
    return 1 if done and bad == done else 0


def show(content: dict[str, Any]) -> None:
    """The prediction in words; of a plan that does not fit, what holds the memory and what would fit."""
    ms = content["iteration_time_s"] * 1e3
    print(
        f"{ms:.4g} ms a step on {content['hardware']} (virtual), MFU {content['mfu']:.1%} "
        f"(causal {content['mfu_causal']:.1%}), HFU {content['hfu']:.1%}, "
        f"peak memory {content['peak_memory_gib']:.3f} GiB" + ("" if content["fits"] else ": DOES NOT FIT")
    )
    show_time(None, content["breakdown_s"], content)
    for definition in DEFINITIONS.values():
        print(f"  {definition.en}")
    if content["fits"]:
        return
    for held in content["residents"]:
        many = f" (x {held['count']})" if held["count"] > 1 else ""
        print(f"  {held['bytes'] / 2**30:8.3f} GiB  {held['category']}, {held['called']}{many}")
    for fit in content["would_fit"]:
        gib, ms = fit["peak_memory_bytes"] / 2**30, fit["iteration_time_s"] * 1e3
        print(f"would fit: {fit['options']}  ({gib:.3f} GiB, {ms:.4g} ms a step)")
