"""The host as one GPU sees it: a link down, a link up, and memory in which its CPU updates what lies there.

    gradients ── down ──►  update  ── up ──► parameters          three lanes: of different units they overlap

Each is an event of kind `host` on the axis `host`: costed by the host's link or its memory (cost.py), not
counted as sent, because nothing leaves the rank. What lives in host memory is counted separately from the
GPU's (memory.py).
"""

from __future__ import annotations

import torch

from glasscluster.sim.ranks.mesh import GROUP_IDS
from glasscluster.sim.ranks.work import Work
from glasscluster.sim.recording.events import HOST, PURPOSES, group_lane
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder

LANES = {"update": 0, "down": 1, "up": 2}


class HostWork(Work):
    """Something the host does for the program."""

    def __init__(self, recorder: Recorder, row: int) -> None:
        self.recorder, self.row = recorder, row

    def wait(self) -> None:
        """What the program does next follows it."""
        if self.row >= 0:
            self.recorder.waited(self.row)


class Host:
    """Writes down what goes over the link and through the host's memory, with what each event follows."""

    def __init__(self, rank: int, recorder: Recorder, ledger: Ledger, device: torch.device) -> None:
        self.recorder, self.ledger = recorder, ledger
        self.device = torch.device("meta" if device.type == "meta" else "cpu")
        recorder.groups[GROUP_IDS["host"]] = ("host", (rank,))

    def event(
        self, op: str, nbytes: int, after: HostWork | None = None, *, purpose: str = "data", label: str = ""
    ) -> HostWork:
        """`down` or `up` of so many bytes, or an `update` that reads and writes so many; follows `after`, or
        else the program.
        """
        recorder = self.recorder
        if recorder.paused:
            return HostWork(recorder, -1)
        deps = recorder.frontier if after is None else (after.row,)
        lane = group_lane(GROUP_IDS["host"], LANES[op])
        return HostWork(
            recorder,
            recorder.row(lane, HOST, op, 0, nbytes, deps, purpose=PURPOSES.index(purpose), label=label),
        )

    def keep(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """This tensor lives in host memory. Returns it."""
        self.ledger.on_host(tensor, name)
        return tensor
