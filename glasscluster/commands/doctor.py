"""`glass doctor`: what this machine has."""

from __future__ import annotations

from typing import Any

from glasscluster import __version__
from glasscluster.base.requests import Request
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress
from glasscluster.commands.options import command


@command(Request)
def doctor(_request: Request, as_json: bool) -> int:
    """What this machine has: Python, torch, Ray, GPUs, a browser;
    and what to do where something is missing.
    """
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
