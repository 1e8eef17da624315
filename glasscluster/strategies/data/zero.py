"""ZeRO: data parallelism without keeping everything N times.

Follows Rajbhandari et al., "ZeRO" (1910.02054), sections 5 and 7. Symbols: Ψ parameters, N ranks, m micro-batches.

    stage   sharded over N            sent per rank and step (elements x (N-1)/N)
    1       optimizer                 Ψ reduce-scatter + Ψ all-gather of new parameters
    2       + gradients               mΨ reduce-scatter (each micro-batch) + Ψ all-gather
    3       + parameters              m (Ψ all-gather forward + Ψ all-gather backward + Ψ reduce-scatter)

Two dials trade memory for traffic. `accumulate whole` (stages 2, 3): gradients of a step's micro-batches are added up whole
and reduce-scattered once: Ψ for mΨ. `no-reshard` (stage 3): parameters stay whole between forward and backward: mΨ for 2mΨ.

Hybrid sharding (MiCS, Zhang et al. 2205.00119; FSDP, 2304.11277 section 3.2.2): N is a group of K neighbours, R = dp/K such
groups hold the same. Everything above stays inside a group; then the finished shards are summed over the groups:

    group 0   rank 0 [a] ─ rank 1 [b]     reduce-scatter and all-gather inside, where links are fast
                    │             │
    group 1   rank 2 [a] ─ rank 3 [b]     one all-reduce of Ψ/K across: 2(R-1)/R Ψ/K sent per rank, once a step

Each stage changes one thing of the one before; stage 3 is in zero3.py. Units are padded to N equal shards.
But: no quantised gathers. The second hop starts when a unit's shard is complete (stages 2, 3) or after backward (stage 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.data.data_parallel import DataParallel
from glasscluster.strategies.layout.units import Unit, by_bucket
from glasscluster.strategies.plan import Plan


class Zero1(DataParallel):
    """Optimizer state sharded: reduce-scatter gradients, update a slice, all-gather parameters."""

    zero = 1

    def make_units(self, order: list[str] | None = None) -> list[Unit]:
        """Buckets padded to N equal shards, in the guessed order: rebuilding them would move shards between ranks."""
        return by_bucket(self.stage, self.plan.bucket_limits, self.plan.padding, self.apart)

    def place(self) -> None:
        """Nothing is under way yet."""
        self.crossing: list[Work] = []
        self.gathering: list[Work] = []
        super().place()

    def owned(self, unit: Unit) -> slice:
        """1/N of the unit."""
        comm = self.comm_of(unit)
        return unit.slice_of(comm.rank, comm.size)

    def launch(self, unit: Unit) -> None:
        """Reduce-scatter instead of all-reduce."""
        self.in_flight.append((unit, self._reduce_scatter(unit)))

    def _reduce_scatter(self, unit: Unit) -> Work:
        assert unit.grad is not None
        comm = self.comm_of(unit)
        return comm.reduce_scatter(unit.grad, algorithm=self.plan.algorithm, async_op=True, purpose="gradients", label=unit.name)

    def cross(self, unit: Unit) -> None:
        """The second hop of hybrid sharding: sum a finished shard over the groups. Experts have one hop, over all that hold them."""
        if self.replicas is not None and not unit.experts:
            shard = self.gradient_slice(unit)
            work = self.replicas.all_reduce(shard, algorithm=self.plan.algorithm, async_op=True, purpose="gradients", label=unit.name)
            self.crossing.append(work)

    def finish(self) -> None:
        """Every gradient is reduced, inside the group and across, when this returns."""
        complete = [unit for unit, _ in self.in_flight]
        super().finish()
        for unit in complete:
            self.cross(unit)
        for work in self.crossing:
            work.wait()
        self.crossing.clear()

    def updated(self, unit: Unit) -> None:
        """Send the new slice to everybody."""
        comm = self.comm_of(unit)
        work = comm.all_gather(unit.flat, algorithm=self.plan.algorithm, async_op=True, purpose="parameters", label=unit.name)
        self.gathering.append(work)

    def wait_for_parameters(self) -> None:
        """The next step needs every parameter."""
        for work in self.gathering:
            work.wait()
        self.gathering.clear()

    def step_ends(self) -> None:
        """Gather parameters; gradients start at zero."""
        self.wait_for_parameters()
        super().step_ends()

    def whole(self, unit: Unit, owned: Tensor) -> Tensor:
        """Gather the owned slices."""
        full = torch.empty_like(unit.flat, device=owned.device)
        full[self.owned(unit)] = owned
        self.comm_of(unit).all_gather(full)
        return full


class Zero2(Zero1):
    """Gradients sharded too: a bucket lives from its first gradient until its reduce-scatter has landed.

    That is once a micro-batch, or with `accumulate whole` once a step, while every micro-batch is added to it.
    """

    zero = 2

    def place_gradients(self, unit: Unit) -> None:
        """Only the owned shard persists; autograd allocates each gradient and the hook moves it to the bucket."""
        each = unit.padded // self.comm_of(unit).size
        unit.gradient_shard = self.gpu.memory.register(self.zeros(unit, each), "gradients", unit.name)
        unit.grad = None

    def gradient_slice(self, unit: Unit) -> Tensor:
        """The shard."""
        assert unit.gradient_shard is not None
        return unit.gradient_shard

    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Every micro-batch's gradients are reduced, unless they are added up whole."""
        super().backward_begins(last, parameters_used)
        self.syncing = last or self.plan.accumulate == "sharded"

    def bucket_of(self, unit: Unit) -> Tensor:
        """The unit's whole gradient. It counts as gradients while micro-batches are added up in it, else it is a buffer."""
        if unit.grad is None:
            category = "gradients" if self.plan.accumulate == "whole" else "buffers"
            unit.grad = self.gpu.memory.register(self.zeros(unit, unit.padded), category, f"{unit.name} gradients")
        return unit.grad

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """Move the gradient into its bucket."""
        unit, member = self.unit_of[parameter], self.member_of[parameter]
        place = self.bucket_of(unit)[member.start : member.stop]
        assert parameter.grad is not None
        if self.plan.accumulate == "whole":
            place.add_(parameter.grad.view(-1))
        else:
            place.copy_(parameter.grad.view(-1))
        parameter.grad = None
        super().gradient_ready(parameter)

    def launch(self, unit: Unit) -> None:
        """One bucket in flight at a time: the one before is added to its shard and freed first."""
        self.settle()
        self.bucket_of(unit)
        self.in_flight.append((unit, self._reduce_scatter(unit)))

    def settle(self) -> None:
        """Wait, add the owned slice to the shard, free the bucket; a step's last one goes across the groups."""
        for unit, work in self.in_flight:
            work.wait()
            assert unit.grad is not None
            self.gradient_slice(unit).add_(unit.grad[self.owned(unit)])
            unit.grad = None
            if self.last:
                self.cross(unit)
        self.in_flight.clear()

    def backward_ends(self) -> None:
        """Buckets do not outlive a micro-batch, unless gradients are added up whole."""
        super().backward_ends()
        self.settle()

    def step_ends(self) -> None:
        """Gather parameters; shards start at zero."""
        self.wait_for_parameters()
        for unit in self.units:
            self.gradient_slice(unit).zero_()


