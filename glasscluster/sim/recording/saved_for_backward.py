"""Which tensors a forward keeps for backward, counted from the real thing: torch says what it saves, nobody
has to know why.

Every tensor that autograd saves passes a hook (torch.autograd.graph.saved_tensors_hooks). A dispatch mode
beside it remembers which operation made each storage, so a saved tensor is called after its maker: "mm 2" is
what the second mm gave. A storage is counted once however often it is saved. Shapes are enough: on `meta`
tensors a layer of any size is counted without computing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Saved:
    """One storage saved for backward: who made it, its bytes, the shape and type it was first saved with."""

    maker: str
    nbytes: int
    shape: tuple[int, ...]
    dtype: str


class _Makers(TorchDispatchMode):
    """A dispatch mode that remembers, for each storage, the operation that made it, numbered
    among its kind.
    """

    def __init__(self, known: dict[int, str]) -> None:
        super().__init__()
        self.made, self.seen, self.alive = dict(known), Counter[str](), list[Tensor]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        results = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        new = [t for t in results if t.untyped_storage()._cdata not in self.made]
        if new:
            name = func._schema.name.split("::")[-1]
            self.seen[name] += 1
            for place, t in enumerate(new):
                self.made[t.untyped_storage()._cdata] = f"{name} {self.seen[name]}" + (
                    f".{place}" if place else ""
                )
        self.alive += new  # so that no address is used twice
        return out


def saved_for_backward(
    forward: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor] = ()
) -> list[Saved]:
    """The tensors that forward(x) saves for backward, in the order in which autograd saves them.

    Parameters are left out, as they live anyway.
    """
    known = {p.untyped_storage()._cdata: "parameter" for p in parameters} | {
        x.untyped_storage()._cdata: "input"
    }
    makers, saved = _Makers(known), dict[int, Tensor]()

    def pack(t: Tensor) -> Tensor:
        saved.setdefault(t.untyped_storage()._cdata, t)
        return t

    with makers, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward(x)
    return [
        Saved(
            makers.made.get(at, "unknown"),
            t.untyped_storage().nbytes(),
            tuple(t.shape),
            str(t.dtype).removeprefix("torch."),
        )
        for at, t in saved.items()
        if makers.made.get(at) != "parameter"
    ]
