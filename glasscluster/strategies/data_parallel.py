"""Data parallelism: every rank has the whole model and its own part of the batch.

Follows PyTorch DDP (Li et al., 2006.15704). Symbols: Ψ parameters, N ranks, m micro-batches.

    backward of the last micro-batch                     communication
      gradients of a bucket are all ready (hook)   ──►     all-reduce(bucket), asynchronously
      ...                                                  ... while earlier layers still compute
    finish: wait for all buckets; divide once by the global token count; every rank takes the same step

Also the base of ZeRO (zero.py): the optimizer works on the slice of each unit that a rank owns, here all of it.
But: buckets are by size from the last parameter on; torch's rebuilding of their order is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.sim.communicator import Communicator, Work
from glasscluster.sim.gpu import GPU
from glasscluster.strategies.plan import Plan
from glasscluster.strategies.units import Unit, by_bucket


class DataParallel:
    """Owns parameters, gradients and optimizer state of one rank's stage. Stage 0 of the ZeRO ladder."""

    zero = 0

    def __init__(
        self,
        gpu: GPU,
        comm: Communicator,
        stage: GPTStage,
        plan: Plan,
        optimizer: Optimizer,
        apart: set[str],
        counts: Callable[[str, bool], bool],
    ) -> None:
        self.gpu, self.comm, self.stage, self.plan, self.optimizer = gpu, comm, stage, plan, optimizer
        self.units = self.make_units(apart)
        self.unit_of = {m.parameter: u for u in self.units for m in u.members}
        for unit in self.units:
            for member in unit.members:
                member.counts = counts(member.name, member.shard is not None)
        self.syncing = False
        self.in_flight: list[tuple[Unit, Work]] = []
        self.place()
        for parameter in self.unit_of:
            parameter.register_post_accumulate_grad_hook(self.gradient_ready)

    # ---- where things live -----------------------------------------------------------------------------------
    def make_units(self, apart: set[str]) -> list[Unit]:
        """Buckets; unpadded, because an all-reduce needs no equal chunks."""
        return by_bucket(self.stage, self.plan.bucket, 1, apart)

    def place(self) -> None:
        """Allocate gradients and optimizer state and tell the memory ledger what everything is."""
        remember = self.gpu.memory.register
        for unit in self.units:
            remember(unit.flat, "parameters", unit.name)
            self.place_gradients(unit)
        self.state = [self.make_state(u) for u in self.units]

    def place_gradients(self, unit: Unit) -> None:
        """A persistent flat gradient; every `p.grad` is a view of it."""
        unit.grad = self.gpu.memory.register(torch.zeros_like(unit.flat), "gradients", unit.name)
        for m in unit.members:
            m.parameter.grad = unit.grad[m.start : m.stop].view(m.parameter.shape)

    def make_state(self, unit: Unit) -> dict[str, Tensor | list[Tensor]]:
        """Adam's moments, and the fp32 master copy when parameters are narrower, of the owned slice."""
        mine = self.parameter_slice(unit)
        dtype = torch.float32 if self.plan.has_master else mine.dtype
        moments = [torch.zeros_like(mine, dtype=dtype) for _ in range(self.optimizer.moments)]
        state: dict[str, Tensor | list[Tensor]] = {"moments": moments}
        if self.plan.has_master:
            state["master"] = mine.to(dtype, copy=True)
        for tensor in [*moments, *([state["master"]] if "master" in state else [])]:
            self.gpu.memory.register(tensor, "optimizer", unit.name)  # type: ignore[arg-type]
        return state

    def owned(self, unit: Unit) -> slice:
        """Elements of the flat buffer that this rank updates."""
        return slice(0, unit.padded)

    def parameter_slice(self, unit: Unit) -> Tensor:
        """The owned parameters."""
        return unit.flat[self.owned(unit)]

    def gradient_slice(self, unit: Unit) -> Tensor:
        """The owned gradients, reduced, after `finish`."""
        assert unit.grad is not None
        return unit.grad[self.owned(unit)]

    # ---- backward --------------------------------------------------------------------------------------------
    def backward_begins(self, last: bool) -> None:
        """Called before each micro-batch's backward; the last one's gradients are reduced as they become ready."""
        self.syncing = last and self.comm.size > 1
        for unit in self.units:
            unit.waiting = len(unit.members)

    def gradient_ready(self, parameter: Tensor) -> None:
        """Hook: this parameter's gradient of the micro-batch has been added."""
        unit = self.unit_of[parameter]  # type: ignore[index]
        unit.waiting -= 1
        if self.syncing and self.plan.overlap and unit.waiting == 0:
            self.launch(unit)

    def launch(self, unit: Unit) -> None:
        """Start reducing a unit."""
        assert unit.grad is not None
        work = self.comm.all_reduce(unit.grad, algorithm=self.plan.algorithm, async_op=True, purpose="gradients", label=unit.name)
        self.in_flight.append((unit, work))

    def backward_ends(self) -> None:
        """Called after each micro-batch's backward."""
        if self.syncing and not self.plan.overlap:
            for unit in self.units:
                self.launch(unit)

    def finish(self) -> None:
        """Every gradient is reduced when this returns."""
        for _, work in self.in_flight:
            work.wait()
        self.in_flight.clear()

    # ---- the step --------------------------------------------------------------------------------------------
    def norm_squared(self) -> Tensor:
        """Sum of squares of the gradients that this rank counts, not yet reduced over ranks: a scalar."""
        wide = torch.float64 if self.plan.precision == "fp64" else torch.float32
        total = torch.zeros((), dtype=wide, device=self.gpu.device)
        for unit in self.units:
            mine = self.gradient_slice(unit)
            for piece in unit.counted(self.owned(unit)):
                norm = torch.linalg.vector_norm(mine[piece], dtype=wide)
                total.addcmul_(norm, norm)
        return total

    def step(self, scale: Tensor, number: int) -> None:
        """Scale the owned gradients, update the owned parameters, then bring parameters up to date everywhere."""
        for unit, state in zip(self.units, self.state, strict=True):
            parameters, gradients = self.parameter_slice(unit), self.gradient_slice(unit)
            gradients.mul_(scale.to(gradients.dtype))
            master = state.get("master")
            if isinstance(master, Tensor):
                self.optimizer.update(master, gradients.to(master.dtype), state["moments"], number)  # type: ignore[arg-type]
                parameters.copy_(master)
            else:
                self.optimizer.update(parameters, gradients, state["moments"], number)  # type: ignore[arg-type]
            self.updated(unit)
        self.step_ends()

    def updated(self, unit: Unit) -> None:
        """A unit's owned slice has new values. Stage 0 owns everything: nothing to send."""

    def step_ends(self) -> None:
        """Ready for the next step: gradients start at zero."""
        for unit in self.units:
            assert unit.grad is not None
            unit.grad.zero_()

    # ---- for the check ---------------------------------------------------------------------------------------
    def whole(self, unit: Unit, owned: Tensor) -> Tensor:
        """The whole flat buffer from every rank's owned slice (unrecorded; used by the check only)."""
        return owned.clone()

    def gradients(self) -> dict[str, Tensor]:
        """Reduced gradients by full parameter name, whole along dp."""
        return self._named(self.gradient_slice)

    def weights(self) -> dict[str, Tensor]:
        """Parameters by full name, whole along dp."""
        return self._named(self.parameter_slice)

    def _named(self, piece: Callable[[Unit], Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        with self.gpu.unrecorded():
            for unit in self.units:
                flat = self.whole(unit, piece(unit))
                out |= {m.name: flat[m.start : m.stop].view(m.parameter.shape).clone() for m in unit.members}
        return out


# ---- theory --------------------------------------------------------------------------------------------------------


def predict(parameters: int, dp: int, width: int) -> dict[str, float]:
    """Traffic of a step (F9, F16) and state bytes per rank (F15), without ZeRO.

    parameters: Ψ of one data-parallel rank; width: bytes of a gradient element.
    Returns gradient bytes sent by all dp ranks together: 2 (N-1) Ψ width.
    """
    return {"gradients_bytes_total": 2 * (dp - 1) * parameters * width, "parameters_bytes_total": 0}
