"""Which sample comes n-th: weighted sources, shuffled anew in each epoch, cut over ranks; and all of it is a
function of n.

Sources i = 1..k have |D_i| samples (rows of tokens) and weights w_i. Number n = 0, 1, 2, ... of a training is
(source, epoch, row):

    source  every `block` numbers hold exactly q_i = w_i·block of source i (rounded so that they add up),
            in an order of their own
    turn    so how many of source i came in earlier blocks is known without counting; in its own block they
            are counted: turn t
    epoch   t // |D_i|; after T samples: w_i·T / |D_i| epochs of source i
            (Eq 40; Muennighoff et al., 2305.16264)
    row     the (t mod |D_i|)-th of a permutation of the source that is the epoch's own

         n       0 1 2 3 4 5 6 7 8 9 │ 10 ...  rank r of R takes numbers r·G/R to (r+1)·G/R of a step's G:
         source  A B A A C A A A B A │ ...     what is trained in a step does not depend on R

So the state of a training is one number, how many samples it has consumed; any number of ranks can go on from
there, and a step that was lost is done again in full. A list of all samples or a generator's state would have
to be saved, and cut anew for other ranks.

The permutation is a Feistel network: halves of a number's bits, each in turn changed by a hash of the other,
which can be undone whatever the hash is; numbers that leave the range are sent through again (cycle walking:
Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). It needs no memory; a shuffled list
would need all |D_i| indices on every rank.

But: weights are rounded to 1/block; inside a block the order is random, so shares of few samples waver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from glasscluster.model.kernels.dropout import mix

ROUNDS = 6
BLOCK = 1000
_ALL = (1 << 64) - 1


class Sample(NamedTuple):
    """A row of a source, read in this epoch of it."""

    source: int
    epoch: int
    row: int


def key_of(*parts: int) -> int:
    """One 64-bit key from several numbers."""
    key = 0
    for part in parts:
        key = mix((key + part + 0x9E3779B97F4A7C15) & _ALL)
    return key


def permuted(place: int, size: int, key: int) -> int:
    """Where a permutation of range(size) sends `place`; each key is a permutation of its own."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mix((key + (number << 40) + right) & _ALL) & mask)
        place = left << half | right
        if place < size:
            return place


def quotas(weights: Sequence[float], block: int) -> list[int]:
    """How many of a block's samples each source gets: in proportion to the weights, the largest remainders
    rounded up.
    """
    exact = [w / sum(weights) * block for w in weights]
    given = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (given[i] - exact[i], i))
    for i in by_remainder[: block - sum(given)]:
        given[i] += 1
    return given


@lru_cache(maxsize=64)
def _shuffled(given: tuple[int, ...], key: int) -> list[tuple[int, int]]:
    """given[i] times source i in the order of a key, each with how many of its source come before it."""
    whose = [source for source, many in enumerate(given) for _ in range(many)]
    seen, order = [0] * len(given), []
    for place in range(len(whose)):
        source = whose[permuted(place, len(whose), key)]
        order.append((source, seen[source]))
        seen[source] += 1
    return order


@dataclass(frozen=True)
class Sampler:
    """The order of samples. sizes: |D_i| in samples; weights: any positive numbers, their shares count.

    Raises ValueError for an empty source, a weight that is not positive, or one too small to get a sample of
    a block.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int = 0
    block: int = BLOCK

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.weights) or min(self.sizes) < 1:
            raise ValueError(
                f"sources of {self.sizes} samples with weights {self.weights}: each needs a sample and a "
                f"weight"
            )
        if min(self.weights) <= 0 or 0 in self.quotas:
            raise ValueError(
                f"weights {self.weights}: each source needs at least one in {self.block} samples"
            )

    @cached_property
    def quotas(self) -> list[int]:
        """Samples of each source in a block."""
        return quotas(self.weights, self.block)

    def sample(self, number: int) -> Sample:
        """The sample with this number."""
        block, place = divmod(number, self.block)
        source, before = self._order(block)[place]
        epoch, at = divmod(block * self.quotas[source] + before, self.sizes[source])
        return Sample(source, epoch, permuted(at, self.sizes[source], key_of(self.seed, 1, source, epoch)))

    def _order(self, block: int) -> list[tuple[int, int]]:
        """A block's numbers: whose each is, and how many of that source come before it in the block."""
        return _shuffled(tuple(self.quotas), key_of(self.seed, 0, block))

    def share(self, consumed: int, batch: int, rank: int, ranks: int) -> list[Sample]:
        """What one of `ranks` data-parallel ranks takes of the next `batch` samples, after `consumed`."""
        return [self.sample(consumed + i) for i in range(rank * batch // ranks, (rank + 1) * batch // ranks)]

    def drawn(self, consumed: int) -> list[int]:
        """How many samples of each source the first `consumed` numbers hold."""
        blocks, rest = divmod(consumed, self.block)
        begun = [source for source, _ in self._order(blocks)[:rest]]
        return [blocks * quota + begun.count(source) for source, quota in enumerate(self.quotas)]

    def epochs(self, consumed: int) -> list[float]:
        """How often each source has been read."""
        return [many / size for many, size in zip(self.drawn(consumed), self.sizes, strict=True)]
