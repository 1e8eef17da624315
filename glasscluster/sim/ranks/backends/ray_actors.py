"""The `ray` backend: one actor a GPU, a gloo (or NCCL) group inside the actors.

Ray starts processes and tells us when one dies; messages go over the group. A Ray cluster that is already
connected is used and left alone. Otherwise one is started (ray_session.py): no dashboard, token
authentication as Ray has it (on), and all that it made or set goes when it stops.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from glasscluster.base import closing
from glasscluster.base.errors import BackendUnavailable, GlassError, InputError, RankDied, RankStalled
from glasscluster.sim.ranks.backends.meeting_point import MeetingPoint, open_meeting_point
from glasscluster.sim.ranks.backends.process_group import lost_message, make_wire, with_one_thread
from glasscluster.sim.ranks.backends.ray_session import Session, loaded
from glasscluster.sim.ranks.backends.siblings import STOPPED, state_of, stopped_rank
from glasscluster.sim.ranks.collectives.registry import registered_elsewhere, take
from glasscluster.sim.ranks.deadlock import describe_deadlock
from glasscluster.sim.ranks.gpu import Outcome, run_rank

OLDEST = (2, 59)
MEETING_S = 120.0  # seconds for the actors to start and to join their group
LOOK_S = 0.2  # how often the driver looks whether an actor's process is stopped
GRACE_S = 2.0  # seconds after a stall in which other ranks may report what they waited for


class _Rank:
    """What runs inside an actor."""

    def __init__(self, umask: int) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.umask(umask)  # the driver's; a Ray of our own runs with one that keeps its files to us
        with_one_thread()
        self.wire: Any = None
        self.store: Any = None

    def host(self) -> MeetingPoint:
        """On rank 0: open the meeting point of the process group, on this node's address."""
        import ray.util

        place, self.store = open_meeting_point(ray.util.get_node_ip_address())
        return place

    def join(
        self,
        rank: int,
        size: int,
        place: MeetingPoint,
        device: str,
        timeout_s: float,
        compare: bool,
    ) -> tuple[str, int]:
        """Enter the process group; returns the name of this machine and this process's id."""
        import torch
        import torch.distributed as dist

        # Ray's handler would raise SystemExit inside the program once Python runs again, and the program
        # would seem to be the cause. An actor that is told to end is gone at once instead, and named by its
        # process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if place.address == "127.0.0.1":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        backend = "nccl" if device == "cuda" else "gloo"
        # gloo's messages carry the operation's timeout themselves, so meeting may take longer: an actor may
        # still be importing torch
        meeting_s = timeout_s if device == "cuda" else max(timeout_s, MEETING_S)
        dist.init_process_group(
            backend,
            store=place.store(self.store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=meeting_s),
        )
        gpu = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
        store = dist.distributed_c10d._get_default_store() if compare else None
        self.wire = make_wire(rank, size, gpu, timeout_s, store)
        return socket.gethostname(), os.getpid()

    def run(self, blob: bytes, record: bool, capacity: float | None) -> Outcome:
        """Run the program as this rank."""
        from ray import cloudpickle

        program, args, algorithms = cloudpickle.loads(blob)
        take(algorithms)
        return run_rank(self.wire, program, args, record, capacity)


