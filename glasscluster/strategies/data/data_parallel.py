"""Data parallelism: every rank has the whole model and its own part of the batch.

Follows PyTorch DDP (Li et al., 2006.15704). Symbols: Ψ parameters, N ranks, m micro-batches.

    backward of the last micro-batch (the others only add up: `no_sync`)        communication
      gradients of a bucket are all ready (hook), and those before it launched  ──►  all-reduce(bucket), asynchronously
      ...                                                                       ... while earlier layers still compute
    finish: wait for all buckets; divide once by the global token count; every rank takes the same step

    buckets     filled with the parameters from the last one back, the first bucket small, so that communication starts early
    the order   is a guess until the first backward has shown in which order gradients really become ready: then the buckets
                are filled anew, on all ranks in the order of rank 0 (torch's reducer does the same before its second forward)
    launches    go strictly in bucket order: two ranks that launched in different orders would add up different buckets

A parameter without a gradient leaves its bucket for ever incomplete: an error that names it, unless it counts as zero.
Also the base of ZeRO (zero.py): the optimizer works on the slice of each unit that a rank owns, here all of it.
But: torch starts with one bucket of everything and fills it in the order of modules; its unused parameters are found by
walking the graph before backward, ours are what is missing after it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glasscluster.base.errors import GradientMissing
from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Shard
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.work import Work
from glasscluster.strategies.data.offload import HostOptimizer
from glasscluster.strategies.layout.units import Member, Unit, by_bucket
from glasscluster.strategies.plan import Plan

Pieces = dict[str, list[Tensor]]  # parameter name -> what a rank owns of it and of its optimizer state


class DataParallel:
    """Owns parameters, gradients and optimizer state of one rank's stage. Stage 0 of the ZeRO ladder.

    `comm` joins the ranks that share out what is sharded; with hybrid sharding `replicas` joins those that hold the same shard.
    `expert_comm` joins those that hold the same experts, where experts are spread over ranks.
    """

    zero = 0

    def __init__(
        self,
        gpu: GPU,
        comm: Communicator,
        stage: GPTStage,
        plan: Plan,
        optimizer: Optimizer,
        apart: set[str],
        counts: Callable[[str, Shard | None], bool],
        replicas: Communicator | None = None,
        expert_comm: Communicator | None = None,
    ) -> None:
        self.gpu, self.comm, self.stage, self.plan, self.optimizer = gpu, comm, stage, plan, optimizer
        self.apart, self.counts, self.replicas, self.expert_comm = apart, counts, replicas, expert_comm
        self.host = HostOptimizer(gpu, optimizer) if plan.offload == "optimizer" else None
        self.syncing, self.last, self.launched, self.parameters_used = False, False, 0, True
        rebuilds = not self.zero and comm.size > 1 and plan.unused == "error"
        self.arrived: list[str] | None = [] if rebuilds else None  # names, as their gradients became ready in the first step
        self.missing: set[nn.Parameter] = set()
        self.in_flight: list[tuple[Unit, Work]] = []
        self.own(self.make_units())
        self.place()
        self.hooks = [p.register_post_accumulate_grad_hook(self.gradient_ready) for p in self.member_of]

    def close(self) -> None:
        """Let go of the parameters: a hook on a tensor is a cycle that the garbage collector does not see."""
        for hook in self.hooks:
            hook.remove()

    # ---- where things live -----------------------------------------------------------------------------------
    def make_units(self, order: list[str] | None = None) -> list[Unit]:
        """Buckets; unpadded, because an all-reduce needs no equal chunks."""
        return by_bucket(self.stage, self.plan.bucket_limits, self.plan.padding, self.apart, order)

    def comm_of(self, unit: Unit) -> Communicator:
        """The ranks that a unit is reduced over, and sharded over."""
        return self.expert_comm if unit.experts and self.expert_comm is not None else self.comm

    def own(self, units: list[Unit]) -> None:
        """These are the units from now on."""
        self.units = units
        self.unit_of: dict[nn.Parameter, Unit] = {m.parameter: u for u in units for m in u.members}
        self.member_of: dict[nn.Parameter, Member] = {m.parameter: m for u in units for m in u.members}
        for member in self.member_of.values():
            member.counts = self.counts(member.name, member.shard)

    def place(self) -> None:
        """Allocate gradients and optimizer state and tell the memory ledger what everything is."""
        remember = self.gpu.memory.register
        for unit in self.units:
            remember(unit.flat, "parameters", unit.name)
            self.place_gradients(unit)
        self.state = [self.make_state(u) for u in self.units]

    def place_gradients(self, unit: Unit) -> None:
        """A persistent flat gradient; every `p.grad` is a view of it, unless it is wider than the parameters."""
        unit.grad = self.gpu.memory.register(self.zeros(unit, unit.padded), "gradients", unit.name)
        for m in unit.members if not self.plan.wide_gradients else ():
            m.parameter.grad = unit.grad[m.start : m.stop].view(m.parameter.shape)

    def zeros(self, unit: Unit, elements: int) -> Tensor:
        """Room for gradients: like the parameters, or in fp32."""
        return unit.flat.new_zeros(elements, dtype=torch.float32 if self.plan.wide_gradients else None)

    def make_state(self, unit: Unit) -> dict[str, Tensor | list[Tensor]]:
        """Adam's moments, and the fp32 master copy when parameters are narrower, of the owned slice."""
        mine = self.parameter_slice(unit)
        dtype = torch.float32 if self.plan.has_master else mine.dtype
        if self.host is not None:
            return self.host.make_state(mine, dtype, unit.name)
        moments = [torch.zeros_like(mine, dtype=dtype) for _ in range(self.optimizer.moments)]
        state: dict[str, Tensor | list[Tensor]] = {"moments": moments}
        if self.plan.has_master:
            state["master"] = mine.to(dtype, copy=True)
        for tensor in _tensors(state):
            self.gpu.memory.register(tensor, "optimizer", unit.name)
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

    # ---- the order of the buckets ----------------------------------------------------------------------------
    def step_begins(self) -> None:
        """Before the second step: fill the buckets anew, in the order in which rank 0's gradients became ready."""
        if not self.arrived:
            return
        names = list(self.stage.full_names())
        order = torch.tensor([names.index(n) for n in self.arrived], device=self.gpu.device)
        with self.gpu.unrecorded(), self.gpu.memory.rearranging():
            self.comm.broadcast(order)
            mine = self.arrived if order.device.type == "meta" else [names[i] for i in order.tolist()]
            self.rebuild(mine)
        self.arrived = None

    def rebuild(self, order: list[str]) -> None:
        """Parameters and optimizer state move to new buckets; gradients are zero at this point."""
        kept: dict[str, list[Tensor]] = {}
        for unit, state in zip(self.units, self.state, strict=True):
            kept |= {m.name: [t[m.start : m.stop].clone() for t in _tensors(state)] for m in unit.members}
        self.own(self.make_units(order))
        self.place()
        for unit, state in zip(self.units, self.state, strict=True):
            for m in unit.members:
                for tensor, values in zip(_tensors(state), kept[m.name], strict=True):
                    tensor[m.start : m.stop] = values

    # ---- snapshots -------------------------------------------------------------------------------------------
    def pieces(self) -> Pieces:
        """Views of what this rank owns: each parameter's part and the same part of its optimizer state."""
        found: Pieces = {}
        for unit, state in zip(self.units, self.state, strict=True):
            owned = self.owned(unit)
            for m in unit.members:
                a, b = max(m.start, owned.start) - owned.start, min(m.stop, owned.stop) - owned.start
                if a < b:
                    found[m.name] = [t[a:b] for t in (self.parameter_slice(unit), *_tensors(state))]
        return found

    def keep(self) -> Pieces:
        """Copies of them, by name: buckets may be filled anew in between."""
        return {name: [t.clone() for t in tensors] for name, tensors in self.pieces().items()}

    def restore(self, kept: Pieces) -> None:
        """They are as they were kept, and parameters are up to date everywhere; gradients start at zero."""
        for name, tensors in self.pieces().items():
            for tensor, values in zip(tensors, kept[name], strict=True):
                tensor.copy_(values)
        for unit in self.units:
            self.updated(unit)
        self.step_ends()

    # ---- backward --------------------------------------------------------------------------------------------
    def input_gradient_begins(self) -> None:
        """The first part of a backward in two starts: no gradient comes here before the second."""

    def input_gradient_ends(self) -> None:
        """It is over."""

    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before each micro-batch's backward; the last one's gradients are reduced as they become ready.

        In the second part of a backward in two, gradients come and the parameters are not used.
        """
        self.last = self.syncing = last
        self.parameters_used = parameters_used
        self.launched, self.missing = 0, set(self.member_of)
        for unit in self.units:
            unit.waiting = len(unit.members)

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """Hook: this parameter's gradient of the micro-batch has been added; one of another type than ours is added here."""
        if self.plan.wide_gradients and parameter.grad is not None:
            unit, member = self.unit_of[parameter], self.member_of[parameter]
            assert unit.grad is not None
            unit.grad[member.start : member.stop].add_(parameter.grad.view(-1))
            parameter.grad = None
        self.unit_of[parameter].waiting -= 1
        self.missing.discard(parameter)
        if self.last and self.arrived is not None:
            self.arrived.append(self.member_of[parameter].name)
        while self.syncing and self.plan.overlap and self.launched < len(self.units) and not self.units[self.launched].waiting:
            self.launch_next()

    def launch_next(self) -> None:
        """Reduce the next unit in order."""
        self.launched += 1
        self.launch(self.units[self.launched - 1])

    def launch(self, unit: Unit) -> None:
        """Start reducing a unit."""
        assert unit.grad is not None
        work = self.comm_of(unit).all_reduce(unit.grad, algorithm=self.plan.algorithm, async_op=True, purpose="gradients", label=unit.name)
        self.in_flight.append((unit, work))

    def backward_ends(self) -> None:
        """Called after each micro-batch's backward: what is left to reduce."""
        if self.syncing and self.missing and self.plan.data_ranks > 1 and self.plan.unused == "error":
            names = [m.name for p, m in self.member_of.items() if p in self.missing]
            raise GradientMissing(
                f"rank {self.gpu.rank}: no gradient for {', '.join(names)}. Was it used in forward? The other ranks would wait for its "
                f"bucket; with `--unused zero` it counts as zero",
                rank=self.gpu.rank,
                operation=names[0],
            )
        while self.syncing and self.launched < len(self.units):
            self.launch_next()

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

    def overflowed(self) -> Tensor:
        """1.0 if one of the owned gradients is not finite, else 0.0, not yet agreed over ranks: a scalar."""
        found = torch.zeros((), dtype=torch.float32, device=self.gpu.device)
        for unit in self.units:
            found += (~torch.isfinite(self.gradient_slice(unit)).all()).float()
        return found.clamp_(max=1.0)

    def step(self, scale: Tensor, number: int) -> None:
        """Scale the owned gradients, update the owned parameters, then bring parameters up to date everywhere.

        With master weights the scaling is done in fp32: a 16-bit gradient divided by the loss scale would vanish.
        """
        coming: list[tuple[Unit, Work]] = []
        for unit, state in zip(self.units, self.state, strict=True):
            parameters, gradients = self.parameter_slice(unit), self.gradient_slice(unit)
            if self.host is not None:
                coming.append((unit, self.host.update(parameters, gradients, scale, state, number, unit.name)))
                continue
            master = state.get("master")
            wide = gradients.to(master.dtype) if isinstance(master, Tensor) else gradients
            wide.mul_(scale.to(wide.dtype))
            if isinstance(master, Tensor):
                self.optimizer.update(master, wide, state["moments"], number)  # type: ignore[arg-type]
                parameters.copy_(master)
            else:
                self.optimizer.update(parameters, wide, state["moments"], number)  # type: ignore[arg-type]
            self.updated(unit)
        for unit, work in coming:
            work.wait()
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


def _tensors(state: dict[str, Tensor | list[Tensor]]) -> list[Tensor]:
    return [t for value in state.values() for t in (value if isinstance(value, list) else [value])]


# ---- theory --------------------------------------------------------------------------------------------------------


def predict(parameters: int, dp: int, width: int) -> dict[str, float]:
    """Traffic of a step (Eq 9, Eq 16) and state bytes per rank (Eq 15), without ZeRO; its time is Eq 14, in overlap.py.

    parameters: Ψ of one data-parallel rank; width: bytes of a gradient element.
    Returns gradient bytes sent by all dp ranks together: 2 (N-1) Ψ width.
    """
    return {"gradients_bytes_total": 2 * (dp - 1) * parameters * width, "parameters_bytes_total": 0}
