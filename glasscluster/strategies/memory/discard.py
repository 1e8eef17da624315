"""Output discarding: what a cheap operation gave is not kept for the product behind it, but computed again.

Follows Megatron-LM's `CheckpointWithoutOutput` (megatron core, tensor_parallel/random.py), which it uses for
norms, the activation of experts and the projections up from latents. `make` is a norm and `use` the branch
behind it; or `make` makes queries, keys and values, and `use` is attention:

    forward     x ──[ make ]── y ──[ use ]── z     kept: x, and what `use` keeps, but y only by name
    backward    dz ─► use asks for y: make(x) runs again ─► dy ─► make's own backward, which needs x ─► dx

A checkpoint (recompute.py) runs again all that lies between its input and what is asked for. Here `use` keeps
what it keeps, only y is missing; and a norm's x costs nothing more, because its backward keeps it anyway.
torch.autograd.graph.saved_tensors_hooks does the bookkeeping: a tensor of y's storage that `use` saves is
packed as its place, and made anew when it is unpacked. Megatron makes y again when dz arrives; here it is when
it is first asked for, and it lives until it was asked for as often as it was saved.

But: what `make` keeps beside its input (a norm's statistics) stays kept. A `use` that saves copies of y (a
gathered sequence) has nothing to discard: then nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from glasscluster.model.config import ModelConfig

AGAIN = "computed again"  # what the memory ledger calls what was discarded and is there again


class Discarded:
    """What make(given) gave, which backward computes again.

    It is in `made` while forward uses it. `waiting` counts the tensors that were saved of it and were not
    asked for yet.

    Args:
        make: gives a tensor, or a tuple of tensors.
        given: what it is given, a tensor or a tuple of tensors.
        again: the context in which it runs again.
        call: tells the memory ledger the name of a tensor.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        given: Any,
        again: Callable[[], AbstractContextManager[None]],
        call: Callable[[Tensor, str], None],
    ) -> None:
        self.make, self.again, self.call = make, again, call
        # without the graph, which lives by what it saved itself
        self.given = tuple(x.detach() for x in given) if isinstance(given, tuple) else given.detach()
        self.made: Any = make(given)
        self.places = {x.untyped_storage()._cdata: place for place, x in enumerate(tensors(self.made))}
        self.remade: tuple[Tensor, ...] = ()
        self.waiting = 0

    def used(self, use: Callable[[Any], Tensor]) -> Tensor:
        """use(made), which saves nothing of `made` for backward. It may not change it in place."""
        before = [x._version for x in tensors(self.made)]
        with saved_tensors_hooks(self.pack, self.unpack):
            result = use(self.made)
        assert before == [x._version for x in tensors(self.made)], "what is made again was changed in place"
        self.made, self.places = None, {}
        return result

    def pack(self, x: Tensor) -> Any:
        """What is saved in the place of a tensor: if it is of `made`, of which one and how it lies in it."""
        place = self.places.get(x.untyped_storage()._cdata)
        if place is None:
            return x
        self.waiting += 1
        return place, x.size(), x.stride(), x.storage_offset()

    @torch.no_grad()
    def unpack(self, saved: Any) -> Tensor:
        """The tensor that was saved."""
        if isinstance(saved, Tensor):
            return saved
        if not self.remade:
            with self.again():
                self.remade = tensors(self.make(self.given))
            for remade in self.remade:
                self.call(remade, AGAIN)
        place, *how = saved
        x = self.remade[place].as_strided(*how)
        self.waiting -= 1
        if not self.waiting:
            self.remade = ()
        return x


def tensors(made: Any) -> tuple[Tensor, ...]:
    """A tuple of tensors as it is, a tensor as a tuple of one."""
    return made if isinstance(made, tuple) else (made,)


# ---- theory ------------------------------------------------------------------------------------------------


def norms_discarded(model: ModelConfig, sequence_parallel: bool) -> int:
    """How many norms of a layer can discard what they gave: the one before attention, the one before the MLP.

    With sequence parallelism the three products of separate Q, K and V, and those of latents, keep the tokens
    that were gathered from all ranks, and nobody keeps what the norm before attention gave.
    """
    gathered = sequence_parallel and (model.qkv == "separate" or model.kv_latent > 0)
    return 1 if gathered else 2


def predict_norms(
    model: ModelConfig, layers: int, sequences: int, width: int, pieces: int, sequence_parallel: bool
) -> int:
    """Eq 29: bytes that norms discard on a rank, for some layers and a micro-batch, w·sbh each.

    Args:
        model: sizes of the model.
        layers: how many layers the rank has.
        sequences: b, sequences of a micro-batch.
        width: w, bytes of an element.
        pieces: ranks that tokens are cut over where the norms are: cp, times t with sequence parallelism.
        sequence_parallel: whether tokens are gathered over t before a layer's matrices.
    """
    one = width * sequences * model.seq * model.hidden // pieces
    return one * norms_discarded(model, sequence_parallel) * layers


def predict_heads(model: ModelConfig, sequences: int, width: int, tp: int, cp: int) -> int:
    """Bytes of queries, keys and values that latent attention discards on a rank, of a layer and micro-batch."""
    columns = model.heads * (2 * model.score_dim + model.value_dim(cp)) // tp
    return width * sequences * (model.seq // cp) * columns


def predict_latents(model: ModelConfig, sequences: int, width: int, cp: int) -> int:
    """Bytes that a rank keeps to make queries, keys and values from, of a layer and micro-batch.

    They are what the way down gave, and its input where queries have no latent.
    """
    return width * sequences * (model.seq // cp) * (model.down + (0 if model.q_latent else model.hidden))


def predict_activations(model: ModelConfig, assignments: int, width: int) -> int:
    """Bytes that experts' activations discard on all ranks: w·f for each assignment of a token to an expert."""
    return width * model.expert_width * assignments
