"""What the tests that kill things share: a run to kill, the processes that belong to it, what is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
BACKENDS = ("threads", "ray", "torchrun")
TIMEOUT_S = 5.0  # of an operation
LONG = f"train --dp 3 --steps 100000 --seq 32 --no-check --timeout {TIMEOUT_S:g}s --out run --save W"
SHORT = LONG.replace("--steps 100000", "--steps 1")
RANKS = 3
LEFT_S = 90.0  # after which nothing of a run may be there
WAIT_S = 180.0  # for what must come at all


def command(words: str, backend: str) -> list[str]:
    """The command line of a run."""
    if backend == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        return [sys.executable, *launcher, "-m", "glasscluster", *words.split()]
    return [sys.executable, "-m", "glasscluster", *words.split(), "--backend", backend]


class Process:
    """A command that runs in a folder, and what it says on standard error with the time of each line."""

    def __init__(self, words: str, backend: str, folder: Path) -> None:
        # by this variable the processes that it starts are found, whoever their parent is
        self.mark = f"GLASS_TEST_KILLS={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", name: value}
        self.process = subprocess.Popen(
            command(words, backend),
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line))

    @property
    def said(self) -> str:
        """Everything that it has said."""
        return "".join(line for _, line in self.lines)

    def when(self, *words: str, within_s: float = WAIT_S) -> float | None:
        """When it first said a line with one of these words in it; None if it has ended without."""
        end = time.monotonic() + within_s
        while True:
            alive = self._reader.is_alive()
            for at, line in list(self.lines):
                if any(word in line for word in words):
                    return at
            if not alive:
                return None
            assert time.monotonic() < end, f"it never said {words}: {self.said[-2000:]}"
            time.sleep(0.02)

    def wait(self, within_s: float) -> int:
        """The exit code."""
        code = self.process.wait(within_s)
        self._reader.join(5)
        return code

    def family(self) -> dict[int, str]:
        """Every process that it has started, itself too, with its command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(folder.name)
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX":
                        found[pid] = words.strip()
        return found

    def ranks(self, backend: str) -> list[int]:
        """The processes of its ranks: those of Ray's actors, or torchrun's children, by rank or by number."""
        if backend == "ray":
            return sorted(pid for pid, words in self.family().items() if words.startswith("ray::_Rank.run"))
        found = {}
        for pid in self.family():
            with contextlib.suppress(OSError):
                variables = dict(
                    v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v
                )
                if "RANK" in variables and pid != self.process.pid:
                    found[int(variables["RANK"])] = pid
        return [found[rank] for rank in sorted(found)]

    def left(self, grace_s: float = LEFT_S) -> tuple[dict[int, str], float]:
        """What is left of it after a grace, and how long that took to end."""
        begun = time.monotonic()
        while (there := self.family()) and time.monotonic() - begun < grace_s:
            time.sleep(0.2)
        return there, time.monotonic() - begun

    def end(self) -> None:
        """Whatever a failed test leaves."""
        for pid in self.family():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
