"""`glass list`: what there is to choose from."""

from __future__ import annotations

from glasscluster.base.requests import Request
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit
from glasscluster.commands.options import command


@command(Request)
def list_(_request: Request, as_json: bool) -> int:
    """Scenarios, model presets, hardware, schedules and backends."""
    listing = body("list")()
    if as_json:
        emit(listing)
        return 0
    for heading, names in listing.items():
        if isinstance(names, dict):
            print(f"{heading}:")
            for name, text in names.items():
                print(f"  {name:16} {text}")
    return 0
