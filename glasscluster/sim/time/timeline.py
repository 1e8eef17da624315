"""The timeline: when everything happened, and what follows from it.

A predicted and a measured timeline are the same type: a graph with a start and an end for every event.
Idle time and its reasons, the papers' bubble, the critical path and MFU are all computed from these arrays,
never drawn by rules of their own. Idle time is worked out in idle.py, the critical path in critical_path.py,
what is drawn in bars.py. The report page has a copy of it all, visualize/templates/timeline.js and files
named like these; the tests hold them equal.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from glasscluster.base.breakdown import PAPERS
from glasscluster.base.display import renderer
from glasscluster.base.quantities import written_time
from glasscluster.sim.recording.events import (
    BACKWARD,
    BEGIN,
    COMPUTE,
    FORWARD,
    HOST,
    PHASES,
    RECOMPUTE,
    RECV,
    SEND,
    WEIGHT,
)
from glasscluster.sim.recording.graph import ExecutionGraph, compute_rows
from glasscluster.sim.time import bars, idle
from glasscluster.sim.time.contention import ContendedReplay
from glasscluster.sim.time.critical_path import critical_path
from glasscluster.sim.time.hardware import Hardware
from glasscluster.sim.time.idle import Gap
from glasscluster.sim.time.memory_history import MemoryCurve, MemoryHistory

if TYPE_CHECKING:
    from pathlib import Path

    from plotly.graph_objects import Figure


USEFUL = (FORWARD, BACKWARD, WEIGHT, RECOMPUTE)


class Timeline:
    """When everything happened: a graph with a start and an end for every event.

    `replay` predicts one in virtual seconds; a measured one is the same type. Nothing is drawn that is not
    computed from its arrays.

    Attributes:
        graph: what the ranks did.
        start: seconds, [events].
        end: seconds, [events].
        hardware: what it was timed on.
        precision: whose peak FLOP/s counted.
        measured: whether the times were measured instead of predicted.
        replay_options: what `replay` was given besides: slow_ranks, faster, rendezvous, contention.
        shared: with contention, the routes of messages and the history of their rates; otherwise None.
        dep_ptr, dep_idx: the graph's dependencies; with rendezvous, sends wait for more.

    Args:
        graph, start, end, hardware, precision: as above.

    Example:
        >>> import torch
        >>> from glasscluster import Cluster
        >>> def program(gpu):
        ...     a = torch.ones(1000, 1000, device=gpu.device)
        ...     gpu.comm.all_reduce(a @ a)
        >>> timeline = Cluster("classroom", gpus=2).run(program).timeline
        >>> timeline
        Timeline(2 ranks, 2.46 ms virtual, classroom)
        >>> microseconds = {entry: round(1e6 * s) for entry, s in timeline.breakdown().items() if s}
        >>> microseconds
        {'compute': 2040, 'exposed_world': 420}
    """

    def __init__(
        self,
        graph: ExecutionGraph,
        start: np.ndarray,
        end: np.ndarray,
        hardware: Hardware,
        precision: str,
    ) -> None:
        self.graph, self.start, self.end = graph, start, end
        self.hardware, self.precision = hardware, precision
        self.measured = False
        self.replay_options: dict[
            str, Any
        ] = {}  # given to `replay`: slow_ranks, faster, rendezvous, contention
        self.shared: ContendedReplay | None = (
            None  # with contention: routes, and the history of rates on them
        )
        self.dep_ptr, self.dep_idx = graph.dep_ptr, graph.dep_idx  # with rendezvous sends wait for more

    def __repr__(self) -> str:
        time = f"{written_time(self.makespan)} {'measured' if self.measured else 'virtual'}"
        return f"Timeline({self.graph.ranks} ranks, {time}, {self.hardware.name})"

    @property
    def makespan(self) -> float:
        """Seconds from 0 to the last event's end."""
        return float(self.end.max(initial=0.0))

    def last_rank(self) -> int:
        """Find the rank that finishes last.

        Returns:
            Its number; the lowest of several that finish at the same time.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def program(gpu):
            ...     torch.ones(1000, 100 * (1 + gpu.rank)).sum()
            >>> Cluster("classroom", gpus=3).run(program).timeline.last_rank()
            2
        """
        return self._last_rank

    @cached_property
    def _last_rank(self) -> int:
        if not len(self.graph):
            return 0
        ends = np.zeros(self.graph.ranks)
        np.maximum.at(ends, self.graph.rank, self.end)
        return int(np.argmax(ends))

    def dependencies(self, row: int) -> np.ndarray:
        """The rows that an event waited for, without the send of a receive: the graph's, and those that a
        rendezvous adds.

        Args:
            row: an event.

        Returns:
            Row numbers.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> timeline.dependencies(4).tolist()  # rank 0's product follows its second matrix
            [2]
        """
        return self.dep_idx[self.dep_ptr[row] : self.dep_ptr[row + 1]]

    # ---- when communication began --------------------------------------------------------------------------
    @cached_property
    def _launches(self) -> dict[tuple[int, int, int], int]:
        """The row that launched each collective, by (rank, communicator, number of the collective)."""
        g, rows = self.graph, np.flatnonzero(self.graph.kind == BEGIN)
        keys = zip(g.rank[rows].tolist(), g.group[rows].tolist(), g.sequence[rows].tolist(), strict=True)
        return dict(zip(keys, rows.tolist(), strict=True))

    @cached_property
    def _last_launches(self) -> dict[tuple[int, int, int], int]:
        """What `_last_launch` found, by (lowest rank, communicator, number of the collective)."""
        return {}

    def launch(self, row: int) -> int:
        """Find the launch of a collective.

        Args:
            row: an event that is a whole collective.

        Returns:
            The row with which its rank launched it.

        Raises:
            KeyError: if the row belongs to no collective.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> row = timeline.communications()[0]["row"]
            >>> names, launch = timeline.graph.names, timeline.launch(row)
            >>> names[timeline.graph.op[row]], round(1e6 * timeline.start[launch])
            ('all_reduce/ring', 2080)
        """
        g = self.graph
        return self._launches[int(g.rank[row]), int(g.group[row]), int(g.sequence[row])]

    def under_way(self, row: int) -> float:
        """When a message or collective was really under way: when every rank that it needs had come to it.

        Args:
            row: an event that is a receive, a send, work of the host, or a whole collective.

        Returns:
            Seconds; 0 for the host, which is waited for whether its link or its CPU is busy.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> row = timeline.communications()[0]["row"]
            >>> round(1e6 * timeline.under_way(row)), round(1e6 * timeline.end[row])  # microseconds
            (2080, 2500)
        """
        g = self.graph
        if g.kind[row] == RECV:
            return float(self.start[g.match[row]])
        if g.kind[row] == SEND:
            return float(self.start[row])
        if g.kind[row] == HOST:  # waiting for the host, whether its link or its CPU is busy
            return 0.0
        last = self._last_launch(row)
        return float(self.start[last]) if last >= 0 else 0.0

    def _last_launch(self, row: int) -> int:
        """The row with which the last rank launched a collective, that of the lowest rank of several; -1:
        nobody did.
        """
        group, sequence = int(self.graph.group[row]), int(self.graph.sequence[row])
        members = self.graph.groups[int(self.graph.rank[row])][group][1]
        key = min(members), group, sequence
        if key not in self._last_launches:
            launches = [self._launches.get((member, group, sequence), -1) for member in sorted(members)]
            begun = [launch for launch in launches if launch >= 0]
            last = int(np.argmax(self.start[begun])) if begun else -1
            self._last_launches[key] = begun[last] if begun else -1
        return self._last_launches[key]

    def awaited(self, row: int) -> int:
        """Find the rank that whoever waits for an event waits for.

        Args:
            row: an event that is no compute.

        Returns:
            Of a message, the rank at its other end; of a collective, the rank that came to it last; of the
            host's work, the rank itself.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def step(gpu):
            ...     a = torch.ones(1000 * (1 + gpu.rank), 1000) @ torch.ones(1000, 10)
            ...     gpu.comm.all_reduce(a[:1000])
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> timeline.awaited(timeline.communications()[0]["row"])
            1
        """
        g = self.graph
        if g.kind[row] == RECV:
            return int(g.rank[g.match[row]])
        if g.kind[row] == SEND:
            return int(g.peer[row])
        last = self._last_launch(row) if g.kind[row] != HOST else -1
        return int(g.rank[last if last >= 0 else row])

    # ---- busy time and bubbles -----------------------------------------------------------------------------
    @cached_property
    def _useful(self) -> np.ndarray:
        """Which rows are forward or backward compute; all compute when nothing is labelled so."""
        compute = self.graph.kind == COMPUTE
        useful = compute & np.isin(self.graph.phase, USEFUL)
        return useful if useful.any() else compute

    @cached_property
    def window(self) -> tuple[float, float]:
        """From the first forward's start to the last backward's end; the whole run when nothing is labelled
        so.
        """
        rows = self._useful
        if not rows.any():
            return 0.0, self.makespan
        return float(self.start[rows].min()), float(self.end[rows].max())

    def useful(self) -> np.ndarray:
        """Add up the seconds of forward and backward compute.

        Returns:
            Seconds of each rank, [ranks]; of all compute when nothing is labelled forward or backward.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> [round(1e6 * s) for s in timeline.useful()]  # microseconds
            [2080, 2080]
        """
        rows, spent = self._useful, np.zeros(self.graph.ranks)
        # in event order, exactly: a sum of equal terms must not depend on how numpy pairs them
        np.add.at(spent, self.graph.rank[rows], (self.end - self.start)[rows])
        return spent

    def _of_every_gpu(self, of_rank: np.ndarray) -> np.ndarray:
        """What holds for every GPU of the cluster, from what holds for each of the graph's ranks."""
        return of_rank if self.graph.roles is None else of_rank[self.graph.roles.role]

    def phase_seconds(self, rank: int) -> dict[tuple[str, int], float]:
        """A rank's busy seconds by phase and micro-batch.

        Args:
            rank: a rank.

        Returns:
            From (phase, micro-batch) to seconds.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> {key: round(1e6 * s) for key, s in timeline.phase_seconds(0).items()}  # microseconds
            {('other', -1): 2080}
        """
        spent: dict[tuple[str, int], float] = {}
        for row in compute_rows(self.graph, rank).tolist():
            key = PHASES[self.graph.phase[row]], int(self.graph.micro_batch[row])
            spent[key] = spent.get(key, 0.0) + float(self.end[row] - self.start[row])
        return spent

    def idle_fraction(self) -> float:
        """All idle time of all ranks inside the window, whatever they wait for, over ranks × window.

        Returns:
            A fraction; time of messages that nothing hides is in it.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def step(gpu):
            ...     with gpu.region("forward", micro_batch=0):
            ...         return torch.ones(1000 * (1 + gpu.rank), 1000).sum().item()
            >>> round(Cluster("classroom", gpus=2).run(step).timeline.idle_fraction(), 3)
            0.25
        """
        first, last = self.window
        total = self.graph.gpus * (last - first)
        return (total - float(self._of_every_gpu(self.useful()).sum())) / total if total else 0.0

    def bubble(self) -> dict[str, Any]:
        """The bubble as papers on pipelines count it, by three definitions (base/breakdown.py has them in
        words). The breakdown's entry `bubble` is something else: it has no time of messages in it.

        Returns:
            `bubble_fraction`: idle time over ranks × window. `bubble_over_ideal`: idle time over useful time.
            `stage_span_bubble_fraction`: of the rank with the longest span from its first to its last useful
                event, idle time over span. All are None where nothing is pipelined.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> def step(gpu):
            ...     gpu.make_mesh({"pp": 2})["pp"]
            ...     with gpu.region("forward", micro_batch=0):
            ...         return torch.ones(1000 * (1 + gpu.rank), 1000).sum().item()
            >>> bubble = Cluster("classroom", gpus=2).run(step).timeline.bubble()
            >>> {name: round(fraction, 3) for name, fraction in bubble.items()}
            {'bubble_fraction': 0.25, 'bubble_over_ideal': 0.333, 'stage_span_bubble_fraction': 0.0}
        """
        if not self.graph.pipelined:
            return dict.fromkeys(PAPERS)
        first, last = self.window
        useful, span = self.useful(), last - first
        spans = []
        for rank in range(self.graph.ranks):
            own = self._useful & (self.graph.rank == rank)
            spans.append(float(self.end[own].max() - self.start[own].min()) if own.any() else 0.0)
        largest = int(np.argmax(spans)) if spans else 0
        within = 1 - float(useful[largest]) / spans[largest] if spans and spans[largest] else 0.0
        busy = self._of_every_gpu(useful).sum()
        idle_s = float(self.graph.gpus * span - busy)
        return {
            "bubble_fraction": self.idle_fraction(),
            "bubble_over_ideal": idle_s / float(busy) if busy else 0.0,
            "stage_span_bubble_fraction": within,
        }

    # ---- idle time (idle.py) -------------------------------------------------------------------------------
    def gaps(self, rank: int) -> list[Gap]:
        """The times at which a rank's compute lane was idle, from 0 to the makespan.

        Args:
            rank: a rank.

        Returns:
            Gaps in order of time, each with its entry of the breakdown (see idle.py).

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> [(gap.entry, round(1e6 * gap.length)) for gap in timeline.gaps(0)]  # microseconds
            [('exposed_world', 420)]
        """
        return idle.gaps(self, rank)

    @cached_property
    def all_gaps(self) -> list[Gap]:
        """The gaps of every rank, rank by rank."""
        return [g for rank in range(self.graph.ranks) for g in self.gaps(rank)]

    def exposed_comm(self) -> list[float]:
        """Find how long each rank waited for messages on the wire.

        Returns:
            For each rank, the seconds for which its compute lane was idle while the awaited message was in
            flight, on any axis; without waiting for the host.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> [round(1e6 * s) for s in timeline.exposed_comm()]  # microseconds
            [420, 420]
        """
        return idle.exposed_comm(self)

    def breakdown(self, rank: int | None = None) -> dict[str, float]:
        """Where a rank's seconds went, by the entries of base/breakdown.py.

        Args:
            rank: a rank; None: `last_rank()`.

        Returns:
            From an entry to seconds, all entries in their order; they add up to the makespan.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> {entry: round(1e6 * s) for entry, s in timeline.breakdown(0).items() if s}  # microseconds
            {'compute': 2080, 'exposed_world': 420}
        """
        return idle.breakdown(self, self.last_rank() if rank is None else rank)

    def split(self) -> list[dict[str, float]]:
        """Divide each rank's makespan as `breakdown` does, and its compute by what is communicated meanwhile.

        Returns:
            For each rank, seconds by entry, with `alone` and `overlapped` in the place of `compute`; they add
            up to the makespan (see idle.split).

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> {name: round(1e6 * s) for name, s in timeline.split()[0].items() if s}  # microseconds
            {'alone': 2080, 'exposed_world': 420}
        """
        return idle.split(self)

    # ---- the critical path (critical_path.py) --------------------------------------------------------------
    @cached_property
    def critical_path(self) -> list[int]:
        """The rows, first to last, whose lengths and waits add up to the makespan, across ranks."""
        return critical_path(self)

    # ---- efficiency ----------------------------------------------------------------------------------------
    def mfu(self, model_flops: float) -> float:
        """Model FLOPs utilisation: the FLOPs of the model over what all GPUs could have done in the makespan.

        Args:
            model_flops: of all that is in the timeline, without recomputation.

        Returns:
            A fraction of the peak at the timeline's precision.

        Raises:
            InputError: if no peak of the GPU is known at this precision.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> round(timeline.mfu(2 * 2 * 1000**3), 3)  # two ranks, 2·1000³ FLOPs each
            0.8
        """
        if not self.makespan:
            return 0.0
        return model_flops / (self.makespan * self.graph.gpus * self.hardware.gpu.peak(self.precision))

    def hfu(self) -> float:
        """Hardware FLOPs utilisation: as `mfu`, of all FLOPs that ran.

        Returns:
            A fraction of the peak at the timeline's precision.

        Raises:
            InputError: if no peak of the GPU is known at this precision.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: torch.ones(1000, 1000) @ torch.ones(1000, 1000)
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> timeline.hfu() == timeline.mfu(2 * 2 * 1000**3)
            True
        """
        flops = np.zeros(self.graph.ranks, np.int64)
        np.add.at(flops, self.graph.rank, self.graph.flops)
        each = zip(flops.tolist(), self.graph.stand_for.tolist(), strict=True)
        return self.mfu(float(sum(n * many for n, many in each)))  # of many GPUs they are beyond 64 bits

    def summary(self, model_flops: float = 0.0, causal_flops: float | None = None) -> dict[str, Any]:
        """The timeline's keys of `glass train` and `glass replay`.

        Args:
            model_flops: for the MFU; 0: unknown.
            causal_flops: for the causal MFU; None: unknown.

        Returns:
            Values by the names of docs/contract.md; seconds and fractions.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> summary = timeline.summary()
            >>> round(1e6 * summary["makespan_s"]), round(1e6 * summary["exposed_comm_s"])  # microseconds
            (2500, 420)
        """
        exposed = self.exposed_comm()
        return {
            "makespan_s": self.makespan,
            **self.bubble(),
            "exposed_comm_s": float(np.mean(exposed)) if exposed else 0.0,
            "exposed_comm_per_rank_s": exposed,
            "breakdown_s": self.breakdown(),
            "mfu": self.mfu(model_flops),
            "mfu_causal": None if causal_flops is None else self.mfu(causal_flops),
            "hfu": self.hfu(),
            **({"order": "as recorded"} if self.graph.info.get("order_fixed") else {}),
        }

    # ---- memory --------------------------------------------------------------------------------------------
    def memory(self, rank: int) -> MemoryCurve:
        """What lived on a rank over virtual time.

        Args:
            rank: a rank.

        Returns:
            A MemoryCurve: bytes by category at every change, and what held them.

        Raises:
            KeyError: if the rank is not in the recording.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> curve = timeline.memory(0)
            >>> [(round(1e6 * s), int(b) // 10**6) for s, b in zip(curve.times, curve.levels.sum(axis=1))]
            [(0, 4), (40, 8), (80, 12), (2080, 8), (2080, 6), (2500, 4), (2500, 0)]
        """
        return MemoryHistory(self.graph, rank).over(self)

    # ---- for pictures (bars.py) ----------------------------------------------------------------------------
    def blocks(self) -> list[dict[str, Any]]:
        """Join compute events for drawing.

        Returns:
            One block for each (phase, micro-batch) without a gap inside, in order of rank and time.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> [(b["rank"], b["events"], round(1e6 * b["end"])) for b in timeline.blocks()]
            [(0, 3, 2080), (1, 3, 2080)]
        """
        return bars.blocks(self)

    def communications(self) -> list[dict[str, Any]]:
        """List whole collectives, messages and the host's work for drawing.

        Returns:
            One dictionary for each, which says when it was launched and when it began, in seconds.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> [(c["op"], c["bytes"], round(1e6 * c["start"])) for c in timeline.communications()]
            [('all_reduce/ring', 4000000, 2080), ('all_reduce/ring', 4000000, 2080)]
        """
        return bars.communications(self)

    def figure(self, **options: Any) -> Figure:
        """Draw the timeline.

        Args:
            **options: of `visualize.figures.timeline.timeline_figure`.

        Returns:
            A plotly figure.

        Example:
            >>> import torch
            >>> from glasscluster import Cluster
            >>> step = lambda gpu: gpu.comm.all_reduce(torch.ones(1000, 1000) @ torch.ones(1000, 1000))
            >>> timeline = Cluster("classroom", gpus=2).run(step).timeline
            >>> timeline.figure(lang="zh").layout.xaxis.title.text
            '虚拟时间 (ms) · classroom'
        """
        return renderer("figure")(renderer("timeline")(self, **options))

    def show(self, path: str | Path | None = None, **options: Any) -> None:
        """Show the figure that zooms: in a notebook's cell, or in a file whose path is printed and which a
        browser opens if there is a screen.

        Args:
            path: the file to write; by default one in a new temporary folder.
            **options: as in `figure`.

        Example:
            >>> from pathlib import Path
            >>> from tempfile import TemporaryDirectory
            >>> from glasscluster import Cluster
            >>> timeline = Cluster("classroom", gpus=2).run(lambda gpu: gpu.comm.barrier()).timeline
            >>> with TemporaryDirectory() as folder:
            ...     timeline.show(Path(folder) / "barrier.html")
            timeline: ...barrier.html
        """
        renderer("show")(renderer("timeline")(self, **options), "timeline", path)

    def _repr_html_(self) -> str:
        return renderer("still")(self)
