"""Units: parameters laid end to end in one flat buffer, which is what data parallelism reduces, shards and
gathers.

A unit is a bucket (DDP, ZeRO-1, ZeRO-2) or a module (ZeRO-3). Its parameters and gradients are views of flat
tensors, so a collective moves one contiguous piece and an elementwise optimizer works on any slice of it.

A unit also says what everybody asks about it, whatever the ZeRO stage: over which ranks it is reduced
(`comm`), which of its elements this rank updates (`owned`), and where those elements' parameters and reduced
gradients are.

    flat               [ parameters of every member, end to end | padding ]
    grad               [ their gradients, while they are whole            ]
    owned                        [ this rank's part ]
    owned_parameters             [ a view of flat, or with ZeRO-3 a tensor of its own ]
    owned_gradient               [ a view of grad, or with ZeRO-2 and 3 a tensor of its own ]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import Shard, Unsharded, WholeExperts
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.strategies.layout.padding import Padding

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

TIED = "embedding.token"  # what embedding and head share: on two stages, its copies are units of their own


@dataclass
class Member:
    """One parameter of a unit and where it lies. `counts`: this rank adds it to the gradient norm."""

    name: str
    parameter: nn.Parameter
    shard: Shard | None
    start: int
    stop: int
    counts: bool = True


@dataclass(eq=False)
class Unit:
    """`flat` [padded] holds the parameters; `grad` [padded] their gradients while they are whole.

    `comm`: the ranks that it is reduced over and, with ZeRO, shared out over. `owned`: the elements that this
    rank updates. `waiting`: members whose gradient of the current micro-batch has not come yet.
    """

    name: str
    members: list[Member]
    numel: int
    padded: int
    flat: Tensor
    layer: int = -1
    experts: bool = False  # reduced over fewer ranks than the rest: those that hold the same experts
    waiting: int = 0
    grad: Tensor | None = None
    comm: Communicator = field(init=False, repr=False)
    owned: slice = field(init=False)
    owned_parameters: Tensor = field(init=False, repr=False)
    owned_gradient: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.owned, self.owned_parameters = slice(0, self.padded), self.flat

    @property
    def nbytes(self) -> int:
        """Bytes of the whole flat buffer."""
        return self.padded * self.flat.element_size()


def counted(unit: Unit) -> list[slice]:
    """Where, inside the owned slice, gradients count towards the norm (contiguous pieces, relative to it)."""
    owned, pieces = unit.owned, list[slice]()
    for m in unit.members:
        a, b = max(m.start, owned.start), min(m.stop, owned.stop)
        if m.counts and a < b:
            if pieces and pieces[-1].stop == a - owned.start:
                pieces[-1] = slice(pieces[-1].start, b - owned.start)
            else:
                pieces.append(slice(a - owned.start, b - owned.start))
    return pieces


def owned_members(unit: Unit) -> list[tuple[Member, slice]]:
    """The members that this rank owns a part of, and where in the owned slice that part is."""
    first, last = unit.owned.start, unit.owned.stop
    parts = [(m, max(m.start, first) - first, min(m.stop, last) - first) for m in unit.members]
    return [(m, slice(a, b)) for m, a, b in parts if a < b]


def make_unit(
    name: str,
    named: Iterable[tuple[str, nn.Parameter, Shard | None]],
    pad_to: int,
    layer: int = -1,
    experts: bool = False,
) -> Unit:
    """Lay parameters end to end, padded to a multiple of `pad_to`; the parameters become views."""
    entries = list(named)
    numel = sum(p.numel() for _, p, _ in entries)
    padded = -(-numel // pad_to) * pad_to
    flat = torch.zeros(padded, dtype=entries[0][1].dtype, device=entries[0][1].device)
    members, at = [], 0
    for full_name, p, shard in entries:
        members.append(Member(full_name, p, shard, at, at + p.numel()))
        flat[at : at + p.numel()].copy_(p.detach().view(-1))
        p.data = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()
    return Unit(name, members, numel, padded, flat, layer, experts)


def cut(sizes: Sequence[int], first: int, others: int) -> list[list[int]]:
    """Consecutive indices, a bucket closed when it has reached its size: `first` bytes the first one,
    `others` the rest.
    """
    buckets: list[list[int]] = [[]]
    size = 0
    for index, nbytes in enumerate(sizes):
        if buckets[-1] and size >= (first if len(buckets) == 1 else others):
            buckets.append([])
            size = 0
        buckets[-1].append(index)
        size += nbytes
    return [b for b in buckets if b]


def by_bucket(
    stage: GPTStage,
    limits: tuple[int, int],
    padding: Padding,
    separate: set[str],
    order: Sequence[str] | None = None,
) -> list[Unit]:
    """Units in the order gradients become ready; `limits`: bytes of the first bucket and of the others.

    `order` is that order by name; without it, it is guessed: the parameters backwards. Parameters named in
    `separate` (a tied table with copies on two stages) get a unit of their own; experts never share a bucket
    with what is not spread over ranks.
    """
    names = stage.full_names()
    order = list(order or reversed(names))
    pad_to, units = padding.shards, []
    for experts in (False, True):
        together = [n for n in order if n not in separate and padding.is_expert(names[n][1]) == experts]
        kind, pad = ("expert bucket", padding.experts or 1) if experts else ("bucket", pad_to)
        for i, bucket in enumerate(
            cut([names[n][0].numel() * names[n][0].element_size() for n in together], *limits)
        ):
            units.append(
                make_unit(
                    f"{kind} {i}", [(together[j], *names[together[j]]) for j in bucket], pad, experts=experts
                )
            )
    return as_they_complete(
        units + [make_unit(name, [(name, *names[name])], pad_to) for name in sorted(separate)], order
    )


def by_module(stage: GPTStage, padding: Padding, separate: set[str]) -> list[Unit]:
    """One unit a block (and one for its experts), and one root unit for everything that is not a block
    (embedding, final norm, head).
    """
    names, pad_to = stage.full_names(), padding.shards
    root = [(n, p, s) for n, (p, s) in names.items() if not n.startswith("layers.") and n not in separate]
    units = [make_unit("root", root, pad_to)] if root else []
    units += [make_unit(n, [(n, *names[n])], pad_to) for n in sorted(separate)]
    for block in stage.layers.values():
        inside = [(n, *names[n]) for n in names if n.startswith(f"layers.{block.index}.")]
        units.append(
            make_unit(
                f"layer {block.index}",
                [x for x in inside if not padding.is_expert(x[2])],
                pad_to,
                block.index,
            )
        )
        experts = [x for x in inside if padding.is_expert(x[2])]
        if experts:
            units.append(
                make_unit(f"experts of layer {block.index}", experts, padding.experts or 1, experts=True)
            )
    return as_they_complete(units, list(reversed(names)))


def as_they_complete(units: list[Unit], order: Sequence[str]) -> list[Unit]:
    """Sorted by when the last of a unit's gradients is ready: the order in which all ranks launch."""
    place = {name: i for i, name in enumerate(order)}
    return sorted(units, key=lambda u: max(place[m.name] for m in u.members))


# ---- from shapes alone -------------------------------------------------------------------------------------


class _Cut(Unsharded):
    """Stands where tensor and expert parallelism would, so that a stage's parameters have a rank's shapes."""

    def __init__(self, plan: Plan) -> None:
        self.size, self.rank = plan.tp, 0
        if plan.ep > 1:
            self.experts = WholeExperts()
            self.experts.size = plan.ep


def units_of(plan: Plan, model: ModelConfig, stage: int) -> list[Unit]:
    """The units that every rank of a pipeline stage has, on the meta device: shapes without data."""
    first, last = stage == 0, stage == plan.stages - 1
    layers, meta = plan.stage_layers(model)[stage], torch.device("meta")
    shape = GPTStage(model, layers, first, last, _Cut(plan), dtype=plan.dtype, device=meta)
    separate = {TIED} if model.tied and plan.stages > 1 and (first or last) else set()
    if plan.zero == 3:
        return by_module(shape, plan.padding, separate)
    return by_bucket(shape, plan.bucket_limits, plan.padding, separate)
