"""Attention of few new tokens to many old ones, whose keys and values lie in blocks: for every cache.

Follows the paged attention of vLLM (Kwon et al., 2309.06180, section 4.1). A pool holds blocks of k tokens; a
sequence's table says which blocks are its own. Every layout of a cache is a table:

    static     one block of s_max tokens a sequence               table  [[0], [1], [2]]
    paged      blocks of k tokens, handed out as they fill         table  [[5, 0], [2, 7], [1]]
    sliding    one block of W tokens a sequence, used as a ring    table  [[0], [1], [2]]
               position p lies in slot p mod W

    per sequence and tile of new queries        new tokens have positions start, start + 1, ...
      K = keys of the past | keys of the new      queries see positions p with  query - W < p <= query
                                                  (without a window W has no limit)
      P = softmax(Q K^T scale, hidden where not seen);  O = P V     (cap and sink: scores.py)

The past is read before the new keys are written: in a ring they take the places of the oldest, which the
first of several new queries still sees. Registered as two library operators, so a recorder sees one kernel
each; their FLOPs and bytes are registered, proven by a counting run in tests. Shapes: q, out [b, a, S, d];
new k, v [b, n_kv, S, d]; pools [blocks, n_kv, k, d].
But: forward only (nothing is trained through a cache); sequences one after the other, and the keys of a tile
at once (no split of long contexts over processors, as flash-decoding has).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import Library

from glasscluster.base import operator_costs
from glasscluster.model.kernels.flash.tiles import TILE, Meter, no_meter, tiles
from glasscluster.model.kernels.precision import accumulation_dtype
from glasscluster.model.kernels.scores import soft_cap

NO_WINDOW = 1 << 62


def visible(
    queries: tuple[int, int],
    keys: tuple[int, int],
    window: int = NO_WINDOW,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The one mask: which keys each query sees, itself and what came before it within the window.

    queries, keys: positions from, to; result [queries, keys], True where seen.
    """
    i, j = torch.arange(*queries, device=device)[:, None], torch.arange(*keys, device=device)[None, :]
    return (j <= i) & (j > i - window)


def rows_of(table: Sequence[int], sequences: int) -> list[list[int]]:
    """A flat table as one list of blocks a sequence; -1 is no block."""
    each = len(table) // sequences
    return [[block for block in table[b * each : (b + 1) * each] if block >= 0] for b in range(sequences)]


