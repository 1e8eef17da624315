"""A plan recorded dry, one rank for all that do the same: what a prediction replays.

    programs     predicted from the plan (strategies/programs.py): one rank of each is recorded
    compared     the highest rank of a program with the lowest: rows, memory, communicators; of the first
                 program that several ranks run, and of the last
    roles        found for this hardware and these slow ranks (sim/time/equitable.py)
    folded       a graph of as many ranks as there are roles (sim/recording/roles.py)

Where something is not alike after all, every rank is recorded, and it is said why. So are plans whose
collectives are rings of our own, in which every rank sends other pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from glasscluster.base.limits import check_events
from glasscluster.sim.ranks.backends.dry import SAY_EVERY_S, record_rank
from glasscluster.sim.ranks.collectives.registry import NATIVE
from glasscluster.sim.ranks.gpu import Outcome
from glasscluster.sim.recording.folded_by_roles import fold_roles
from glasscluster.sim.recording.graph import ExecutionGraph
from glasscluster.sim.recording.relative import NotAlike, Partitions, Relative, difference, relative
from glasscluster.sim.recording.roles import representatives
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.equitable import refined
from glasscluster.sim.time.memory_history import MemoryHistory
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.programs import programs
from glasscluster.strategies.result import RankResult
from glasscluster.strategies.trainer import train_rank

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """A plan's recording.

    Attributes:
        graph: of every rank, or of one of each role (`graph.roles`).
        results: what each of the graph's ranks returned.
        whole: why every rank was recorded; empty for a folded graph.
    """

    graph: ExecutionGraph
    results: list[RankResult]
    whole: str

    @property
    def roles(self) -> int | None:
        """How many roles were replayed; None: every rank."""
        return None if self.graph.roles is None else self.graph.roles.roles

    @property
    def events(self) -> int:
        """Events of all GPUs."""
        rows = np.bincount(self.graph.rank, minlength=self.graph.ranks)
        return int(rows @ self.graph.stand_for)

    def of_every_rank(self, by_rank: list[Any]) -> list[Any]:
        """What holds for each GPU, from what holds for each of the graph's ranks."""
        return by_rank if self.graph.roles is None else self.graph.roles.of_every_rank(by_rank)

    def role_of(self, gpu: int) -> int:
        """Which of the graph's ranks stands for a GPU."""
        return gpu if self.graph.roles is None else int(self.graph.roles.role[gpu])

    def peak_memory(self) -> list[tuple[int, dict[str, int]]]:
        """The most bytes on each GPU at once, and their categories (`Run.peak_memory`)."""
        return self.of_every_rank([MemoryHistory(self.graph, r).peak() for r in range(self.graph.ranks)])


def record(
    cluster: Cluster,
    job: Job,
    slow: dict[int, float] | None = None,
    expand: bool = False,
    say: Say = lambda _text: None,
) -> Recorded:
    """Record a plan dry: one rank of each role where that is the same, else all.

    Args:
        cluster: of the dry backend, with the hardware on which the recording will be replayed, and the
            memory that a GPU has.
        job: the plan, the model, and one step.
        slow: from a rank to the factor by which its compute takes longer.
        expand: whether to record every rank in any case.
        say: is told how far it is, and why every rank is recorded.

    Raises:
        GlassError: the named error of the first rank that failed.
    """
    program, why = np.arange(job.plan.gpus), _not_folded(job, expand)
    if not why:
        program = programs(job.plan, job.model)
        why = "" if program.max() + 1 < len(program) else "no two ranks do the same"
    if not why:
        try:
            return _folded(cluster, job, program, slow or {}, say)
        except NotAlike as unlike:
            why = str(unlike)
            say(f"every GPU is recorded: {why}")
    run = cluster.run(train_rank, job, info=job_info(job))
    return Recorded(run.graph, run.results, why)


def _not_folded(job: Job, expand: bool) -> str:
    """Why not even the attempt is made; empty where it is."""
    if expand:
        return "it was asked for"
    if job.plan.gpus == 1:
        return "there is one GPU"
    if job.plan.algorithm != NATIVE:
        return f"in collectives by {job.plan.algorithm} every rank sends other pieces"
    return ""


def _folded(cluster: Cluster, job: Job, program: np.ndarray, slow: dict[int, float], say: Say) -> Recorded:
    """Record one rank of each program, and fold.

    Raises:
        NotAlike: ranks that were taken for alike are not.
    """
    lowest, ranks = representatives(program), job.plan.gpus
    partitions: Partitions = {}
    outcomes, recordings, said = list[Outcome](), list[Relative](), time.monotonic()
    for number, rank in enumerate(lowest.tolist()):
        outcome = _recorded(cluster, job, rank)
        outcomes.append(outcome)
        recordings.append(relative(outcome.recording or {}, partitions))
        if not number:
            check_events(ranks, len(lowest) * len(recordings[0].shift))
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            say(f"recorded {number + 1:,} of {len(lowest):,} ranks that stand for {ranks:,}")
    for number in compared(program):
        other = _recorded(cluster, job, int(np.flatnonzero(program == number)[-1]))
        _compare(outcomes[number], recordings[number], other, relative(other.recording or {}, partitions))
    partners = [r.partners for r in recordings]
    groups = [{number: partitions[cut] for number, cut in r.cuts.items()} for r in recordings]
    role = refined(program, partners, groups, cluster.hardware, slow)
    graph = fold_roles(recordings, program, role, partitions, {"backend": "dry", **job_info(job)})
    of_role = program[representatives(role)].tolist()
    return Recorded(graph, [outcomes[number].result for number in of_role], "")


def compared(program: np.ndarray) -> list[int]:
    """The programs of which a second rank is recorded: the first and the last that several ranks run."""
    several = np.flatnonzero(np.bincount(program) > 1).tolist()
    return sorted({*several[:1], *several[-1:]})


def _recorded(cluster: Cluster, job: Job, rank: int) -> Outcome:
    outcome = record_rank(rank, job.plan.gpus, train_rank, (job,), cluster.capacity)
    if outcome.error is not None:
        raise outcome.error
    return outcome


def _compare(first: Outcome, one: Relative, other: Outcome, others: Relative) -> None:
    """Compare two ranks of a program.

    Raises:
        NotAlike: they differ.
    """
    unlike = difference(one, others)
    if unlike is None and first.result.host_bytes != other.result.host_bytes:
        unlike = "bytes in host memory"
    if unlike is not None:
        raise NotAlike(f"ranks {first.rank} and {other.rank} of one program differ in {unlike}")
