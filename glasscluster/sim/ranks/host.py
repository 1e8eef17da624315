"""The host as one GPU uses it: a link to it, a link back, and memory whose contents its CPU can update.

    gradients ── down ──►  update  ── up ──► parameters          three lanes; work on different units overlaps

Each copy or update is an event of kind `host` on the axis `host`. Its cost comes from the host's link or
memory (cost.py). It is not counted as sent, because nothing goes to another rank. Host memory is counted
separately from the GPU's (memory.py).
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
    """Something that the host does for the program: a copy to it or from it, or an update in its memory."""

    def __init__(self, recorder: Recorder, row: int) -> None:
        self.recorder, self.row = recorder, row

    def wait(self) -> None:
        """Let everything that the program does next start after this work."""
        if self.row >= 0:
            self.recorder.waited(self.row)


class Host:
    """Records copies over the host's link and updates in its memory, and which events each one follows."""

    def __init__(self, rank: int, recorder: Recorder, ledger: Ledger, device: torch.device) -> None:
        self.recorder, self.ledger = recorder, ledger
        self.device = torch.device("meta" if device.type == "meta" else "cpu")
        recorder.groups[GROUP_IDS["host"]] = ("host", (rank,))

    def event(
        self, op: str, nbytes: int, after: HostWork | None = None, *, purpose: str = "data", label: str = ""
    ) -> HostWork:
        """Record one event of the host.

        Args:
            op: `down` (to the host), `up` (from it), or `update` (an update in the host's memory).
            nbytes: bytes over the link; of an update, bytes that it reads and writes.
            after: what it follows; None: what the program has done or waited for so far.
            purpose: what the bytes are, one of `PURPOSES`.
            label: a name for it on the graph.

        Returns:
            The work, which a later event can follow or the program can wait for.
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

    def store(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Count a tensor as living in host memory, under a name; returns the tensor."""
        self.ledger.on_host(tensor, name)
        return tensor
