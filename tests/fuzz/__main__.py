"""The fuzzer from the command line: see tests/fuzz/__init__.py."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .campaign import Worker, campaign, judged
from .case import Case
from .judge import Ending
from .kinds import KINDS


def main() -> int:
    """Run what is asked for; exit code 1 where a case failed."""
    take = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the glass command.")
    take.add_argument("--cases", type=int, default=500)
    take.add_argument("--start", type=int, default=0)
    take.add_argument("--seed", type=int, default=0)
    take.add_argument("--only", choices=list(KINDS))
    take.add_argument("--as-they-are", action="store_true", help="do not shrink what fails")
    take.add_argument("--failures", type=Path, default=Path(tempfile.gettempdir()) / "glass-fuzz-failures")
    take.add_argument("--taken", type=Path, help="a file for a line on each case that ends with exit 0")
    take.add_argument("--rerun", type=Path, help="a file of a failing case")
    asked = take.parse_args()
    if asked.rerun:
        case = Case.read(asked.rerun)
        with Worker() as worker:
            ending, said = judged(worker, case)
        print("glass", *map(ascii, case.sheet.words))
        print(ending.out[-2000:], ending.err[-3000:], ending.escaped or "", sep="\n")
        print("; ".join(said) or f"nothing is wrong; exit {ending.code}")
        return bool(said)
    began = time.monotonic()

    def note(case: Case, ending: Ending) -> None:
        done = "; ".join(f"{m.nature}: {m.says}" for m in case.mutations)
        words = " ".join(case.sheet.words)[-300:]
        text = " | ".join([case.kind, str(case.number), words, done, ending.out[:300]])
        with asked.taken.open("a", encoding="utf-8", errors="backslashreplace") as file:
            print(repr(text), file=file)

    tally = campaign(
        range(asked.start, asked.start + asked.cases),
        asked.seed,
        asked.failures,
        only=asked.only,
        small=not asked.as_they_are,
        say=lambda text: print(text, flush=True),
        **({"taken": note} if asked.taken else {}),
    )
    print(tally.words())
    print(f"{time.monotonic() - began:.1f} s; the slowest: {tally.slowest[::-1]}")
    return bool(tally.failed)


if __name__ == "__main__":
    sys.exit(main())
