"""The object that a program gets: its rank, its communicators, its memory, its place on the mesh."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from glasscluster.base.errors import GlassError, NonFinite, RankDied
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.deadlock import raised_at
from glasscluster.sim.ranks.host import Host
from glasscluster.sim.ranks.mesh import GROUP_IDS, Mesh
from glasscluster.sim.ranks.wire import Wire
from glasscluster.sim.ranks.work import Progress
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.recorder import Recorder, RecordingMode
from glasscluster.sim.recording.repeated import EachTime, Repeated
from glasscluster.sim.recording.without_compiler import leave_compiler_alone


class GPU:
    """One rank's view of the cluster: what a program is called with.

    Attributes:
        rank: this rank's number in the cluster, from 0 to size - 1.
        size: how many ranks the cluster has.
        device: the torch device to make tensors on: `cpu`, `cuda:0`, or `meta` on the dry backend.
        comm: the communicator of all ranks.
        memory: the ledger of bytes that live on this rank.
        repeated: runs actions that repeat; on the dry backend it records some of them without running them.

    Args:
        wire: the backend's two primitives, send and receive.
        recorder: writes down what this rank does.
        ledger: counts the bytes that live on this rank.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     mesh = gpu.make_mesh({"dp": 2, "tp": 2})
        ...     x = torch.tensor([float(gpu.rank)], device=gpu.device)
        ...     with gpu.region("forward", layer=0, micro_batch=0):
        ...         mesh["tp"].all_reduce(x)
        ...     return x.item()
        >>> Cluster("classroom", gpus=4).run(program).results
        [1.0, 1.0, 5.0, 5.0]
    """

    def __init__(self, wire: Wire, recorder: Recorder, ledger: Ledger) -> None:
        self.rank, self.size, self.device = wire.rank, wire.size, wire.device
        self.recorder, self.memory = recorder, ledger
        self.progress = Progress(wire)
        ranks = range(wire.size)
        self.comm = Communicator(wire, self.progress, recorder, ledger, ranks, "world", GROUP_IDS["world"])
        repeats = wire.repeats and not recorder.paused
        self.repeated = Repeated(recorder, ledger, self.progress.communicators) if repeats else EachTime()
        self._mesh: Mesh | None = None
        self._host: Host | None = None
        # called when the recording is complete, to free what it needed
        self.afterwards = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"GPU(rank {self.rank} of {self.size})"

    @property
    def mesh(self) -> Mesh:
        """The mesh of named axes; if the program made none, all ranks are on `dp`."""
        if self._mesh is None:
            self._mesh = Mesh(self.comm, {"dp": self.size})
        return self._mesh

    def make_mesh(self, sizes: Mapping[str, int]) -> Mesh:
        """Lay the ranks out along named axes, tp fastest: tensor-parallel neighbours are consecutive ranks.

        Args:
            sizes: how many ranks along each of `pp`, `dp`, `cp` and `tp`; 1 where it is left out.

        Returns:
            The mesh, which is `gpu.mesh` from now on.

        Raises:
            InputError: for an unknown axis, or sizes that do not multiply to the number of ranks.
        """
        self._mesh = Mesh(self.comm, sizes)
        self.comm.meshes += 1
        return self._mesh

    @property
    def host(self) -> Host:
        """The node's CPU and memory, reached over this GPU's link."""
        if self._host is None:
            self._host = Host(self.rank, self.recorder, self.memory, self.device)
        return self._host

    def region(self, name: str | None = None, *, layer: int | None = None, micro_batch: int | None = None):
        """Label what runs inside a `with` block, on the graph.

        Regions nest; what is not given stays as outside.

        Args:
            name: the phase: forward, backward, weight, recompute, optimizer, other.
            layer: the number of a layer; -1: of none.
            micro_batch: the number of a micro-batch; -1: of none.

        Returns:
            A context manager.
        """
        return self.recorder.region(name, layer=layer, micro_batch=micro_batch)

    def unrecorded(self):
        """A context manager: what runs inside leaves no trace on the graph."""
        return self.recorder.unrecorded()

    def start_step(self) -> None:
        """Begin the recording anew: what was recorded so far is forgotten, what lives now is the memory's
        base line.

        Outstanding collectives are finished first, so a recording holds whole ones only.
        """
        self.progress.drain()
        for comm in self.progress.communicators:
            comm.restart_numbering()
        self.recorder.clear()
        self.memory.start()

    def check_finite(self, tensor: torch.Tensor, name: str, step: int) -> None:
        """Check that a tensor has neither infinities nor NaN, without leaving a trace on the graph.

        Args:
            tensor: of any shape; on the meta device nothing is checked.
            name: what the error calls it.
            step: the training step that the error names.

        Raises:
            NonFinite: naming the tensor, the step and the rank.
        """
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
    """How one rank's program ended: with a result and its recording, or with an error."""

    rank: int
    result: Any = None
    recording: dict[str, Any] | None = None
    error: GlassError | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    unmatched: dict[tuple[int, int, int], int] = field(default_factory=dict)  # see Wire.unmatched


def run_rank(
    wire: Wire,
    program: Callable[..., Any],
    args: tuple,
    record: bool,
    capacity: float | None,
    abandoned: type[BaseException] | None = None,
) -> Outcome:
    """Run a program as one rank, on any backend: set up, record, finish outstanding collectives, name an
    error.

    Args:
        wire: the backend's primitives for this rank.
        program: called as `program(gpu, *args)`.
        args: what it is called with.
        record: whether to record.
        capacity: bytes of memory of the simulated GPU; None: unlimited.
        abandoned: an exception of the backend's own, which passes through unnamed.

    Returns:
        The outcome. An error that is no GlassError becomes a RankDied with the line that raised it.
    """
    leave_compiler_alone()
    wire.start_run()
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
        if isinstance(problem, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # a person's, not the program's: the rank runs in the process that the person sees
        line, function = raised_at(problem)
        error = RankDied(
            f"rank {gpu.rank} raised {type(problem).__name__}: {_said(problem)} ({line}, in {function})",
            rank=gpu.rank,
            operation=function,
        )
        error.__cause__ = problem
    try:
        columns = recorder.columns() if mode else None
    except Exception as problem:  # what was recorded cannot be told; that must not hide the rank's own error
        columns = None
        error = error or RankDied(
            f"rank {gpu.rank}: its recording cannot be read ({type(problem).__name__}: {_said(problem)})",
            rank=gpu.rank,
            operation="recording",
        )
    return Outcome(gpu.rank, result, columns, error, unmatched=gpu.comm.wire.unmatched())


def _said(problem: BaseException) -> str:
    """What an exception says, also where its own words raise."""
    try:
        return str(problem)
    except Exception:
        return "(an exception that cannot be shown)"
