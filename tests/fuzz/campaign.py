"""Runs cases under limits of time and memory, and makes a failing one small."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import judge
from .case import Case, Sheet
from .cases import make
from .judge import Ending, faults, in_numbers

ROOT = Path(__file__).parents[2]
CASES_A_WORKER = 400  # what threads and caches leave behind does not pile up
TRIES = 80  # runs that shrinking a case may take
TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that runs one case after the other; it is replaced when it dies, or is stopped."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="glass-fuzz-"))
        self.process: subprocess.Popen[str] | None = None
        self.done = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self) -> subprocess.Popen[str]:
        """The process, a new one where there is none."""
        if self.process is None or self.done >= CASES_A_WORKER:
            self.stop()
            (self.home / "tmp").mkdir(exist_ok=True)
            path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.home / "tmp")}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            assert self.process.stdout is not None
            if self.process.stdout.readline() != "ready\n":
                raise RuntimeError("a worker of the fuzzer does not start: python -m tests.fuzz.worker")
            self.done = 0
        return self.process

    def stop(self) -> None:
        """End the process and what it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                with suppress(OSError):
                    stream.close()
        self.process = None

    def run(self, sheet: Sheet) -> Ending:
        """Run a command line in a folder of its own."""
        process = self.start()
        folder = self.home / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        sheet.write(folder)
        (folder / ".in").write_bytes(sheet.stdin)
        began, waited, looked = cpu_seconds(process.pid), 0.0, time.monotonic()
        words, heard, silent = judge.Words(), 0.0, 0.0
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps({"folder": str(folder), "words": sheet.words}), file=process.stdin, flush=True)
        stopped, slow = None, None
        while not select.select([process.stdout], [], [], 0.1)[0]:
            now = time.monotonic()
            waited += 0.0 if wants_to_run(process.pid) else now - looked
            looked = now
            used = cpu_seconds(process.pid) - began
            if used > heard + 0.5 and words.new(read(folder / ".err")):
                silent, heard = max(silent, used - heard), used
            if resident_bytes(process.pid) > judge.MOST_BYTES:  # first: to fill memory takes time, too
                stopped = f"memory: more than {judge.MOST_BYTES >> 30} GiB"
            elif used - heard > judge.MOST_CPU_S or (used > judge.MOST_SLOW_S and not words.rises):
                stopped = f"hang: more than {judge.MOST_CPU_S:g} s of work"
            elif waited > judge.MOST_WAIT_S:
                stopped = f"hang: waits for more than {judge.MOST_WAIT_S:g} s"
            elif used > judge.MOST_SLOW_S:
                slow = words.text
            if stopped or slow:
                break
        self.done += 1
        line = "" if stopped or slow else process.stdout.readline()
        if not stopped and not slow and not line:
            stopped = f"crash: signal {-process.wait()}"
        answer: dict[str, Any] = json.loads(line) if line else {}
        out, err, table = (read(folder / name) for name in (".out", ".err", "rows.predicted.csv"))
        if stopped or slow:
            self.stop()
        silent = max(silent, answer.get("cpu_s", heard) - heard)
        return Ending(out=out, err=err, table=table, stopped=stopped, slow=slow, silent_s=silent, **answer)


def read(path: Path) -> str:
    """The first million characters of an output."""
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(1_000_000)


def cpu_seconds(pid: int) -> float:
    """Seconds of work that a process did."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return 0.0


def wants_to_run(pid: int) -> bool:
    """Whether a thread of a process runs, or would if a busy machine let it."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError, IndexError):
            if task.read_text().rpartition(")")[2].split()[0] in "RD":
                return True
    return False


