"""`glass doctor`: what this machine has; or what a model from outside is taken for."""

from __future__ import annotations

from textwrap import fill, shorten
from typing import Any

from glasscluster import __version__
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.doctor import DoctorRequest


@command(DoctorRequest)
def doctor(request: DoctorRequest, as_json: bool) -> int:
    """What this machine has: Python, torch, Ray, GPUs, a browser;
    and what to do where something is missing.
    With --model: what a config.json is taken for, key by key.
    """
    if request.model is not None:
        return doctor_model(request.model, as_json)
    with progress() as say:
        say("glass doctor: looking at this machine")
        rows: list[dict[str, Any]] = body("doctor")()
    ok = all(r["ok"] for r in rows if r["needed"])
    if as_json:
        emit({"schema": "glass.doctor/1", "version": __version__, "ok": ok, "items": rows})
        return 0 if ok else 3
    for r in rows:
        mark = "ok     " if r["ok"] else "MISSING" if r["needed"] else "without"
        print(f"{mark} {r['name']:16} {r['found']}" + (f"\n        {r['advice']}" if r["advice"] else ""))
    return 0 if ok else 3


def doctor_model(path: str, as_json: bool) -> int:
    """0 if the model can be used, 1 if something in it is refused."""
    with progress() as say:
        say(f"glass doctor: reading {path}")
        report: dict[str, Any] = body("doctor model")(path)
    if as_json:
        emit(report)
    else:
        show_model(report)
    return 0 if report["ok"] else 1


def show_model(report: dict[str, Any]) -> None:
    """One screen: parameters, then a line for each key."""
    size = "" if report["parameters"] is None else f": {report['parameters']:,} parameters"
    print(f"{report['config']}: {report['model_type']} ({report['architecture'] or 'not known here'}){size}")
    for mark, rows in (
        ("ok     ", [(r["key"], r["value"], r["means"]) for r in report["recognised"]]),
        ("REFUSED", [(r["key"], r["value"], r["why"]) for r in report["refused"]]),
        ("weights", [(r["key"], r["value"], r["why"]) for r in report["refused_weights"]]),
        ("unknown", [(r["key"], r["value"], "passed over, as transformers does") for r in report["unknown"]]),
    ):
        for key, value, said in rows:
            null = "null" if mark == "ok     " and not said.startswith("absent") else ""
            written = null if value is None else shorten(str(value) or repr(value), 24, placeholder="…")
            line = f"{mark} {key:25} {written:24} {said}"
            print(fill(line, 130, subsequent_indent=" " * 59))
    if report["harmless"]:
        print(fill(f"harmless: {', '.join(report['harmless'])}", 130, subsequent_indent=" " * 10))
    weights = report["weights"]
    if weights is not None and weights["ok"]:
        over = f", {len(weights['passed_over'])} more are passed over" if weights["passed_over"] else ""
        print(f"ok      its {weights['tensors']} tensors have these names and shapes{over}")
    elif weights is not None:
        print(f"REFUSED {weights['why']}")
    if report["refused"]:
        print("cannot be read as a model here: what is REFUSED is not modelled")
