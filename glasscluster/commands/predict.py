"""`glass predict`: what a plan will cost on some hardware."""

from __future__ import annotations

from typing import Any

from glasscluster.base.quantities import written_time
from glasscluster.base.text import counted
from glasscluster.base.utilisation import DEFINITIONS
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, launches_said, progress, show_time
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
        content = body("predict")(request, say, advised=not as_json)
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
    step = content["iteration_time_s"]
    for lang in ("en", "zh"):
        print(content["sentence"][lang])
    print(
        f"{written_time(step)} a step on {content['hardware']} (virtual), MFU {content['mfu']:.1%} "
        f"(causal {content['mfu_causal']:.1%}), HFU {content['hfu']:.1%}"
    )
    show_time(None, content["breakdown_s"], content)
    print(memory_said(content))
    if said := launches_said(content, step):
        print(said)
    for definition in DEFINITIONS.values():
        print(f"  {definition.en}")
    if content["fits"]:
        return
    for held in content["residents"]:
        many = f" (x {held['count']})" if held["count"] > 1 else ""
        print(f"  {held['bytes'] / 2**30:8.3f} GiB  {held['category']}, {held['called']}{many}")
    for fit in content["would_fit"]:
        gib, took = fit["peak_memory_bytes"] / 2**30, written_time(fit["iteration_time_s"])
        print(f"would fit: {fit['options']}  ({gib:.3f} GiB, {took} a step)")


TIGHT = 0.1  # of a GPU's memory: what a framework and its communicators take besides can be as much


def memory_said(content: dict[str, Any]) -> str:
    """The fullest rank's memory beside the GPU's, what is left, and what is not in the count."""
    capacity, margin = content["memory_capacity_gib"], content["memory_margin_gib"]
    said = f"peak memory {content['peak_memory_gib']:.3f} GiB of {capacity:.1f} GiB"
    if not content["fits"]:
        return f"{said}: DOES NOT FIT"
    share = margin / capacity
    tight = "a tight fit" if share < TIGHT else "fits"
    return (
        f"{said}: {tight}, {margin:.1f} GiB ({share:.0%}) are left for what is not counted: the "
        f"framework's own context, communication buffers, workspaces, fragmentation"
    )
