"""How every command speaks: progress on standard error; words, or one JSON object, on standard output."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import Any

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


def show_checks(rows: list[dict[str, Any]]) -> None:
    """The ledger as a table on standard output."""
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
        cells = ["" if row[k] is None else f"{row[k]:,.10g}" for k in ("predicted", "counted", "simulated")]
        table.add_row("ok" if row["ok"] else "FAIL", row["name"], *cells, row["unit"])
    Console(highlight=False).print(table)


def verdict(rows: list[dict[str, Any]], report: Any, wall: float | None = None) -> int:
    """The last lines a person sees, and the exit code."""
    failed = [r["name"] for r in rows if not r["ok"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} checks held" + (f" in {wall:.1f} s" if wall else ""))
    for name in failed:
        print(f"FAILED: {name}")
    if report:
        print(f"report: {report}")
    return 1 if failed else 0
