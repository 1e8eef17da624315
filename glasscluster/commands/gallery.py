"""`glass gallery`: every lesson's report, and an index of them."""

from __future__ import annotations

from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.scenarios import GalleryRequest


@command(GalleryRequest)
def gallery(request: GalleryRequest, as_json: bool) -> int:
    """Run every lesson and write an index of their reports that opens from disk."""
    with progress() as say:
        say("glass gallery: running the lessons")
        index, rows = body("gallery")(request, say)
    if as_json:
        emit({"schema": "glass.gallery/1", "index": str(index), "cards": rows})
    else:
        print(f"{len(rows)} lessons: {index}")
    return 0 if all(r["ok"] for r in rows) else 1
