"""Byte-pair encoding: learn which neighbours to merge (Sennrich et al., 1508.07909, algorithm 1), on bytes
(GPT-2).

    count the pieces of the text (pre_tokens.py); every piece is a row of bytes
    repeat: the pair of neighbours that is most frequent over all pieces becomes one new token, everywhere

      l o w ×5     l o w e r ×2     n e w e s t ×6     w i d e s t ×3
      e s: 9  ─►  es     es t: 9  ─►  est     l o: 7  ─►  lo     ...

Algorithm 1 counts all pairs anew for each merge. Here pieces are counted once, and a merge only visits the
pieces that have its pair:

    counts  pair -> how often, over all pieces
    where   pair -> the pieces that (at least once had) it
    heap    (-count, pair): a count there may be too high, never too low; what is popped with an old count
            goes back with its new one

Of equally frequent pairs the one with the smaller numbers comes first, as in Hugging Face's `tokenizers`. A
pair is counted at each place where it stands, so "aaa" has (a, a) twice, though only one of these can be
merged. No two merges spell the same bytes (as a + bc and ab + c would): where a string ends as one token, no
merge ever crossed its ends, so what happened inside it is what happens to it alone. Hence vocabulary = 256 +
merges, exactly.

But: one process, plain Python; the different pieces must fit in memory (10 MB of source code have some
45,000).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

from glasscluster.model.text.pre_tokens import BYTE_NUMBER, BYTE_ORDER, as_bytes, pre_tokens

Pair = tuple[int, int]
BYTES = [bytes([b]) for b in BYTE_ORDER]  # the first 256 tokens


class Learned(NamedTuple):
    """What training found: tokens by number, the first 256 being single bytes, and the merges in the order in
    which they were learned.
    """

    tokens: list[bytes]
    merges: list[Pair]
    counts: list[int]  # how often each merge's pair stood in the text when it was merged


def count_pieces(texts: Iterable[bytes]) -> Counter[bytes]:
    """How often each piece stands in some texts. No piece reaches from one text into the next."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(pre_tokens(text))
    return Counter({as_bytes(piece): count for piece, count in counts.items()})


def learn(
    pieces: Mapping[bytes, int], vocab: int, say: Callable[[int], None] = lambda _tokens: None
) -> Learned:
    """Merge until there are `vocab` tokens, or no pair is left. `say` hears after each merge how many tokens
    there are.

    Raises ValueError for a vocabulary that has no room for the 256 bytes.
    """
    if vocab < len(BYTES):
        raise ValueError(f"a vocabulary of {vocab} has no room for the {len(BYTES)} bytes")
    words = [list(piece.translate(BYTE_NUMBER)) for piece in pieces]
    times = list(pieces.values())
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += times[number]
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)
    tokens, merges, seen = list(BYTES), [], []
    while len(tokens) < vocab and heap:
        bound, pair = heappop(heap)
        if (count := counts[pair]) != -bound:
            if count > 0:
                heappush(heap, (-count, pair))
            continue
        for touched in _merge_everywhere(pair, len(tokens), words, times, counts, where):
            heappush(heap, (-counts[touched], touched))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        merges.append(pair)
        seen.append(count)
        say(len(tokens))
    return Learned(tokens, merges, seen)


def _merge_everywhere(
    pair: Pair,
    new: int,
    words: list[list[int]],
    times: Sequence[int],
    counts: Counter[Pair],
    where: defaultdict[Pair, set[int]],
) -> set[Pair]:
    """Merge a pair in all pieces that have it, keep the counts right; returns the pairs that are new."""
    made = set()
    for number in where.pop(pair):
        word, many = words[number], times[number]
        merged = merge(word, pair, new)
        for old in pairwise(word):
            counts[old] -= many
        for now in pairwise(merged):
            counts[now] += many
            if new in now:
                where[now].add(number)
                made.add(now)
        words[number] = merged
    del counts[pair]
    return made


def merge(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    """A row of tokens with each `pair` replaced by `new`, from left to right."""
    merged, at, (first, second) = [], 0, pair
    while at < len(word):
        if word[at] == first and at + 1 < len(word) and word[at + 1] == second:
            merged.append(new)
            at += 2
        else:
            merged.append(word[at])
            at += 1
    return merged
