"""The folder of a run: where it is, and what is written there, also after a failure."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from glasscluster.base.errors import GlassError, InputError, ProgramFailed
from glasscluster.base.files import (
    WRITING,
    finish,
    make_folder,
    naming,
    new_folder,
    replacing,
    replacing_together,
    why,
    write_text,
)
from glasscluster.base.rows import Row
from glasscluster.scenarios.jobs.progress import Say
from glasscluster.sim.recording.events import FIELDS, KINDS


def output_folder(out: str | None, name: str) -> Path:
    """The folder to write to; the default is the first free runs/NAME-N."""
    if out is None:
        return new_folder("runs", name)
    folder = Path(out)
    try:
        make_folder(folder)
    except (OSError, ValueError) as problem:
        raise InputError("out", out, f"cannot be made: {why(problem)}") from None
    return folder


WRITTEN = ("report.html", "graph.npz", "ledger.csv", "trace.json", "run.json", "partial-rank*.npz")


@contextmanager
def rewriting(folder: Path) -> Iterator[Path]:
    """Give a folder for the files of one run; they come into `folder` together, and those of the run that
    was there before go. A run that is killed while it writes leaves the older one as it was.
    """
    with naming("out", folder):
        finish(folder)
        old = [p.relative_to(folder) for pattern in WRITTEN for p in folder.rglob(pattern)]
    # the runs of a scenario have a folder each; another writer's folder is its own
    mine = [str(p) for p in old if len(p.parts) <= 2 and not p.parts[0].startswith(WRITING)]
    with replacing_together(folder, without=mine) as beside:
        yield beside


def write_ledger(path: Path, rows: list[Row]) -> None:
    """The checks as CSV."""
    columns = [
        "name",
        "predicted",
        "counted",
        "simulated",
        "measured",
        "unit",
        "match",
        "tolerance",
        "ok",
        "source",
    ]
    columns += ["key", "verdict", "why"]
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row.as_dict() for row in rows)


def write_run_json(folder: Path, content: dict[str, Any]) -> None:
    """Write run.json, which alone holds what differs from machine to machine; the report has none of it."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    text = json.dumps({**content, "versions": versions}, indent=1, default=str)
    write_text(folder / "run.json", text)


def keep_partial(folder: Path, error: GlassError, info: dict[str, Any], say: Say) -> None:
    """After a failed run its folder holds what was recorded; where nothing was, there is no folder."""
    if error.exit_code == 3 and not (isinstance(error, ProgramFailed) and not any(folder.iterdir())):
        say(f"what was recorded is in {write_partial(folder, error, info)}")
    elif not any(folder.iterdir()):
        folder.rmdir()


def write_partial(folder: Path, error: GlassError, info: dict[str, Any]) -> Path:
    """Write what a failed run leaves: each rank's events so far (npz, no pickle), and its last operations
    with the error.
    """
    with rewriting(folder) as beside:
        _write_partial(beside, error, info)
    return folder


def _write_partial(folder: Path, error: GlassError, info: dict[str, Any]) -> None:
    run, ranks = error.__dict__.get("run"), []
    for outcome in run.outcomes if run is not None else []:
        recording = outcome.recording
        if recording is None:
            continue
        table, names = recording["table"], recording["names"]
        np.savez_compressed(
            folder / f"partial-rank{outcome.rank}.npz",
            table=table,
            fields=np.array(FIELDS),
            names=np.array(names, dtype=str),
        )
        kind, op = FIELDS.index("kind"), FIELDS.index("op")
        last = [f"{KINDS[int(e[kind])]} {names[int(e[op])]}" for e in table[-64:]]
        failure = outcome.error.as_dict() if outcome.error is not None else None
        ranks.append({"rank": outcome.rank, "events": len(table), "error": failure, "last_operations": last})
    write_run_json(folder, {"schema": "glass.partial/1", **error.as_dict(), "info": info, "ranks": ranks})
