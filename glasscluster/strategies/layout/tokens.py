"""Which tokens of a sequence each context-parallel rank has, and which query-key pairs it computes.

    ring      rank r has the r-th piece
    striped   token i is rank i mod N's
    zigzag    of 2N chunks rank r has r and 2N-1-r

context/context_parallel.py draws the parts of a block that a causal mask leaves to each of them. With
`heads_cut` = U ranks that exchange heads (context/ulysses.py), the sequence is cut so over the N/U groups,
and inside a group the heads are shared out.
"""

from __future__ import annotations

from collections.abc import Sequence

from glasscluster.model.kernels.flash.costs import pairs
from glasscluster.model.kernels.flash.parts import Rectangle, halves, with_prefix, within

KINDS = ("ring", "striped", "zigzag")


def rectangle(kind: str, rank: int, source: int, tokens: int) -> Rectangle | None:
    """What `rank` computes with the keys of `source`, both with `tokens` tokens, under a causal mask.

    None: nothing, they are all in the future.
    """
    everything = slice(0, tokens)
    if source == rank:
        return Rectangle(everything, everything, True)
    if kind == "ring":
        return Rectangle(everything, everything, False) if source < rank else None
    if kind == "zigzag":
        first, second = slice(0, tokens // 2), slice(tokens // 2, tokens)
        return Rectangle(everything, first, False) if source < rank else Rectangle(second, everything, False)
    if source < rank:
        return Rectangle(everything, everything, True)
    # striped, from a rank on the right: query j sees keys before j, so the first query sees none and the last
    # key is seen by none
    return Rectangle(slice(1, tokens), slice(0, tokens - 1), True) if tokens > 1 else None


def parts(
    kind: str,
    rank: int,
    source: int,
    ranks: int,
    tokens: int,
    causal: bool = True,
    prefix: int = 0,
    jumps: bool = False,
    window: int = 0,
) -> list[Rectangle]:
    """The same with any mask: all keys where it is not causal, the prefix's everywhere, those in a window.

    The first part of a rank's own block has all queries, unless it is cut.

    Args:
        tokens: of one rank.
        jumps: cut where a rank's positions jump, so that a part's distances are equally far apart.
        window: keys that a query sees, its own the last, under a causal mask without a prefix; 0: all. With
            one, parts are cut where positions jump, too.
    """
    if causal:
        known = sum(p < prefix for p in tokens_of(kind, source, ranks, ranks * tokens)) if prefix else 0
        rectangles = with_prefix(rectangle(kind, rank, source, tokens), tokens, known)
    else:
        rectangles = [Rectangle(slice(0, tokens), slice(0, tokens), False)]
    if (jumps or window) and kind == "zigzag":
        rectangles = [piece for part in rectangles for piece in halves(part, tokens // 2)]
    if not window:
        return rectangles
    mine, theirs = (tokens_of(kind, r, ranks, ranks * tokens) for r in (rank, source))
    seen = (within(part, mine, theirs, window) for part in rectangles)
    return [part for part in seen if part is not None]


def tokens_of(kind: str, rank: int, ranks: int, tokens: int) -> Sequence[int]:
    """Which of a sequence's tokens a rank has."""
    if kind == "striped":
        return range(rank, tokens, ranks)
    if kind == "ring":
        return range(tokens)[rank * tokens // ranks : (rank + 1) * tokens // ranks]
    each, mirror = tokens // (2 * ranks), 2 * ranks - 1 - rank
    return [*range(rank * each, (rank + 1) * each), *range(mirror * each, (mirror + 1) * each)]


def work(
    kind: str,
    ranks: int,
    tokens: int,
    heads: int = 1,
    heads_cut: int = 1,
    tile: int = 1,
    causal: bool = True,
    prefix: int = 0,
    jumps: bool = False,
    window: int = 0,
) -> list[int]:
    """Query-key pairs that each rank computes of one sequence, over the heads that it has inside attention.

    With tile = TILE they are those of flash attention, whose diagonal tiles are whole. Of one head, no tiles:

    ring       r n^2 + n(n+1)/2 for rank r: the last has 2N-1 times the first's (n large)
    zigzag     N n^2/2 + n/2, every rank
    striped    (r+1) n(n+1)/2 + (N-1-r) n(n-1)/2: the ranks differ by at most (N-1) n, a row a block

    Args:
        kind: one of KINDS, or "ulysses", where all ranks exchange heads.
        tokens: of the whole sequence.
        heads: of the whole model, or of a tensor-parallel rank.
        heads_cut: ranks of a group that exchange heads.
        jumps, window: see `parts`.
    """
    each = ranks if kind == "ulysses" else heads_cut
    kind, groups = "ring" if kind == "ulysses" else kind, ranks // each
    n, mask = tokens // groups, (causal, prefix, jumps, window)
    of_group = [
        sum(pairs(parts(kind, group, source, groups, n, *mask), tile) for source in range(groups))
        for group in range(groups)
    ]
    return [of_group[rank // each] * (heads // each) for rank in range(ranks)]
