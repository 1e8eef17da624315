"""Dropout whose mask depends on what is dropped, not on who drops it or when.

Every element's random number is a hash of (seed, step, sequence, layer, place, index), made by
kernels/dropout.py. So
  - any layout drops the same elements as one device: the key is the sequence's number in the global batch;
  - a rank that has some heads or some tokens draws its part of the whole mask, without drawing the rest;
  - recomputation in backward draws the same mask again; nobody stores the state of a generator.

But: on the embedding only where it has a norm (BERT); with flash attention none on the attention
probabilities, which it never writes down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from glasscluster.model.kernels.dropout import Dropout, key_of

PLACES = ("attention probabilities", "attention output", "mlp output", "embedding")


@dataclass(frozen=True)
class Draw:
    """What a micro-batch holds besides its tokens: which sequences of which step, and where documents end.

    documents: for each sequence the lengths of its documents, which add up to it (packing.py); None: each is
    one.
    """

    seed: int = 0
    step: int = 0
    sequences: tuple[int, ...] = ()  # numbers in the global batch
    documents: tuple[tuple[int, ...], ...] | None = None

    def keys(self, layer: int, place: str) -> list[int]:
        """One 64-bit key a sequence."""
        return key_of((self.seed, self.step, layer, PLACES.index(place)), self.sequences)


def dropout(
    x: Tensor,
    p: float,
    draw: Draw | None,
    layer: int,
    place: str,
    spans: Sequence[int] = (),
) -> Tensor:
    """x [b, ...] with elements dropped; x itself when p is 0.

    spans: which elements of a sequence's whole x holds: first, how many, first, how many, ...; none: all.
    """
    if not p:
        return x
    assert draw is not None, "dropout needs to know which sequences it sees"
    assert len(draw.sequences) == len(x), (draw, x.shape)
    return Dropout.apply(x.contiguous(), draw.keys(layer, place), p, list(spans) or [0, x.shape[1:].numel()])