def _past(pool: Tensor, blocks: Sequence[int], slots: int, first: int, start: int) -> Tensor:
    """Positions first ... start - 1 of a sequence: [n_kv, start - first, d]; p lies in slot p mod slots."""
    size = pool.shape[2]
    runs, p = [], first
    while p < start:  # a run ends with its block, or with the ring
        slot = p % slots
        n = min(size - slot % size, start - p)
        runs.append(pool[blocks[slot // size], :, slot % size : slot % size + n])
        p += n
    return torch.cat(runs, 1) if runs else pool.new_empty(pool.shape[1], 0, pool.shape[3])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    table: Sequence[int],
    starts: Sequence[int],
    counts: Sequence[int],
    window: int,
    scale: float,
    bias: Tensor | None = None,
    shared: int = 0,
    meter: Meter = no_meter,
    cap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Output [b, a, S, d of v]: rows beyond counts[b] are padding and come out as zeros.

    bias [a, n]: what is added to scores, by how far the key is behind its query. shared: the values are the
    first so many columns of the keys, read once (latent attention); v and its pool are not looked at.
    cap, sink [a]: see scores.py.
    """
    heads, of = k.shape[1], accumulation_dtype(q.dtype)
    slots = len(table) // len(q) * k_pool.shape[2]
    out = q.new_zeros(*q.shape[:3], shared or v.shape[3])
    for b, blocks in enumerate(rows_of(table, len(q))):
        start = starts[b]
        for r0, r1 in tiles(counts[b], TILE):
            first, last = max(0, start + r0 - window + 1), start + r1
            q_t = q[b, :, r0:r1]
            new = slice(max(0, first - start), r1)
            keys, *rest = (
                torch.cat([_past(pool, blocks, slots, first, start), x[b, :, new]], 1)
                for pool, x in ((k_pool, k), (v_pool, v))[: 1 if shared else 2]
            )
            values = rest[0] if rest else keys[..., :shared]
            for read in (q_t, keys, *rest):
                meter("read", read.numel() * read.element_size())
            scores = (q_t.to(of) * scale).reshape(heads, -1, q.shape[3]) @ keys.to(of).transpose(-1, -2)
            if cap:
                soft_cap(scores, cap)
            if bias is not None:
                of_queries = torch.arange(start + r0, last, device=q.device)
                far = of_queries[:, None] - torch.arange(first, last, device=q.device)
                scores += bias[:, far.clamp_(min=0)].view(scores.shape)
                meter("read", bias[:, : last - first].numel() * bias.element_size())
            if r1 - r0 > 1:
                seen = visible((start + r0, last), (first, last), window, q.device)
                by_head = scores.view(heads, -1, *seen.shape)
                scores = by_head.masked_fill(~seen, float("-inf")).view(scores.shape)
            if sink is not None:
                scores = torch.cat([scores, _beside(scores, sink)], -1)
                meter("read", sink.numel() * sink.element_size())
            p = scores.softmax(-1)[..., : last - first]
            tile = (p @ values.to(of)).view(q.shape[1], r1 - r0, -1)
            out[b, :, r0:r1] = tile.to(q.dtype)
            meter("write", tile.numel() * q.element_size())
    return out


def _beside(scores: Tensor, sink: Tensor) -> Tensor:
    """Each head's sink [a], as one more key's scores [heads of keys, rows of a group, 1]."""
    heads, rows = scores.shape[:2]
    each = sink.to(scores.dtype).view(heads, -1, 1)
    return each.expand(heads, each.shape[1], rows // each.shape[1]).reshape(heads, rows, 1)


def write(
    pool: Tensor,
    new: Tensor,
    table: Sequence[int],
    starts: Sequence[int],
    counts: Sequence[int],
    meter: Meter = no_meter,
) -> None:
    """Put new keys or values [b, n_kv, S, d] into their slots; of more than a ring holds the last."""
    size, slots = pool.shape[2], len(table) // len(new) * pool.shape[2]
    for b, blocks in enumerate(rows_of(table, len(new))):
        i = max(0, counts[b] - slots)
        while i < counts[b]:
            slot = (starts[b] + i) % slots
            n = min(size - slot % size, counts[b] - i)
            piece = new[b, :, i : i + n]
            pool[blocks[slot // size], :, slot % size : slot % size + n].copy_(piece)
            meter("read", piece.numel() * piece.element_size())
            meter("write", piece.numel() * piece.element_size())
            i += n


# ---- the two operators -------------------------------------------------------------------------------------
_library = Library("glasscluster", "FRAGMENT")
_library.define(
    "cached_attention(Tensor q, Tensor k, Tensor v, Tensor k_pool, Tensor v_pool, int[] table, int[] starts, "
    "int[] counts, int window, float scale, Tensor? bias, int shared, float cap=0., Tensor? sink=None) "
    "-> Tensor"
)
_library.define("cache_write(Tensor(a!) pool, Tensor new, int[] table, int[] starts, int[] counts) -> ()")


def _attend(*args) -> Tensor:
    """The arguments of the operator, of which the last may be missing."""
    return attend(*args[:12], **dict(zip(("cap", "sink"), args[12:], strict=False)))


def _meta_attention(q: Tensor, k: Tensor, v: Tensor, *rest) -> Tensor:
    return q.new_empty(*q.shape[:3], rest[8] or v.shape[3])


for _device in ("CPU", "CUDA"):
    _library.impl("cached_attention", _attend, _device)
    _library.impl("cache_write", lambda *args: write(*args), _device)
_library.impl("cached_attention", _meta_attention, "Meta")
_library.impl("cache_write", lambda *args: None, "Meta")


# ---- what they cost ----------------------------------------------------------------------------------------
def pairs(start: int, count: int, window: int = NO_WINDOW) -> tuple[int, int]:
    """Query-key pairs that are computed, and keys that are read, for new tokens of a sequence, by tiles."""
    spans = [(r1 - r0, start + r1 - max(0, start + r0 - window + 1)) for r0, r1 in tiles(count, TILE)]
    return sum(rows * keys for rows, keys in spans), sum(keys for _, keys in spans)


def _attention_flops(args, out) -> int:
    q, v, starts, counts, window, shared = args[0], args[2], args[6], args[7], args[8], args[11]
    each = q.shape[3] + (shared or v.shape[3])
    return 2 * q.shape[1] * each * sum(pairs(s, n, window)[0] for s, n in zip(starts, counts, strict=True))


def _attention_bytes(args, out) -> int:
    q, k, v = args[0], args[1], args[2]
    starts, counts, window, bias, shared = args[6], args[7], args[8], args[10], args[11]
    keys = sum(pairs(s, n, window)[1] for s, n in zip(starts, counts, strict=True))
    of_queries = q.shape[1] * sum(counts) * (q.shape[3] + (shared or v.shape[3]))
    of_keys = k.shape[1] * keys * (k.shape[3] + (0 if shared else v.shape[3]))
    of_bias = 0 if bias is None else q.shape[1] * keys * bias.element_size()
    sink = args[13] if len(args) > 13 else None
    runs = sum(len(tiles(n, TILE)) for n in counts)
    of_sink = 0 if sink is None else runs * sink.numel() * sink.element_size()
    return q.element_size() * (of_queries + of_keys) + of_bias + of_sink


def _write_bytes(args, out) -> int:
    pool, new, table, _, counts = args
    slots = len(table) // len(new) * pool.shape[2]
    return 2 * new.element_size() * new.shape[1] * new.shape[3] * sum(min(n, slots) for n in counts)


operator_costs.register("glasscluster::cached_attention", _attention_flops, _attention_bytes)
operator_costs.register("glasscluster::cache_write", nbytes=_write_bytes)
