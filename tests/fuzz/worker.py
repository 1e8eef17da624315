"""Runs many command lines in one process, so that imports are paid once.

One line of JSON in ({"folder", "words"}), one line of JSON out ({"code", "escaped", "cpu_s", "peak_bytes"}).
Output goes to the files `.out` and `.err` of the folder, standard input comes from `.in`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from .judge import MOST_BYTES


def peak_bytes() -> int:
    """The most memory that this process had since it was last forgotten."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def forget_peak() -> None:
    """Count the peak from here on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def redirect(folder: Path) -> None:
    """Point standard input and output of the whole process to a folder's files."""
    for number, name, mode in ((0, ".in", os.O_RDONLY), (1, ".out", os.O_WRONLY), (2, ".err", os.O_WRONLY)):
        opened = os.open(folder / name, mode | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "surrogateescape")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True
    )


def one(folder: str, words: list[str]) -> dict[str, Any]:
    """Run one command line in a folder."""
    from glasscluster.cli import main

    os.chdir(folder)
    redirect(Path(folder))
    forget_peak()
    escaped, code, began = None, None, time.process_time()
    try:
        main(words)
    except SystemExit as end:
        code = end.code
    except BaseException:  # what no command may let through: the judge says so
        escaped = traceback.format_exc()
    spent = time.process_time() - began
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.chdir("/")
    return {"code": code, "escaped": escaped, "cpu_s": spent, "peak_bytes": peak_bytes()}


def warm_up() -> None:
    """Import what commands import, so that no case pays for it; and be a machine of the judge's memory."""
    from glasscluster.base import limits

    limits.machine_bytes = lambda: MOST_BYTES  # before anybody imports it by name
    from glasscluster.commands.bodies import BODIES, body

    for name in BODIES:
        body(name)
    import glasscluster.sim.ranks.backends.dry
    import glasscluster.sim.ranks.backends.threads  # noqa: F401

    # shared links are timed by compiled loops, which a fresh checkout compiles for seconds
    with tempfile.TemporaryDirectory() as folder:
        one(folder, "collective all-reduce --gpus 4 --size 1KiB --contention".split())


def serve() -> None:
    """Answer until standard input ends."""
    questions, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    # what commands look for beside a terminal
    os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    warm_up()
    print("ready", file=answers, flush=True)
    for line in questions:
        question = json.loads(line)
        print(json.dumps(one(question["folder"], question["words"])), file=answers, flush=True)


if __name__ == "__main__":
    serve()