# ---- theory --------------------------------------------------------------------------------------------------------


def predict_traffic(plan: Plan, padded: int, width: int, experts: bool = False) -> dict[str, int]:
    """Eq 16: bytes sent by all dp·cp ranks together; `padded` = Ψ with each unit's padding to N, `width` bytes of a parameter.

    `experts`: of a rank's experts, which dp·cp/ep ranks hold and shard.

    Inside the R groups of N: R(N-1)Ψ for each time Ψ is reduced or gathered. Across: N all-reduces of Ψ/N over R (Eq 9).
    """
    n, m = plan.expert_replicas if experts else plan.shards, plan.micro_batches
    groups = plan.data_ranks // n
    once = groups * (n - 1) * padded
    reduced = m if plan.zero >= 2 and plan.accumulate == "sharded" else 1
    gathered = (2 * m if plan.reshard else m) if plan.zero == 3 else 1
    across, w = 0 if experts else 2 * (groups - 1) * padded, plan.gradient_width
    return {"gradients": reduced * once * w, "parameters": gathered * once * width, "across": across * w}


def predict_state(stage: int, padded: int, shards: int, width: int, gradient_width: int, state_width: int) -> dict[str, float]:
    """Eq 15: bytes per rank of parameters, gradients and optimizer state; widths are bytes of each per parameter."""
    return {
        "parameters": padded * width / (shards if stage >= 3 else 1),
        "gradients": padded * gradient_width / (shards if stage >= 2 else 1),
        "optimizer": padded * state_width / (shards if stage >= 1 else 1),
    }
