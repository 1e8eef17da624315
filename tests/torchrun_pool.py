"""Jobs of torchrun that stay: each runs one script after the other, so that torch is imported once.

    with Pool(folder) as pool:
        done = pool(4, "script.py", "--option", cwd=tmp_path)    # as test_torchrun.torchrun returns it

A script meets what it would meet under a torchrun of its own, except that its processes have run others
before. What is about starting, dying or ending is tested with `test_torchrun.torchrun`.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
LOOK_S, MOST_S = 0.05, 200.0


class Pool:
    """A job for each number of processes, started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.given = folder, 0
        self.jobs: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for n, job in self.jobs.items():
            self._give(n, {"end": True})
            try:
                job.wait(20)
            except subprocess.TimeoutExpired:
                job.terminate()
                job.wait()

    def __call__(self, processes: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a script, or `-m` and a module, in every process.

        Returns:
            The highest exit code of the processes, and what they wrote.
        """
        if processes not in self.jobs or self.jobs[processes].poll() is not None:
            self._start(processes)
        task = self._give(processes, {"command": command, "cwd": str(cwd)})
        ends = [task.with_suffix(f".end{rank}") for rank in range(processes)]
        begun = time.monotonic()
        while not all(end.exists() for end in ends):
            if self.jobs[processes].poll() is not None or time.monotonic() - begun > MOST_S:
                self.jobs.pop(processes).terminate()  # the agent ends its processes
                missing = [rank for rank, end in enumerate(ends) if not end.exists()]
                log = (task.parent / "log").read_text()[-2000:]
                return self._done(task, f"\nranks {missing} did not end; the job wrote:\n{log}", 1)
            time.sleep(LOOK_S)
        return self._done(task, "", max(int(end.read_text()) for end in ends))

    def _start(self, processes: int) -> None:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        path = f"{HERE.parent}{os.pathsep}{HERE.parent.parent}"
        folder = self.folder / f"of-{processes}-{self.given}"
        folder.mkdir()
        (self.folder / f"of-{processes}").write_text(str(folder))
        self.jobs[processes] = subprocess.Popen(
            [*words, str(processes), str(HERE), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("wb"),
        )

    def _give(self, processes: int, task: dict[str, Any]) -> Path:
        """Write a task, which every process reads once it has come to it."""
        folder = Path((self.folder / f"of-{processes}").read_text())
        place = folder / f"{len(list(folder.glob('*.json')))}.json"
        self.given += 1
        place.with_suffix(".new").write_text(json.dumps(task))
        place.with_suffix(".new").rename(place)
        return place

    def _done(self, task: Path, more: str, code: int) -> subprocess.CompletedProcess[str]:
        out, err = (
            "".join(part.read_text() for part in sorted(task.parent.glob(f"{task.stem}.{name}*")))
            for name in ("out", "err")
        )
        return subprocess.CompletedProcess([], code, out, err + more)


# ---- in each process ---------------------------------------------------------------------------------------
def work(folder: Path) -> None:
    """Do the tasks of a folder, one after the other, until one says that it is the end."""
    rank, number, home = os.environ["RANK"], 0, os.getcwd()
    while True:
        place = folder / f"{number}.json"
        while not place.exists():
            if os.getppid() == 1:
                return
            time.sleep(LOOK_S)
        task = json.loads(place.read_text())
        if "end" in task:
            return
        with _written(place, rank):
            code = _run(task)
        os.chdir(home)
        place.with_suffix(f".end{rank}").write_text(str(code))
        number += 1


@contextlib.contextmanager
def _written(place: Path, rank: str) -> Any:
    """What is written to either output meanwhile lands in files beside the task."""
    kept = [os.dup(1), os.dup(2)]
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(place.with_suffix(f".{name}{rank}"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(kept, start=1):
            os.dup2(old, number)
            os.close(old)


def _run(task: dict[str, Any]) -> int:
    """Run the task's script as the main program; returns its exit code."""
    import torch.distributed as dist

    module = task["command"][0] == "-m"
    sys.argv = task["command"][module:]
    os.chdir(task["cwd"])
    try:
        (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0) if isinstance(ended.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    # torch's own threads now and then abort an interpreter that ends by itself ("terminate called without an
    # active exception")
    os._exit(0)
