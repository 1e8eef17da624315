"""New tokens of several sequences side by side in one forward, without padding: what continuous batching and
speculation need.

Follows Orca's selective batching (Yu et al., OSDI'22, section 3). A prompt of 40 tokens and three sequences
that get one each: 43 tokens:

    embedding, norms, matrices, head  [1, 43, H]: they look at a token at a time,
                                      whose it is makes no difference
    attention, through the cache      [4, a, 40, d]: each sequence to its own past;
                                      rows behind counts[b] are never looked at

A sequence without a new token is not in the forward at all; padded (generate.py) its column would be computed
and dropped.
But: where counts differ, unpacking copies queries, keys and values; a kernel for ragged rows would not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from glasscluster.model.decoding.cache import Cache, Remember, keeping
from glasscluster.model.gpt import GPTStage


class Packing:
    """Where the counts[b] new tokens of each sequence lie: one after the other, or as a row of their
    sequence.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.each = counts[0] if len(set(counts)) == 1 else 0  # as many of each: nothing has to be moved
        widest, places, first = max(counts), [], 0
        for n in counts:  # padding points at token 0; what comes of it is not taken back
            places.append([*range(first, first + n), *[0] * (widest - n)])
            first += n
        self.places = torch.tensor(places, device=device)  # [b, S] -> token
        back = [(b, i) for b, n in enumerate(counts) for i in range(n)]
        # token -> b, S
        self.rows, self.columns = (torch.tensor(axis, device=device) for axis in zip(*back, strict=True))

    def unpack(self, x: Tensor) -> Tensor:
        """[1, a, tokens, d] -> [b, a, S, d]."""
        if self.each:
            return x[0].unflatten(1, (-1, self.each)).transpose(0, 1)
        return x[0][:, self.places].transpose(0, 1)

    def pack(self, x: Tensor) -> Tensor:
        """[b, a, S, d] -> [1, a, tokens, d]."""
        if self.each:
            return x.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        return x.transpose(1, 2)[self.rows, self.columns].transpose(0, 1).unsqueeze(0)


class Packed(Remember):
    """A block's `keep`: unpacks for the cache what the block has side by side.

    Positions are those of all tokens in a row.
    """

    def __init__(
        self, cache: Cache, block: Any, positions: Sequence[int], packing: Packing, of: Sequence[int]
    ) -> None:
        super().__init__(cache, block, [positions])
        self.packing, self.of = packing, of

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the new tokens, each to the past of its own sequence: [1, a, tokens, d]."""
        unpack = self.packing.unpack
        if self.cache.latents is not None:
            self.cache.latents = unpack(self.cache.latents)
        return self.packing.pack(super().core(attention, unpack(q), unpack(k), unpack(v)))


@torch.no_grad()
def forward_packed(stage: GPTStage, cache: Cache, new: Sequence[Sequence[int]], last: int = 1) -> Tensor:
    """Take in new[b], the next tokens of sequence b of the cache (none: it pauses).

    Returns logits [sequences with new tokens · last, V]: after each of the `last` tokens of each of them.
    CacheFull: no room.
    """
    assert stage.embedding is not None
    assert stage.head is not None
    counts, device = [len(tokens) for tokens in new], next(stage.parameters()).device
    positions, of = [p for row in cache.begin(counts) for p in row], [b for b, n in enumerate(counts) if n]
    packing = Packing([counts[b] for b in of], device)
    x = stage.embedding(
        torch.tensor([[t for tokens in new for t in tokens]], device=device), positions=[positions]
    )
    with keeping(stage, lambda block: Packed(cache, block, positions, packing, of)):
        for block in stage.layers.values():
            x = block(x)
    cache.end()
    ends = accumulate(counts[b] for b in of)
    taken = [token for end in ends for token in range(end - last, end)]
    return stage.head.logits(x[:, torch.tensor(taken, device=device)])[0]
