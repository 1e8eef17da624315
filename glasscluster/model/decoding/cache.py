"""Caches of keys and values: what generation keeps so that an earlier token is not computed again.

A token's keys and values depend on itself and on what came before it, never on what comes after. So when one
token is added, only its own are new (Pope et al., 2211.05102, section 2). A cache is handed to the blocks
where training hands them what backward keeps:

    training       keep.core(attention, q, k, v)                what stays, stays for backward
    generation     the same, with k and v of the new tokens     what stays, stays for the next token

    StaticCache         s_max slots a sequence, allocated at once
    PagedCache          blocks of k tokens from a pool, handed out as sequences grow
                        (Kwon et al., 2309.06180): waste < k a sequence
    SlidingWindowCache  the last W tokens (Beltagy et al., 2004.05150; Mistral, 2310.06825, section 2):
                        as big at any length

    Eq 3  2·L·n_kv·d·s·B·w bytes  L layers, n_kv key heads of d elements, s tokens of B sequences,
                                  w bytes an element
          L·(d_c + d_R)·s·B·w     latent attention: d_c elements that all heads' keys and values
                                  are made from, d_R rotary ones

GQA and MQA are a smaller n_kv. MLA keeps no key and no value: queries come down to the latents instead
(2405.04434, section 2.1.2). On t tensor-parallel ranks each caches the heads it has: n_kv / t, and one where
there are fewer; latents are whole on every rank.
But: one table for all layers; no sharing of equal prefixes, no swapping to the host, no quantised keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.kernels.cached_attention import NO_WINDOW
from glasscluster.model.kernels.scores import Scores
from glasscluster.model.parallel import KeepAll


class CacheFull(RuntimeError):
    """An error: the cache has no slot for a token."""


class Cache:
    """Keys and values of some sequences in a stage's layers; `lengths` tokens of each are there.

    `capacity`: most tokens of a sequence. `bytes` is counted from the tensors; `used_bytes` are the blocks
    that sequences have, and `filled_bytes` the tokens in them.
    """

    kind = ""
    latents: Tensor | None = None  # of the new tokens of the layer that runs: [b, 1, S, d_c + d_R]

    def __init__(
        self,
        stage: Any,
        sequences: int,
        capacity: int,
        block: int,
        blocks: int,
        each: int,
        window: int = NO_WINDOW,
    ) -> None:
        config: ModelConfig = stage.config
        self.config, self.capacity, self.block, self.window = config, capacity, block, window
        self.lengths = [0] * sequences
        self.table = [[-1] * each for _ in range(sequences)]
        like, parts = next(stage.parameters()), rows(config, stage.parts()[0].parallel.size)
        self.pools: dict[int, list[Tensor]] = {
            int(i): [like.new_zeros((blocks, heads, block, d), requires_grad=False) for heads, d in parts]
            for i in stage.layers
        }
        self.counts = [0] * sequences

    # ---- one forward ---------------------------------------------------------------------------------------
    def begin(self, counts: Sequence[int]) -> list[range]:
        """The next forward brings counts[b] new tokens of sequence b: makes room for them; their
        positions.
        """
        for b, (length, n) in enumerate(zip(self.lengths, counts, strict=True)):
            if length + n > self.capacity:
                raise CacheFull(
                    f"sequence {b} has {length} tokens and gets {n} more; the cache holds "
                    f"{self.capacity} of each"
                )
            if n:
                self.reserve(b, length + n)
        self.counts = list(counts)
        return [range(a, a + n) for a, n in zip(self.lengths, counts, strict=True)]

    def end(self) -> None:
        """All layers have seen the new tokens."""
        self.lengths = [a + n for a, n in zip(self.lengths, self.counts, strict=True)]
        self.counts = [0] * len(self.lengths)

    def reserve(self, sequence: int, tokens: int) -> None:
        """See to it that a sequence has slots for so many tokens."""

    def truncate(self, sequence: int, tokens: int) -> None:
        """Forget all but the first `tokens` of a sequence: what comes next is written over the rest (rejected
        draft tokens, 2211.17192).
        """
        if not 0 <= tokens <= self.lengths[sequence]:
            raise ValueError(
                f"sequence {sequence} has {self.lengths[sequence]} tokens, {tokens} of them cannot stay"
            )
        self.lengths[sequence] = tokens

    def free(self, sequence: int) -> None:
        """A sequence is done."""
        self.truncate(sequence, 0)

    def attend(
        self,
        block: Any,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        of: Sequence[int] | None = None,
    ) -> Tensor:
        """New queries [b, a, S, d] to the past and to themselves; then the new keys and values [b, n_kv, S,
        d] are remembered.

        of: the sequences whose rows these are; None: all.
        """
        pools, rows = self.pools[block.index], range(len(self.lengths)) if of is None else of
        table = [number for b in rows for number in self.table[b]]
        lengths, counts = [self.lengths[b] for b in rows], [self.counts[b] for b in rows]
        new = [k, v] if self.latents is None else [self.latents]
        if not any(lengths) and self.window >= q.shape[2]:
            out = attention(q, k, v)  # no past: a square, and padding behind a sequence is seen by nobody
        else:
            past = table, lengths, counts
            if self.latents is None:
                out = cached(block, q, (k, v), pools, past, self.window, self.capacity)
            else:
                both = new * 2, pools * 2, past, self.window, self.capacity
                out = unfold(block, cached(block, q, *both, shared=self.config.kv_latent))
        for pool, rows_ in zip(pools, new, strict=True):
            torch.ops.glasscluster.cache_write(pool, rows_, table, lengths, counts)
        return out

    # ---- what it holds -------------------------------------------------------------------------------------
    @property
    def bytes(self) -> int:
        """Bytes of the cache's tensors."""
        return sum(t.numel() * t.element_size() for pools in self.pools.values() for t in pools)

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in all layers of this stage."""
        return sum(t[0, :, 0].numel() * t.element_size() for pools in self.pools.values() for t in pools)

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that sequences hold."""
        return sum(block >= 0 for row in self.table for block in row) * self.block * self.token_bytes

    @property
    def filled_bytes(self) -> int:
        """Bytes of the tokens that are cached."""
        return sum(min(n, self.window) for n in self.lengths) * self.token_bytes