class RayBackend:
    """Owns the actors; starts them at the first run."""

    name = "ray"

    def __init__(
        self, gpus: int, *, device: str = "cpu", timeout_s: float = 30.0, compare: bool = True, **_: Any
    ) -> None:
        self.compare = compare
        self.gpus, self.device, self.timeout_s = gpus, device, timeout_s
        self.actors: list[Any] = []
        self.processes: list[tuple[str, int]] = []  # of each rank: its machine, and its number there
        self.session: Session | None = None  # of our own

    # ---- start and stop ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start Ray if need be, the actors, and their group."""
        ray = _import_ray()
        closing.finish()  # Ray cannot start while another of ours stops
        try:
            if not ray.is_initialized():
                self.session = Session(ray)
                self.session.start(self.gpus)
            self._start_actors(ray)
        except GlassError:
            self.close()
            raise
        except Exception as problem:
            self.close()
            raise BackendUnavailable(
                f"Ray could not start {self.gpus} actors on {self.device}: {_first_line(problem)}"
            ) from None

    def _start_actors(self, ray: Any) -> None:
        resource = "GPU" if self.device == "cuda" else "CPU"
        there = ray.cluster_resources().get(resource, 0)
        if there < self.gpus:
            raise BackendUnavailable(
                f"{self.gpus} actors need a {resource} each, and this Ray has {there:g}: start it with more, "
                f"or plan for {max(int(there), 1)} GPUs"
            )
        rank_class = ray.remote(**{f"num_{resource.lower()}s": 1})(_Rank)
        mask = os.umask(0o077)
        os.umask(mask)
        self.actors = [rank_class.remote(mask) for _ in range(self.gpus)]
        self._join(ray)

    def _join(self, ray: Any) -> None:
        """Let the actors meet in a process group."""
        place = ray.get(self.actors[0].host.remote(), timeout=MEETING_S)
        joins = [
            actor.join.remote(rank, self.gpus, place, self.device, self.timeout_s, self.compare)
            for rank, actor in enumerate(self.actors)
        ]
        self.processes = ray.get(joins, timeout=MEETING_S)

    def close(self) -> None:
        """Kill the actors; stop Ray if we started it."""
        actors, session = self.actors, self.session
        self.actors, self.session = [], None
        _stop(actors, session)

    def close_after_failure(self) -> None:
        """As `close`; in a command the error is named meanwhile."""
        actors, session = self.actors, self.session
        self.actors, self.session = [], None
        closing.close(lambda: _stop(actors, session))

    # ---- run -----------------------------------------------------------------------------------------------
    def run(
        self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None
    ) -> list[Outcome]:
        """One outcome a rank. The first failure stops everything and is raised."""
        if not self.actors:
            self.start()
        import ray

        blob = _pickle(program, args)
        waiting = {a.run.remote(blob, record, capacity): r for r, a in enumerate(self.actors)}
        outcomes: dict[int, Outcome] = {}
        errors: list[GlassError] = []
        give_up = float("inf")
        stopped = StoppedRanks(self.processes, self.timeout_s)
        while waiting and time.monotonic() < give_up and stopped.error is None:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_S)
            stopped.look(waiting.values(), errors)
            for future in ready:
                error = self._collect(ray, future, waiting.pop(future), outcomes)
                if error is not None:
                    errors.append(error)
                    grace = (
                        GRACE_S if isinstance(error, RankStalled) else GRACE_S / 2
                    )  # other ranks may still report what they waited for
                    give_up = min(give_up, time.monotonic() + grace)
        if errors or stopped.error is not None:
            failure = stopped.error or self._verdict(errors, outcomes)
            self.close_after_failure()
            failure.__dict__["outcomes"] = list(outcomes.values())
            raise failure
        if lost := lost_message(outcome.unmatched for outcome in outcomes.values()):
            self.close_after_failure()
            raise lost
        return [outcomes[r] for r in range(self.gpus)]

    def _collect(self, ray: Any, future: Any, rank: int, outcomes: dict[int, Outcome]) -> GlassError | None:
        try:
            outcome = ray.get(future)
        except ray.exceptions.RayActorError:
            text = f"rank {rank} died: its actor's process {self.processes[rank][1]} is gone"
            return RankDied(text, rank=rank, operation="run")
        except Exception as problem:
            return RankDied(f"rank {rank} failed in Ray: {_first_line(problem)}", rank=rank, operation="run")
        outcomes[rank] = outcome
        return outcome.error

    def _verdict(self, errors: list[GlassError], outcomes: dict[int, Outcome]) -> GlassError:
        """The error to raise, from what the ranks report in the order in which they reported it.

        A rank that raised, or whose process is gone, is the cause. A rank that only lost the connection to a
        peer (its error holds a wait) knows no more than the peer: gloo closes the connections of a rank whose
        own time has run out, so where one rank says that it stalled, those that lost a connection were
        waiting as well. A cycle of waits is a deadlock.
        """
        stalls = [e for e in errors if isinstance(e, RankStalled)]
        causes = [e for e in errors if e not in stalls and "wait" not in e.__dict__]
        if causes or not stalls:
            return (causes or errors)[0]
        waits = [e.__dict__["wait"] for e in errors if "wait" in e.__dict__]
        finished = [r for r, o in outcomes.items() if o.error is None]
        if waits:
            verdict = describe_deadlock(sorted(waits, key=lambda w: w.rank), finished)
            if verdict.cycle or any(w.peer in finished for w in waits):
                return verdict
        return stalls[0]


