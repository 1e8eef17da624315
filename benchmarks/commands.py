"""Whole commands, from start to exit: CPU seconds of the process, not those that it waits for others.

Goal: what needs no tensor (lists, help, wrong options) in at most 0.5 s. Commands take turns, so that a slow
spell of the machine meets all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

GOAL_S = 0.5
REPEATS = 5
QUICK = (
    *("--help", "train --help", "list", "lessons", "lessons --plan E4", "run E4 --help"),
    *("run E4 --nosuch 3", "run tour --nosuch 3", "train --nosuch 3", "train --zero 7", "predict --tp three"),
)
WORK = ("schedule 1f1b --pp 4 --micro-batches 8", "predict --dp 2", "run L0 --out out")


def cpu_seconds(line: str, folder: str) -> float:
    """User and system seconds of one command and of the processes that it waited for."""
    null = subprocess.DEVNULL
    words = [sys.executable, "-m", "glasscluster", *line.split()]
    child = subprocess.Popen(words, cwd=folder, stdout=null, stderr=null)
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0  # waited for above
    return used.ru_utime + used.ru_stime


def measure() -> list[dict[str, Any]]:
    """One row a command: median and range of CPU seconds, and whether a goal is met."""
    spent: dict[str, list[float]] = {line: [] for line in (*QUICK, *WORK)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS + 1):  # the first round warms the disk's cache
            for line, seconds in spent.items():
                seconds.append(cpu_seconds(line, folder))
    rows = []
    for line, (_, *seconds) in spent.items():
        row: dict[str, Any] = {"command": f"glass {line}", "cpu_s": round(median(seconds), 3)}
        row |= {"least_s": round(min(seconds), 3), "most_s": round(max(seconds), 3)}
        if line in QUICK:
            row |= {"goal_s": GOAL_S, "ok": row["cpu_s"] <= GOAL_S}
        rows.append(row)
    return rows
