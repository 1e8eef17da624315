"""The cluster: run one program on every rank, get a Run back.

    run = Cluster("dgx-h100", gpus=8, backend="threads").run(program)

A backend only moves messages and starts ranks; everything else about a run is the same on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from glasscluster.base.display import renderer
from glasscluster.base.errors import GlassError, InputError
from glasscluster.base.limits import check_ranks
from glasscluster.base.rows import Row
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline

if TYPE_CHECKING:
    from glasscluster.sim.ranks.gpu import Outcome

DEVICES = ("cpu", "cuda")
BACKENDS = ("ray", "threads", "torchrun", "dry")
OPTIONS = (
    "seed",
    "device",
    "timeout_s",
    "eager_bytes",
    "compare",
    "ring_bytes",
    "say",
)  # of all backends together


class Backend(Protocol):
    """Starts ranks and moves their messages."""

    name: str

    def run(
        self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None
    ) -> list[Outcome]:
        """Run the program on every rank; returns one outcome a rank, in rank order.

        Args:
            program: called as `program(gpu, *args)`.
            args: the same on every rank.
            record: whether to record.
            capacity: bytes of memory of a simulated GPU; None: unlimited.

        Raises:
            GlassError: the named error of the first rank that failed.
        """

    def close(self) -> None:
        """Stop what the backend started: actors, threads."""


def make_backend(name: str, gpus: int, **options: Any) -> Backend:
    """A backend by name.

    Args:
        name: one of `BACKENDS`.
        gpus: how many ranks.
        **options: of the backend.
    """
    if name == "threads":
        from glasscluster.sim.ranks.backends.threads import ThreadsBackend

        return ThreadsBackend(gpus, **options)
    if name == "ray":
        from glasscluster.sim.ranks.backends.ray_actors import RayBackend

        return RayBackend(gpus, **options)
    if name == "torchrun":
        from glasscluster.sim.ranks.backends.torchrun import TorchrunBackend

        return TorchrunBackend(gpus, **options)
    if name == "dry":
        from glasscluster.sim.ranks.backends.dry import DryBackend

        return DryBackend(gpus, **options)
    raise InputError("backend", name, "unknown backend", BACKENDS)


class Cluster:
    """A simulated cluster: ranks that run one program, and hardware that says how long it would take.

    The backend decides how ranks run and how messages move; what is recorded does not depend on it. As a
    context manager a cluster keeps its Ray actors between runs, until it closes; without `with` they stop
    after each run.

    Args:
        hardware_name: a name of the catalogue (`classroom`, `dgx-h100`, ...), a path of a profile file, or a
            `Hardware`. It times the recording and gives each GPU its memory.
        gpus: how many ranks.
        backend: `threads` (this process), `ray` (actors), `torchrun` (processes that torchrun started) or
            `dry` (shapes only: nothing is computed, values are never read).
        memory_bytes: capacity of each simulated GPU in bytes; None: unlimited; by default what the hardware
            has.
        **options: of the backend. `seed`: the order in which threads run. `device`: `cpu` or `cuda`.
            `timeout_s`: seconds that one operation may wait, where a backend cannot see a deadlock; on
            threads: that a rank may compute without a message (600).
            `eager_bytes` (threads only): a send of at most so many bytes does not wait for its receive; 0 by
            default, so every send waits. `compare`: False to run collectives without comparing first what
            the ranks say of them (sim/ranks/agreement.py). `ring_bytes` and
            `say` (dry only): see `DryBackend`.

    Raises:
        InputError: for hardware, a backend, a device or a number of GPUs that does not exist.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     x = torch.full((4,), float(gpu.rank))
        ...     gpu.comm.all_reduce(x)
        ...     return x.tolist()
        >>> run = Cluster("classroom", gpus=2).run(program)
        >>> run.results
        [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
        >>> run.graph.bytes_sent()
        [16, 16]
    """

    def __init__(
        self,
        hardware_name: str | Hardware = "classroom",
        gpus: int = 4,
        backend: str = "threads",
        *,
        memory_bytes: float | str | None = "hardware",
        **options: Any,
    ) -> None:
        self.hardware = hardware(hardware_name)
        if gpus < 1:
            raise InputError("gpus", gpus, "must be at least 1")
        self.gpus, self.backend_name, self.options = gpus, backend, options
        self.capacity: float | None = (
            self.hardware.gpu.memory_bytes if isinstance(memory_bytes, str) else memory_bytes
        )
        if unknown := sorted(options.keys() - OPTIONS):
            raise InputError(
                unknown[0], options[unknown[0]], "is no option of a cluster", OPTIONS, by_name=True
            )
        if options.get("device", "cpu") not in DEVICES:
            raise InputError("device", options["device"], "unknown device", DEVICES)
        self._backend: Backend | None = None
        self._entered = False
        if backend not in BACKENDS:
            raise InputError("backend", backend, "unknown backend", BACKENDS)
        check_ranks(backend, gpus)
        if "eager_bytes" in options and backend != "threads":
            raise InputError(
                "eager_bytes",
                options["eager_bytes"],
                f"is an option of the threads backend, not of {backend}",
                ["threads"],
            )

    def __enter__(self) -> Cluster:
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the backend's actors, if any. A later `run` starts new ones.

        Example:
            >>> from glasscluster import Cluster
            >>> cluster = Cluster("classroom", gpus=2)
            >>> cluster.close()
            >>> cluster.run(lambda gpu: gpu.rank).results
            [0, 1]
        """
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    @property
    def leader(self) -> bool:
        """Whether this process writes checks and reports: False only in a torchrun job, on ranks other than
        0.
        """
        return getattr(self._backend, "rank", 0) == 0

    def run(
        self, program: Callable[..., Any], *args: Any, record: bool = True, info: dict | None = None
    ) -> Run:
        """Run a program on every rank and wait for all of them.

        Args:
            program: called as `program(gpu, *args)` on each rank, with that rank's `GPU`.
            *args: the same on every rank. On Ray they have to be picklable, as the program has.
            record: False to run without a recording; then the Run has results, and neither graph nor
                timeline.
            info: what the graph should remember about the run, as a JSON object.

        Returns:
            A Run, whose `results[r]` is what the program returned on rank r.

        Raises:
            GlassError: the named error of the first rank that failed: `Deadlock`, `OutOfMemory`,
                `CollectiveMismatch`, `RankDied`, ... What had been recorded by then is its `error.run`.

        Example:
            >>> from glasscluster import Cluster
            >>> Cluster("classroom", gpus=3).run(lambda gpu, k: k * gpu.rank, 10).results
            [0, 10, 20]
        """
        if self._backend is None:
            self._backend = make_backend(self.backend_name, self.gpus, **self.options)
        try:
            outcomes = self._backend.run(program, args, record, self.capacity)
        except GlassError as error:
            error.__dict__["run"] = self._partial(error)
            raise
        finally:
            if not self._entered:
                self.close()
        return Run(self, outcomes, info or {})

    def _partial(self, error: GlassError) -> Run | None:
        outcomes = error.__dict__.pop("outcomes", [])
        return Run(self, outcomes, {"partial": True}) if outcomes else None


class Run:
    """What one execution of a program left behind. `Cluster.run` makes it.

    Attributes:
        results: what the program returned, one value a rank, in rank order.
        checks: the rows of the ledger that somebody has checked; empty after `Cluster.run`.
        hardware: the `Hardware` on which `timeline` is replayed.
        backend: the name of the backend that ran it.
        gpus: how many ranks.
        info: what the graph remembers about the run.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     gpu.comm.all_reduce(torch.ones(1000))
        >>> run = Cluster("classroom", gpus=2).run(program)
        >>> run
        Run(2 ranks on threads, classroom)
        >>> f"{run.timeline.makespan * 1e6:.1f} us, {run.replay('dgx-h100').makespan * 1e6:.1f} us on NVLink"
        '20.4 us, 11.8 us on NVLink'
    """

    def __init__(self, cluster: Cluster, outcomes: list[Outcome], info: dict) -> None:
        self.hardware, self.backend, self.gpus = cluster.hardware, cluster.backend_name, cluster.gpus
        self.outcomes, self.info = outcomes, info
        self.results = [o.result for o in outcomes]
        self.checks: list[Row] = []

    @classmethod
    def stored(cls, timeline: Timeline) -> Run:
        """A Run around a graph that was loaded from a file: it can be drawn and replayed, and has no results.

        Args:
            timeline: the loaded graph, replayed.

        Returns:
            A Run with that graph, on the timeline's hardware.

        Example:
            >>> from glasscluster import Cluster
            >>> from glasscluster.sim.run import Run
            >>> timeline = Cluster("classroom", gpus=2).run(lambda gpu: gpu.comm.barrier()).timeline
            >>> run = Run.stored(timeline)
            >>> run.results, run.timeline is timeline
            ([], True)
        """
        run = cls.__new__(cls)
        run.hardware, run.gpus = timeline.hardware, timeline.graph.ranks
        run.info = dict(timeline.graph.info)
        run.backend = str(run.info.pop("backend", "stored"))
        run.outcomes, run.results, run.checks = [], [], []
        run.__dict__["graph"], run.__dict__["timeline"] = timeline.graph, timeline
        return run

    def __repr__(self) -> str:
        return f"Run({self.gpus} ranks on {self.backend}, {self.hardware.name})"

    @cached_property
    def graph(self) -> ExecutionGraph:
        """What every rank did, as one `ExecutionGraph`, built when it is first used.

        Raises:
            InputError: if the run was not recorded.
        """
        recordings = [o.recording for o in self.outcomes if o.recording is not None]
        if len(recordings) != self.gpus:
            raise InputError("run", "graph", "this run was not recorded on every rank")
        return ExecutionGraph.build(recordings, {"backend": self.backend, **self.info})

    @cached_property
    def timeline(self) -> Timeline:
        """When everything happened on the cluster's hardware: the graph, replayed when it is first used."""
        return replay(self.graph, self.hardware)

    def replay(self, hw: str | Hardware, **options: Any) -> Timeline:
        """Time the same recording on other hardware.

        Args:
            hw: a name of the catalogue, a path of a profile file, or a `Hardware`.
            **options: as in `glasscluster.replay`.

        Returns:
            A Timeline; the run's own is left as it is.

        Raises:
            InputError: if the run was not recorded, and as `glasscluster.replay` raises it.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> run = Cluster("classroom", gpus=2).run(lambda gpu: gpu.comm.all_reduce(torch.ones(1000)) and None)
            >>> run.replay("dgx-h100", slow_ranks={0: 2.0})
            Timeline(2 ranks, 16.81 µs virtual, dgx-h100)
        """
        return replay(self.graph, hw, **options)

    def peak_memory(self) -> list[tuple[int, dict[str, int]]]:
        """The most bytes that lived on each simulated GPU at once.

        Returns:
            For each rank, in order: the peak in bytes, and the bytes of each category (parameters, gradients,
            activations, ...) at that moment.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     return torch.ones(1000, device=gpu.device).sum().item()
            >>> total, by_category = Cluster("classroom", gpus=1).run(program).peak_memory()[0]
            >>> total
            4004
        """
        return [MemoryHistory(self.graph, rank).peak() for rank in sorted(self.graph.memory)]

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page about this run.

        Args:
            path: the file to write, or to replace.

        Returns:
            The path.

        Raises:
            InputError: if the run was not recorded.

        Example:
            >>> from pathlib import Path
            >>> from tempfile import TemporaryDirectory
            >>> from glasscluster import Cluster
            >>> run = Cluster("classroom", gpus=2).run(lambda gpu: gpu.comm.barrier())
            >>> with TemporaryDirectory() as folder:
            ...     page = run.report(Path(folder) / "run.html")
            ...     page.name, page.read_text(encoding="utf-8")[:15].lower()
            ('run.html', '<!doctype html>')
        """
        return renderer("report")(self, Path(path))

    def _repr_html_(self) -> str:
        return self.timeline._repr_html_()