class StoppedRanks:
    """Finds a rank whose process is stopped (SIGSTOP) for longer than an operation may wait.

    The others may be unable to say so: they compare their calls in a store that lies in rank 0's process, and
    a request there has no timeout of ours. Only processes of this machine can be looked at.

    Args:
        processes: of each rank: its machine, and its number there.
        timeout_s: how long an operation may wait.
    """

    def __init__(self, processes: Sequence[tuple[str, int]], timeout_s: float) -> None:
        here = socket.gethostname()
        self.processes = {rank: pid for rank, (machine, pid) in enumerate(processes) if machine == here}
        self.timeout_s = timeout_s
        self.since: dict[int, float] = {}
        self.error: RankStalled | None = None

    def look(self, silent: Iterable[int], errors: Sequence[GlassError]) -> None:
        """Set `error`, and end the stopped process, which Ray would wait for.

        Args:
            silent: the ranks that have not reported yet.
            errors: what other ranks have seen; one that waited in vain may have waited for the stopped one.
        """
        now = time.monotonic()
        for rank in silent:
            if rank not in self.processes or state_of(self.processes[rank]) != STOPPED:
                self.since.pop(rank, None)
                continue
            since = self.since.setdefault(rank, now)
            waited = [e for e in errors if "wait" in e.__dict__]
            if waited or now - since >= self.timeout_s:
                seen = waited[0] if waited else RankStalled(f"nothing happened for {self.timeout_s:g} s")
                self.error = stopped_rank(rank, self.processes[rank], seen)
                with contextlib.suppress(OSError):
                    os.kill(self.processes[rank], signal.SIGKILL)
                return


def _stop(actors: Sequence[Any], session: Session | None) -> None:
    """Kill actors, and stop a Ray of our own."""
    ray = loaded()
    if ray is None:
        return
    for actor in actors:
        with contextlib.suppress(Exception):
            ray.kill(actor)
    if session is not None:
        session.stop()


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as problem:
        rule = f"needs Ray, which cannot be imported ({problem}): pip install 'glasscluster[ray]'"
        raise InputError("backend", "ray", rule, ["threads"]) from None
    version = tuple(int(n) for n in ray.__version__.split(".")[:2])
    if version < OLDEST:
        raise BackendUnavailable(
            f"ray {ray.__version__} is too old (known remote-code holes): {'.'.join(map(str, OLDEST))} "
            f"or later is needed"
        )
    return ray


def _pickle(program: Callable[..., Any], args: tuple) -> bytes:
    """Serialise a program, and the collectives that were registered for it; by value where they are no part
    of this package: actors cannot import a script or a test.
    """
    from ray import cloudpickle

    algorithms = registered_elsewhere()
    functions = [program, *(steps for _, _, steps in algorithms)]
    named = {getattr(function, "__module__", "") for function in functions}
    modules = [sys.modules[name] for name in named if name in sys.modules]
    by_value = [m for m in modules if m.__name__.split(".")[0] not in ("glasscluster", "__main__")]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps((program, args, algorithms))
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip()
    return text.splitlines()[-1] if text else type(problem).__name__
