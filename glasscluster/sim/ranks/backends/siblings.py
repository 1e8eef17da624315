"""The ranks that torchrun has started beside this one: which of them are alive, and why a run failed.

torchrun's agent ends all ranks when one has failed, and ranks lose the connection to a rank that has ended;
so every rank but one sees a consequence only. Here each finds the cause:

    a rank that is killed     its process is gone, and it has left no word in the store
    a rank that is stopped    its process is stopped (SIGSTOP); it is told to go on, so that it can be ended:
                              the agent would wait for half a minute
    any other failure         the first rank that fails leaves its error in the store, where others read it

A rank whose agent is gone, because somebody has killed it, ends itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from glasscluster.base import errors
from glasscluster.base.errors import GlassError, RankDied, RankStalled

LOOK_S = 1.0  # how often a rank looks whether its agent is still there
WORD_S = 1.0  # how long a rank waits for another one's word on why the run failed

GONE, STOPPED, RUNNING = "gone", "stopped", "running"


class Siblings:
    """What one rank knows of the others.

    Args:
        store: where all ranks of the job read and write.
        rank: this one.
        size: how many there are.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._run = 0
        self.store.set(f"glass/process/{rank}", f"{socket.gethostname()} {os.getpid()}")

    def start_run(self) -> None:
        """Begin a run, of which no rank has failed."""
        self._run += 1

    def find_cause(self, error: GlassError) -> GlassError:
        """The error that all ranks should report, where this one has failed.

        Args:
            error: what this rank has seen. With `wait` in it, it is a message that did not come, and may be a
                consequence.
        """
        if "wait" in error.__dict__:
            error = (
                self._first_word(0.0)
                or self._stopped(error)
                or self.find_killed()
                or self._first_word(WORD_S)
                or error
            )
        with contextlib.suppress(Exception):  # the store goes with the agent
            text = json.dumps([type(error).__name__, error.message, error.rank, error.operation, error.peer])
            self.store.compare_set(f"glass/failure/{self._run}", "", text)
        return error

    def find_killed(self) -> GlassError | None:
        """The error for a rank whose process was killed; None where every rank is alive or has ended by
        itself.
        """
        for rank, pid in self._here():
            if state_of(pid) == GONE and not self._has(f"glass/ended/{rank}"):
                text = f"rank {rank} died: its process {pid} is gone"
                return RankDied(text, rank=rank, operation="run")
        return None

    def leave_word(self) -> None:
        """Note that this rank ends by itself, so that nobody takes it for killed."""
        with contextlib.suppress(Exception):
            self.store.set(f"glass/ended/{self.rank}", "1")

    # ---- looking -------------------------------------------------------------------------------------------
    def _stopped(self, error: GlassError) -> GlassError | None:
        stopped = [(rank, pid) for rank, pid in self._here() if state_of(pid) == STOPPED]
        for _, pid in stopped:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)  # is taken when it goes on
                os.kill(pid, signal.SIGCONT)
        return stopped_rank(*stopped[0], error) if stopped else None

    def _first_word(self, patience_s: float) -> GlassError | None:
        """What the first rank that failed has left in the store."""
        end = time.monotonic() + patience_s
        while not self._has(f"glass/failure/{self._run}"):
            if time.monotonic() > end:
                return None
            time.sleep(0.05)
        with contextlib.suppress(Exception):
            name, message, rank, operation, peer = json.loads(self.store.get(f"glass/failure/{self._run}"))
            kind = RankDied if name == "InputError" else getattr(errors, name)
            return kind(message, rank=rank, operation=operation, peer=peer)
        return None

    def _here(self) -> list[tuple[int, int]]:
        """Rank and process id of the other ranks on this machine."""
        processes = []
        for rank in range(self.size):
            if rank != self.rank and self._has(key := f"glass/process/{rank}"):
                with contextlib.suppress(Exception):
                    host, pid = self.store.get(key).decode().split()
                    if host == socket.gethostname():
                        processes.append((rank, int(pid)))
        return processes

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except Exception:  # the store goes with the agent
            return False


def stopped_rank(rank: int, pid: int, error: GlassError) -> RankStalled:
    """The error for a rank whose process is stopped. `error`: what a rank that waits has seen of it."""
    text = f"rank {rank} is stopped: its process {pid} does not run (SIGSTOP); {error.message}"
    return RankStalled(text, rank=rank, operation=error.operation, peer=error.rank)


def state_of(pid: int) -> str:
    """Whether a process runs, is stopped, or is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return GONE
    except OSError:
        return RUNNING
    with contextlib.suppress(
        OSError, IndexError
    ):  # where there is no /proc, a stopped process passes as running
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return {"Z": GONE, "X": GONE, "T": STOPPED, "t": STOPPED}.get(state, RUNNING)
    return RUNNING


def end_with_the_agent() -> None:
    """Watch torchrun's agent, which is this process's parent: when it is gone, nobody else will end this
    rank.
    """
    agent = os.getppid()

    def watch() -> None:
        while os.getppid() == agent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="agent").start()