def resident_bytes(pid: int) -> int:
    """Memory that a process has now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def judged(worker: Worker, case: Case) -> tuple[Ending, list[str]]:
    """How a case ends, and what is wrong with it; what is taken is asked for again with --json."""
    ending = worker.run(case.sheet)
    said = faults(case, ending)
    again = None if said else in_numbers(case, ending)
    if again is not None:
        second = worker.run(again.sheet)
        said = faults(again, second)
        if not said and second.code != 0:
            said = [f"refused with --json, and taken without: {second.err.strip()[-200:]}"]
        ending = second if said else ending
    return ending, said


# ---- shrinking ---------------------------------------------------------------------------------------------
def kind_of_fault(said: list[str]) -> str:
    """What a smaller case must still show: the first fault without its numbers and names."""
    return re.sub(r"[0-9][0-9.,]*", "", said[0].split(":")[0]) if said else ""


def shrink(worker: Worker, case: Case, said: list[str]) -> Case:
    """The same fault with fewer mutations, fewer words, shorter values and files.

    What a mutation was certain of is kept: a smaller case that takes nonsense must hold the nonsense still,
    so of such a case the mutations alone are left out.
    """
    fault, tries = kind_of_fault(said), 0

    def fails(candidate: Case) -> bool:
        nonlocal tries
        tries += 1
        return tries <= TRIES and kind_of_fault(judged(worker, candidate)[1]) == fault

    for i in range(len(case.mutations)):
        if len(case.mutations) > 1:
            smaller = make(case.number, case.seed, case.kind, frozenset([i]))
            if fails(smaller):
                case = smaller
                break
    if said[0].startswith("nonsense was taken") or fault == "what is right was refused":
        return case
    for edit in (_without_word, _shorter_word, _without_file, _without_key):
        for at in reversed(range(_places(edit, case.sheet))):
            for smaller_sheet in edit(case.sheet, at):
                candidate = Case(case.kind, case.number, case.seed, smaller_sheet, case.mutations)
                if fails(candidate):
                    case = candidate
                    break
    return case


Edit = Callable[[Sheet, int], Iterable[Sheet]]


def _places(edit: Edit, sheet: Sheet) -> int:
    """How many places an edit has in a sheet."""
    if edit in (_without_word, _shorter_word):
        return len(sheet.words)
    return len(sheet.files) if edit is _without_file else len(_keys(sheet))


def _without_word(sheet: Sheet, at: int) -> Iterable[Sheet]:
    """Without an option and its value, or without one word; never without the command."""
    for length in (2, 1) if 0 < at < len(sheet.words) else ():
        smaller = sheet.copy()
        del smaller.words[at : at + length]
        yield smaller


def _shorter_word(sheet: Sheet, at: int) -> Iterable[Sheet]:
    for length in (20, len(sheet.words[at]) // 8, len(sheet.words[at]) // 2):
        if 20 <= length < len(sheet.words[at]):
            smaller = sheet.copy()
            smaller.words[at] = sheet.words[at][:length]
            yield smaller


def _without_file(sheet: Sheet, at: int) -> Iterable[Sheet]:
    smaller = sheet.copy()
    del smaller.files[list(sheet.files)[at]]
    yield smaller


def _keys(sheet: Sheet) -> list[tuple[str, Any]]:
    """Files of JSON, with the names or numbers of what stands in them."""
    found: list[tuple[str, Any]] = []
    for name, content in sheet.files.items():
        with suppress(ValueError, RecursionError):
            whole = json.loads(content) if isinstance(content, bytes) else None
            keys = list(whole) if isinstance(whole, dict) else range(len(whole)) if whole else ()
            found += [(name, key) for key in keys]
    return found


def _without_key(sheet: Sheet, at: int) -> Iterable[Sheet]:
    keys = _keys(sheet)
    if at < len(keys):
        name, key = keys[at]
        content = sheet.files[name]
        assert isinstance(content, bytes)
        whole = json.loads(content)
        del whole[key]
        smaller = sheet.copy()
        smaller.files[name] = json.dumps(whole).encode()
        yield smaller


# ---- many cases --------------------------------------------------------------------------------------------
@dataclass
class Tally:
    """What came out of many cases."""

    ran: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[Case, list[str], Path]] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)  # what was stopped, and had said how far it was
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def words(self) -> str:
        """For people."""
        lines = [f"{sum(self.ran.values()):,} cases, {len(self.failed)} failed"]
        lines += [f"  {kind:17} {n:6,}" for kind, n in sorted(self.ran.items())]
        lines += [f"  exit {code}: {n:,}" for code, n in sorted(self.codes.items())]
        lines += [f"  large: {text[:200]}" for text in self.slow]
        for case, said, path in self.failed:
            lines.append(f"{case.kind} {case.number} of seed {case.seed}: {'; '.join(said)}\n    {path}")
            lines += [f"    {m.nature}: {m.says[:120]}" for m in case.mutations]
        return "\n".join(lines)


def campaign(
    numbers: Iterable[int],
    seed: int,
    failures: Path,
    *,
    only: str | None = None,
    small: bool = True,
    say: Callable[[str], None] = lambda text: None,
    taken: Callable[[Case, Ending], None] = lambda case, ending: None,
) -> Tally:
    """Run cases; each that fails is shrunk, and written to a file in `failures`. What is taken is shown to
    `taken`.
    """
    tally = Tally()
    with Worker() as worker:
        for number in numbers:
            case = make(number, seed, only)
            ending, said = judged(worker, case)
            tally.ran[case.kind] += 1
            tally.codes["stopped, large" if ending.slow else str(ending.stopped or ending.code)] += 1
            if ending.slow:
                tally.slow.append(f"{case.kind} {number} of seed {seed}: {ending.slow}")
            tally.slowest = sorted([*tally.slowest, (ending.cpu_s, f"{case.kind} {number}")])[-10:]
            if ending.code == 0 and not said:
                taken(case, ending)
            if said:
                if small:
                    case = shrink(worker, case, said)
                tally.failed.append((case, said, write(case, said, ending, failures)))
                say(f"{case.kind} {number}: {'; '.join(said)[:300]}")
                say(f"    {[m.says[:100] for m in case.mutations]} {' '.join(case.sheet.words)[:200]}")
    return tally


def write(case: Case, said: list[str], ending: Ending, failures: Path) -> Path:
    """A failing case as a file that `--rerun` reads."""
    failures.mkdir(parents=True, exist_ok=True)
    path = failures / f"{case.kind.replace(' ', '-')}-{case.seed}-{case.number}.json"
    content = {**case.as_json(), "faults": said, "err": ending.err[-3000:], "escaped": ending.escaped}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path
