"""The `ray` backend: one actor a GPU, a gloo (or NCCL) group inside the actors.

Ray starts processes and tells us when one dies; messages go over the group. A Ray cluster that is already
connected is used and left alone. Otherwise a local one is started: no dashboard, token authentication as Ray
has it (on), and everything it set in the environment put back when it stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from glasscluster.base.errors import BackendUnavailable, GlassError, InputError, RankDied, RankStalled
from glasscluster.sim.ranks.backends.process_group import lost_message, make_wire, one_thread
from glasscluster.sim.ranks.deadlock import describe_deadlock
from glasscluster.sim.ranks.gpu import Outcome, run_rank

OLDEST = (2, 59)
MEETING_S = 120.0  # seconds for the actors to start and to join their group
GRACE_S = 2.0  # seconds after a stall in which other ranks may report what they waited for


class _Rank:
    """What runs inside an actor."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")

        one_thread()
        self.wire: Any = None
        self.store: Any = None

    def host(self) -> tuple[str, int]:
        """On rank 0: open the meeting point of the process group on a free port of this node; returns its
        address.
        """
        import ray.util
        import torch.distributed as dist

        address = ray.util.get_node_ip_address()
        self.store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self.store.port

    def join(
        self,
        rank: int,
        size: int,
        address: str,
        port: int,
        device: str,
        timeout_s: float,
        local: bool,
        compare: bool,
    ) -> int:
        """Enter the process group; returns this process's id."""
        import torch
        import torch.distributed as dist

        if local:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = self.store or dist.TCPStore(address, port, is_master=False)
        backend = "nccl" if device == "cuda" else "gloo"
        # gloo's messages carry the operation's timeout themselves, so meeting may take longer: an actor may
        # still be importing torch
        meeting_s = timeout_s if device == "cuda" else max(timeout_s, MEETING_S)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=meeting_s)
        )
        place = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
        self.wire = make_wire(rank, size, place, timeout_s, compare)
        return os.getpid()

    def run(self, blob: bytes, record: bool, capacity: float | None) -> Outcome:
        """Run the program as this rank."""
        from ray import cloudpickle

        program, args = cloudpickle.loads(blob)
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
        self.pids: list[int] = []
        self._ours = False
        self._environment: dict[str, str] = {}

    # ---- start and stop ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start Ray if need be, the actors, and their group."""
        ray = _import_ray()
        if not ray.is_initialized():
            self._environment = dict(os.environ)
            self._ours = True
            address = {} if os.environ.get("RAY_ADDRESS") else {"_node_ip_address": "127.0.0.1"}
            cpus = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(self.gpus, 1)}
            with _quiet():
                ray.init(
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    configure_logging=False,
                    **address,
                    **cpus,
                )
        resources = {"num_gpus": 1} if self.device == "cuda" else {"num_cpus": 1}
        try:
            rank_class = ray.remote(**resources)(_Rank)
            self.actors = [rank_class.remote() for _ in range(self.gpus)]
            host, port = ray.get(self.actors[0].host.remote(), timeout=MEETING_S)
            joins = [
                a.join.remote(
                    r, self.gpus, host, port, self.device, self.timeout_s, host == "127.0.0.1", self.compare
                )
                for r, a in enumerate(self.actors)
            ]
            self.pids = ray.get(joins, timeout=MEETING_S)
        except Exception as problem:
            self.close()
            raise BackendUnavailable(
                f"Ray could not start {self.gpus} actors on {self.device}: {_first_line(problem)}"
            ) from None

    def close(self) -> None:
        """Kill the actors; stop Ray and restore the environment if we started it."""
        ray = sys.modules.get("ray")
        if ray is None:
            return
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self.actors = []
        if self._ours:
            with _quiet():
                ray.shutdown()
            self._ours = False
            for key in set(os.environ) - set(self._environment):
                del os.environ[key]
            os.environ.update(self._environment)

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
        while waiting and time.monotonic() < give_up:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=0.5)
            for future in ready:
                error = self._collect(ray, future, waiting.pop(future), outcomes)
                if error is not None:
                    errors.append(error)
                    grace = (
                        GRACE_S if isinstance(error, RankStalled) else GRACE_S / 2
                    )  # other ranks may still report what they waited for
                    give_up = min(give_up, time.monotonic() + grace)
        if errors:
            self.close()
            failure = self._verdict(errors, outcomes)
            failure.__dict__["outcomes"] = list(outcomes.values())
            raise failure
        if lost := lost_message(outcome.unmatched for outcome in outcomes.values()):
            self.close()
            raise lost
        return [outcomes[r] for r in range(self.gpus)]

    def _collect(self, ray: Any, future: Any, rank: int, outcomes: dict[int, Outcome]) -> GlassError | None:
        try:
            outcome = ray.get(future)
        except ray.exceptions.RayActorError:
            return RankDied(f"rank {rank} died: its actor's process is gone", rank=rank, operation="run")
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
    """Serialise a program by value where it is no part of this package: actors cannot import a script or a
    test.
    """
    from ray import cloudpickle

    module = sys.modules.get(getattr(program, "__module__", ""), None)
    by_value = module is not None and module.__name__.split(".")[0] not in ("glasscluster", "__main__")
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps((program, args))
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip()
    return text.splitlines()[-1] if text else type(problem).__name__


@contextlib.contextmanager
def _quiet():
    """Ray prints hints on standard error while starting; standard output must stay ours."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
