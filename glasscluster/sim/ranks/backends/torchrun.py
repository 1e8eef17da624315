"""The `torchrun` backend: this process is one rank of those that `torchrun` started.

    torchrun --nproc-per-node 4 -m glasscluster train --dp 4

Rank 0 gathers every rank's outcome and continues with checks and reports; every other rank only has its own.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from glasscluster.base.errors import BackendUnavailable, GlassError, InputError, RankDied
from glasscluster.sim.ranks.backends.process_group import GroupWire, lost_message, make_wire, with_one_thread
from glasscluster.sim.ranks.backends.siblings import Siblings, end_with_the_agent
from glasscluster.sim.ranks.gpu import Outcome, run_rank

JOB_STORE_WAIT = timedelta(minutes=5)  # for the last rank to start, which may still be importing torch

_clusters = itertools.count()  # of this process; the same on every rank


@functools.cache
def _job_store() -> dist.Store:
    """The store of the job that torchrun's environment describes; it stays while this process lives."""
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=JOB_STORE_WAIT))
    except (ValueError, RuntimeError) as problem:  # a variable is missing, or nobody listens there
        text = str(problem).splitlines()[0]
        raise BackendUnavailable(f"this process cannot meet the other ranks of its job: {text}") from None
    return store


class TorchrunBackend:
    """Joins the group that torchrun's environment describes."""

    name = "torchrun"

    def __init__(
        self, gpus: int, *, device: str = "cpu", timeout_s: float = 60.0, compare: bool = True, **_: Any
    ) -> None:
        if "WORLD_SIZE" not in os.environ:
            raise BackendUnavailable(
                "the torchrun backend needs torchrun: torchrun --nproc-per-node N -m glasscluster train ..."
            )
        world = int(os.environ["WORLD_SIZE"])
        if world != gpus:
            raise InputError(
                "world size", world, f"the plan needs dp x tp x pp x cp = {gpus} processes", [gpus]
            )
        self.gpus, self.device, self.timeout_s, self.compare = gpus, device, timeout_s, compare
        self.rank = int(os.environ["RANK"])
        self.wire: GroupWire | None = None
        self.siblings: Siblings | None = None
        self._owns_group = False  # a group that the caller's script has made stays the caller's

    def start(self) -> GroupWire:
        """Enter the process group (objects travel over gloo also where tensors travel over NCCL)."""
        with_one_thread()
        cuda = self.device == "cuda"
        if cuda:
            if not torch.cuda.is_available():
                raise BackendUnavailable("--device cuda: torch sees no GPU here; use --device cpu")
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # The store outlives a cluster, so each one has keys of its own. Without them a rank of the second
        # cluster may read the address at which another rank listened for the first one.
        keys = f"cluster {next(_clusters)}"
        if dist.is_initialized():
            store = dist.PrefixStore(keys, dist.distributed_c10d._get_default_store())
        else:
            store = dist.PrefixStore(keys, _job_store())
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.gpus,
                timeout=timedelta(seconds=self.timeout_s),
            )
            self._owns_group = True
            if "TORCHELASTIC_RUN_ID" in os.environ:  # else nobody knows who started this process
                end_with_the_agent()
        self.siblings = Siblings(store, self.rank, self.gpus)
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        return make_wire(self.rank, self.gpus, device, self.timeout_s, store if self.compare else None)

    def run(
        self, program: Callable[..., Any], args: tuple, record: bool, capacity: float | None
    ) -> list[Outcome]:
        """Run the program; returns every rank's outcome on rank 0, and only its own on other ranks."""
        self.wire = self.wire or self.start()
        assert self.siblings is not None
        outcome = None
        try:
            self.siblings.start_run()
            outcome = run_rank(self.wire, program, args, record, capacity)
            if outcome.error is not None:
                raise outcome.error
            gathered = self._gather(outcome)
        except GlassError as error:
            cause = self.siblings.find_cause(error)
            cause.__dict__["outcomes"] = [outcome] if outcome is not None else []
            raise cause from None
        except KeyboardInterrupt:  # the agent's SIGTERM, if another rank is dead
            if killed := self.siblings.find_killed():
                raise killed from None
            raise
        if gathered is None:
            return [outcome]
        if lost := lost_message(one.unmatched for one in gathered):
            raise lost
        return gathered

    def _gather(self, outcome: Outcome) -> list[Any] | None:
        """Every rank's outcome, on rank 0; None on others."""
        gathered: list[Any] | None = [None] * self.gpus if self.rank == 0 else None
        try:
            dist.gather_object(outcome, gathered, dst=0)
        except Exception as problem:
            text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            error = RankDied(f"the ranks' results did not come together: {text}", operation="gather")
            error.__dict__["wait"] = None  # which rank is the cause, others know
            raise error from None
        return gathered

    def close(self) -> None:
        """Leave the group."""
        if self.siblings is not None:
            self.siblings.leave_word()
            self.siblings = None
        if self.wire is not None:
            self.wire.close()
            self.wire = None
            if self._owns_group and dist.is_initialized():
                dist.destroy_process_group()
