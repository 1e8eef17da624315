"""How every command speaks: progress on standard error; words, or one JSON object, on standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from glasscluster.base.breakdown import PAPERS, listed
from glasscluster.base.quantities import written_time
from glasscluster.base.rows import FAILED, HELD, Row, status, tally
from glasscluster.base.text import Said
from glasscluster.scenarios.jobs.processes import is_leader


@contextmanager
def progress():
    """Says how far things are, on standard error: a bar on a terminal, plain lines elsewhere."""
    if not is_leader():
        yield lambda _text: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)

            def show(text: str) -> None:
                console.print(f"[dim]·[/dim] {text}")
                bar.update(task, description=text)

            yield show
    else:
        yield lambda text: print(text, file=sys.stderr, flush=True)


# with --json: the real standard output, while everybody else's prints go to standard error
answers: Any = None


def emit(content: dict[str, Any]) -> None:
    """The one JSON object. Not-a-number and infinity are not JSON: they become null."""
    if is_leader():
        print(json.dumps(plain(content), allow_nan=False), file=answers or sys.stdout, flush=True)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def show_time(rank: int | None, breakdown: Mapping[str, float], papers: Mapping[str, float | None]) -> None:
    """Where the time of the rank that finishes last went, in words that add up to 100 %; of a pipeline, also
    what papers call its bubble.
    """
    who = "the last rank to finish" if rank is None else f"rank {rank}, the last to finish"
    print(f"  {who}: {listed(breakdown)}")
    said = [f"{name} {papers[key]:.1%}" for key, (name, _) in PAPERS.items() if papers[key] is not None]
    if said:
        print(f"  {', '.join(said)}")


MARKS = {HELD: "ok", FAILED: "FAIL"}  # before a row; one that is not applicable has a dash


def ledger_number(value: float) -> str:
    """A number of the ledger: ten digits, and all digits of what is larger, without powers of ten."""
    return f"{value:,.0f}" if 1e10 <= abs(value) < math.inf else f"{value:,.10g}"


def show_checks(rows: list[Row]) -> None:
    """The ledger as a table on standard output; a row that is not applicable says why."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="predicted | counted | simulated", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "quantity", "predicted", "counted", "simulated", "unit"):
        table.add_column(
            heading,
            justify="right" if heading in ("predicted", "counted", "simulated") else "left",
            no_wrap=heading != "quantity",
        )
    for row in rows:
        cells = ["" if x is None else ledger_number(x) for x in (row.predicted, row.counted, row.simulated)]
        because = f" (not applicable: {row.because})" if row.because else ""
        table.add_row(MARKS.get(row.verdict, "-"), f"{row.name}{because}", *cells, row.unit)
    Console(highlight=False).print(table)


MANY_LAUNCHES = 0.25  # of a step: from here on they are named as the reason


def launches_said(content: dict[str, Any], step_s: float) -> str:
    """Why a step takes as long as it does where launches of kernels are much of it; empty where they are not.

    content: with `kernels` and `launch_s`, of the rank that finishes last.
    """
    share = content["launch_s"] / step_s if step_s else 0.0
    if share < MANY_LAUNCHES:
        return ""
    each = written_time(content["launch_s"] / content["kernels"])
    return (
        f"{share:.0%} of it is launching kernels: {content['kernels']:,} of {each} on the rank that finishes "
        f"last. A faster GPU does not shorten that; larger matrices, or fewer of them, do"
    )


def verdict(rows: list[Row], report: Any, wall: float | None = None, not_checked: Sequence[Said] = ()) -> int:
    """The last lines a person sees, and the exit code: 1 when a check failed."""
    result = status(rows, not_checked)
    print(f"{result}: {tally(rows)}" + (f" in {wall:.1f} s" if wall else ""))
    for row in rows:
        if row.verdict == FAILED:
            print(f"FAILED: {row.name}")
    for check in not_checked:
        print(f"not checked: {check}")
    if report:
        print(f"report: {report}")
    return 1 if result == "FAIL" else 0