class StaticCache(Cache):
    """A slot for every token that may come."""

    kind = "static"

    def __init__(self, stage: Any, sequences: int, capacity: int) -> None:
        super().__init__(stage, sequences, capacity, capacity, sequences, 1)
        self.table = [[b] for b in range(sequences)]


class SlidingWindowCache(Cache):
    """The last `window` tokens of each sequence, in a ring: what is older nobody sees."""

    kind = "sliding"

    def __init__(self, stage: Any, sequences: int, capacity: int, window: int) -> None:
        super().__init__(stage, sequences, capacity, min(window, capacity), sequences, 1, window)
        self.table = [[b] for b in range(sequences)]

    def truncate(self, sequence: int, tokens: int) -> None:
        """ValueError where the ring has already written over what the next token would see."""
        kept_from, seen_from = self.lengths[sequence] - self.block, max(0, tokens - self.window + 1)
        if tokens and seen_from < kept_from:
            raise ValueError(
                f"tokens of sequence {sequence} before {kept_from} are gone; after {tokens} the next "
                f"sees {seen_from}"
            )
        super().truncate(sequence, tokens)


class PagedCache(Cache):
    """Blocks of `block` tokens from a pool of `blocks`; what a sequence no longer needs goes back."""

    kind = "paged"

    def __init__(
        self, stage: Any, sequences: int, capacity: int, block: int = 16, blocks: int | None = None
    ) -> None:
        each = -(-capacity // block)
        super().__init__(
            stage, sequences, capacity, block, sequences * each if blocks is None else blocks, each
        )
        self.unused = list(range(len(next(iter(self.pools.values()))[0])))[::-1]

    def reserve(self, sequence: int, tokens: int) -> None:
        """Take blocks from the pool; CacheFull where it is empty."""
        row = self.table[sequence]
        for place in range(-(-tokens // self.block)):
            if row[place] < 0:
                if not self.unused:
                    raise CacheFull(
                        f"sequence {sequence} needs a block for its token {place * self.block}, and none "
                        f"is left"
                    )
                row[place] = self.unused.pop()

    def truncate(self, sequence: int, tokens: int) -> None:
        """Blocks that have no token left go back to the pool."""
        super().truncate(sequence, tokens)
        row, keep = self.table[sequence], -(-tokens // self.block)
        self.unused += [block for block in row[keep:] if block >= 0]
        row[keep:] = [-1] * (len(row) - keep)


def rows(config: ModelConfig, tp: int = 1) -> list[tuple[int, int]]:
    """What is kept of a token in a layer, on one of tp ranks, as heads x elements: keys and values, or a
    latent and a rotary key.
    """
    if config.kv_latent:
        return [(1, config.kv_latent + config.rotary)]
    return [(max(1, config.key_heads // tp), config.head_dim)] * 2


KINDS = {"static": StaticCache, "paged": PagedCache, "sliding": SlidingWindowCache}


class Remember(KeepAll):
    """A block's `keep` in generation: its attention goes through the cache."""

    of: Sequence[int] | None = None  # sequences that are in the forward

    def __init__(self, cache: Cache, block: Any, positions: Sequence[Sequence[int]]) -> None:
        self.cache, self.block, self.positions = cache, block, positions

    def latent(self, c: Tensor, k_rotary: Tensor | None) -> None:
        """Remember the latents of the new tokens, from which keys and values are made."""
        c = c.unsqueeze(2)
        self.cache.latents = (c if k_rotary is None else torch.cat([c, k_rotary], -1)).transpose(1, 2)

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the new tokens to all cached ones, and the new ones are cached."""
        return self.cache.attend(self.block, attention, q, k, v, self.of)


class Within(KeepAll):
    """Attention within a window and without a cache: all tokens are there.

    The other side of SlidingWindowCache.
    """

    def __init__(self, window: int, block: Any) -> None:
        self.window, self.block = window, block

    def core(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all tokens, each to the last `window` of them."""
        b, s = q.shape[0], q.shape[2]
        nothing = tuple(x.new_empty(0, *x.shape[1:]) for x in (k, v))
        return cached(self.block, q, (k, v), nothing, ([], [0] * b, [s] * b), self.window, s)


def cached(
    block: Any,
    q: Tensor,
    new: Sequence[Tensor],
    pools: Sequence[Tensor],
    past: tuple[list[int], list[int], list[int]],
    window: int,
    tokens: int,
    shared: int = 0,
) -> Tensor:
    """A block's new queries [b, a, S, d] to what is cached and to the new keys and values.

    Args:
        past: the cache's table, how many tokens of each sequence it holds, and how many are new.
        window: tokens that the cache keeps; the layer's own window may show fewer.
        tokens: most that a sequence can have.
        shared: with latents, how many columns are the values (kernels/cached_attention.py).
    """
    how: Scores = block.scoring
    scale, bias = how.scale_of(q.shape[3]), by_distance(block, tokens)
    window = min(window, how.window or NO_WINDOW)
    seen = absorb(block, q) if shared else q
    scored = window, scale, bias, shared, how.cap, block.get("sink")
    return torch.ops.glasscluster.cached_attention(seen, *new, *pools, *past, *scored)


def absorb(block: Any, q: Tensor) -> Tensor:
    """Queries that come down to the latents: q_C W_UK beside q_R, [b, a, S, d + d_R] -> [b, a, S, d_c + d_R].

    q · (W_UK c + bias) = (q W_UK) · c + q · bias, and what is the same for all keys drops out of the softmax.
    """
    d = block.config.head_dim
    up = block.kv_up_weight.unflatten(0, (-1, 2 * d))[:, :d]  # [a, d, d_c]
    return torch.cat([torch.einsum("basd,adc->basc", q[..., :d], up), q[..., d:]], -1)


def unfold(block: Any, seen: Tensor) -> Tensor:
    """Values from averaged latents: sum P (W_UV c + bias) = W_UV (sum P c) + bias; [b, a, S, d_c] -> [b, a,
    S, d + d_R], zeros behind d.
    """
    d, bias = block.config.head_dim, block.get("kv_up_bias")
    out = torch.einsum("basc,adc->basd", seen, block.kv_up_weight.unflatten(0, (-1, 2 * d))[:, d:])
    if bias is not None:
        out = out + bias.unflatten(0, (-1, 2 * d))[:, None, d:]
    return torch.nn.functional.pad(out, (0, block.config.rotary))


def by_distance(block: Any, tokens: int) -> Tensor | None:
    """What a block adds to scores of queries that stand 0, 1, ... tokens - 1 behind their key:
    [a, tokens].
    """
    bias = block.score_bias(tokens)
    return None if bias is None else bias[:, tokens - 1 :]


@contextmanager
def keeping(stage: Any, made: Callable[[Any], KeepAll | None]) -> Iterator[None]:
    """Blocks keep what made(block) says while this lasts; None: what they did before."""
    before = {i: block.keep for i, block in stage.layers.items()}
    try:
        for block in stage.layers.values():
            block.keep = made(block) or block.keep
        yield
    finally:
        for i, block in stage.layers.items():
            block.keep = before[i]


# ---- theory ------------------------------------------------------------------------------------------------
def predict(config: ModelConfig, tokens: int, width: int, tp: int = 1, layers: int | None = None) -> int:
    """Eq 3: bytes of `tokens` (s·B, all sequences together) on one of tp ranks: 2·L·n_kv·d·s·B·w / t while t
    divides n_kv.

    Latents are whole on every rank: L·(d_c + d_R)·s·B·w.
    """
    each = 2 * max(1, config.key_heads // tp) * config.head_dim
    if config.kv_latent:
        each = config.kv_latent + config.rotary
    return (config.layers if layers is None else layers) * each * tokens * width


def predict_waste(lengths: Sequence[int], block: int | None = None) -> tuple[int, float]:
    """Eq 33: slots without a token, and their share: padded to the longest (1 - mean/max), or in blocks, at
    most block - 1 a sequence.
    """
    slots = [max(lengths) if block is None else -(-n // block) * block for n in lengths]
    return sum(slots) - sum(lengths), 1 - sum(lengths) / sum(slots)
