"""The cluster: run one program on every rank, get a Run back.

    run = Cluster("dgx-h100", gpus=8, backend="threads").run(program)

A backend only moves messages and starts ranks; everything else about a run is the same on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from glasscluster.base.display import renderer
from glasscluster.base.errors import GlassError, InputError
from glasscluster.base.rows import Row
from glasscluster.sim.ranks.backends.dry import DryBackend
from glasscluster.sim.ranks.backends.ray_actors import RayBackend
from glasscluster.sim.ranks.backends.threads import ThreadsBackend
from glasscluster.sim.ranks.backends.torchrun import TorchrunBackend
from glasscluster.sim.ranks.gpu import Outcome
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.sim.time.history import MemoryHistory
from glasscluster.sim.time.replay import replay
from glasscluster.sim.time.timeline import Timeline

DEVICES = ("cpu", "cuda")
BACKENDS = ("ray", "threads", "torchrun", "dry")


class Backend(Protocol):
    """Moves messages and starts ranks."""

    name: str

    def run(
        self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None
    ) -> list[Outcome]:
        """One outcome a rank, in rank order; a failure is raised as a GlassError."""

    def close(self) -> None:
        """Leave nothing behind."""


def make_backend(name: str, gpus: int, **options: Any) -> Backend:
    """A backend by name; each is imported when first used."""
    if name == "threads":
        return ThreadsBackend(gpus, **options)
    if name == "ray":
        return RayBackend(gpus, **options)
    if name == "torchrun":
        return TorchrunBackend(gpus, **options)
    if name == "dry":
        return DryBackend(gpus, **options)
    raise InputError("backend", name, "unknown backend", BACKENDS)


class Cluster:
    """`gpus` ranks on `hardware` (the virtual clock), run by `backend`. A context manager: actors live until it closes.

    Options: seed (order in which threads run), device ("cpu" or "cuda"), timeout_s (of one operation, where a
    backend needs one), memory_bytes (capacity of a virtual GPU; default: the hardware's; None: unlimited), eager_bytes
    (threads: a send of at most so many bytes does not wait for its receive; default 0: every send waits).
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
        if options.get("device", "cpu") not in DEVICES:
            raise InputError("device", options["device"], "unknown device", DEVICES)
        self._backend: Backend | None = None
        self._kept = False
        if backend not in BACKENDS:
            raise InputError("backend", backend, "unknown backend", BACKENDS)
        if "eager_bytes" in options and backend != "threads":
            raise InputError(
                "eager_bytes",
                options["eager_bytes"],
                f"is an option of the threads backend, not of {backend}",
                ["threads"],
            )

    def __enter__(self) -> Cluster:
        self._kept = True
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop actors and processes, if any."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    @property
    def leader(self) -> bool:
        """False only in the other processes of a torchrun job: checks and reports are rank 0's."""
        return getattr(self._backend, "rank", 0) == 0

    def run(
        self, program: Callable[..., Any], *args: Any, record: bool = True, info: dict | None = None
    ) -> Run:
        """Run `program(gpu, *args)` on every rank. Raises the named error of the first rank that failed.

        What had been recorded by then is kept on the error as `error.run`.
        """
        if self._backend is None:
            self._backend = make_backend(self.backend_name, self.gpus, **self.options)
        try:
            outcomes = self._backend.run(program, args, record, self.capacity)
        except GlassError as error:
            error.__dict__["run"] = self._partial(error)
            raise
        finally:
            if not self._kept:
                self.close()
        return Run(self, outcomes, info or {})

    def _partial(self, error: GlassError) -> Run | None:
        outcomes = error.__dict__.pop("outcomes", [])
        return Run(self, outcomes, {"partial": True}) if outcomes else None


class Run:
    """What came of a run: `results` (one a rank), `graph`, `timeline`, `checks`; `replay`, `report`."""

    def __init__(self, cluster: Cluster, outcomes: list[Outcome], info: dict) -> None:
        self.hardware, self.backend, self.gpus = cluster.hardware, cluster.backend_name, cluster.gpus
        self.outcomes, self.info = outcomes, info
        self.results = [o.result for o in outcomes]
        self.checks: list[Row] = []

    @classmethod
    def stored(cls, timeline: Timeline) -> Run:
        """A Run around a stored graph and its timeline: to be looked at again, without results."""
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
        """What every rank did."""
        recordings = [o.recording for o in self.outcomes if o.recording is not None]
        if len(recordings) != self.gpus:
            raise InputError("run", "graph", "this run was not recorded on every rank")
        return ExecutionGraph.build(recordings, {"backend": self.backend, **self.info})

    @cached_property
    def timeline(self) -> Timeline:
        """The graph on the cluster's hardware."""
        return replay(self.graph, self.hardware)

    def replay(self, hw: str | Hardware, **options: Any) -> Timeline:
        """The same graph on other hardware."""
        return replay(self.graph, hw, **options)

    def peak_memory(self) -> list[tuple[int, dict[str, int]]]:
        """Per rank: peak bytes and their split by category at that instant."""
        return [MemoryHistory(self.graph, rank).peak() for rank in sorted(self.graph.memory)]

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page about this run."""
        return renderer("report")(self, Path(path))

    def _repr_html_(self) -> str:
        return self.timeline._repr_html_()
