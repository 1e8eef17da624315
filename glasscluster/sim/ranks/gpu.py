"""What a program holds: its rank, its communicators, its memory, its place on the mesh."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from glasscluster.base.errors import GlassError, NonFinite, RankDied
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.host import Host
from glasscluster.sim.ranks.mesh import GROUP_IDS, Mesh
from glasscluster.sim.ranks.wire import Wire
from glasscluster.sim.ranks.work import Progress
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder, RecordingMode


class GPU:
    """One rank's view of the cluster. `comm` is the communicator of all ranks."""

    def __init__(self, wire: Wire, recorder: Recorder, ledger: Ledger) -> None:
        self.rank, self.size, self.device = wire.rank, wire.size, wire.device
        self.recorder, self.memory = recorder, ledger
        self.progress = Progress(wire)
        ranks = range(wire.size)
        self.comm = Communicator(wire, self.progress, recorder, ledger, ranks, "world", GROUP_IDS["world"])
        self._mesh: Mesh | None = None
        self._host: Host | None = None
        self.afterwards = contextlib.ExitStack()  # what is to be let go when the recording is complete

    def __repr__(self) -> str:
        return f"GPU(rank {self.rank} of {self.size})"

    @property
    def mesh(self) -> Mesh:
        """Named axes; a program that made none has all ranks on `dp`."""
        if self._mesh is None:
            self._mesh = Mesh(self.comm, {"dp": self.size})
        return self._mesh

    def make_mesh(self, sizes: Mapping[str, int]) -> Mesh:
        """Lay the ranks out: `gpu.make_mesh({"dp": 2, "tp": 4})`; tp is fastest."""
        self._mesh = Mesh(self.comm, sizes)
        return self._mesh

    @property
    def host(self) -> Host:
        """The node's CPU and memory, over this GPU's link to them."""
        if self._host is None:
            self._host = Host(self.rank, self.recorder, self.memory, self.device)
        return self._host

    def region(self, name: str | None = None, *, layer: int | None = None, micro_batch: int | None = None):
        """Label what runs inside, on the graph: a phase ("forward", "backward", ...), a layer, a micro-batch.
        """
        return self.recorder.region(name, layer=layer, micro_batch=micro_batch)

    def unrecorded(self):
        """What runs inside leaves no trace on the graph."""
        return self.recorder.unrecorded()

    def start_step(self) -> None:
        """Forget what was recorded so far: the graph shows from here on; what lives now is memory's base
        line.
        """
        self.progress.drain()
        for comm in self.progress.communicators:
            comm.restart_numbering()
        self.recorder.clear()
        self.memory.start()

    def check_finite(self, tensor: torch.Tensor, name: str, step: int) -> None:
        """Raise NonFinite naming tensor, step and rank."""
        if tensor.device.type == "meta":
            return
        with self.unrecorded():
            finite = bool(torch.isfinite(tensor).all())
        if not finite:
            raise NonFinite(
                f"rank {self.rank}, step {step}: {name} is not finite",
                rank=self.rank,
                operation=name,
                step=step,
            )


@dataclass
class Outcome:
    """What one rank came to: a result and its recording, or an error."""

    rank: int
    result: Any = None
    recording: dict[str, Any] | None = None
    error: GlassError | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def run_rank(
    wire: Wire,
    program: Callable[..., Any],
    args: tuple,
    record: bool,
    capacity: float | None,
    abandoned: type[BaseException] | None = None,
) -> Outcome:
    """Run a program as one rank, on any backend: set up, record, finish what is in flight, name what went
    wrong.
    """
    ledger = Ledger(wire.rank, capacity if record else None)
    recorder = Recorder(wire.rank, ledger)
    recorder.paused = not record
    ledger.clock = lambda: recorder.ticks
    ledger.where, ledger.made_by = recorder.where, recorder.made_by
    gpu = GPU(wire, recorder, ledger)
    with gpu.afterwards:
        return _recorded(
            gpu, recorder, RecordingMode(recorder, wire.operate) if record else None, program, args, abandoned
        )


def _recorded(
    gpu: GPU,
    recorder: Recorder,
    mode: RecordingMode | None,
    program: Callable[..., Any],
    args: tuple,
    abandoned: type[BaseException] | None,
) -> Outcome:
    result, error = None, None
    try:
        with mode or contextlib.nullcontext():
            result = program(gpu, *args)
            gpu.progress.drain()
    except GlassError as named:
        named.rank = gpu.rank if named.rank is None else named.rank
        error = named
    except BaseException as problem:
        if abandoned is not None and isinstance(problem, abandoned):
            raise
        at = traceback.extract_tb(problem.__traceback__)[-1]
        error = RankDied(
            f"rank {gpu.rank} raised {type(problem).__name__}: {problem} ({at.filename.rsplit('/', 1)[-1]}:{at.lineno}, in {at.name})",
            rank=gpu.rank,
            operation=at.name,
        )
        error.__cause__ = problem
    return Outcome(gpu.rank, result, recorder.columns() if mode else None, error)
