"""Several sources of text, mixed by weight, as batches of rows; whole rows of a stream, or documents packed.

    stream  a source's tokens one after the other, cut every s tokens; a row sees the one before's last token
            as its own first target
            d o c 1 ⏎ d o c 2 ⏎ ...   ─►   [d o c 1] [⏎ d o c] [2 ⏎ ...
    packed  documents lie whole in rows where they fit (packing.py); nobody sees another document

A row is a sample of sampler.py: the batch of a step follows from (seed, step) alone, so every rank draws its
part without asking anybody, and a training can go on from any step on any number of ranks. Tokens are bytes,
or those of a tokenizer.json; if that has an end of text, every document ends with it.

But: a source is read and cut into tokens as a whole, in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glasscluster.base.files import stamp
from glasscluster.model.parallel import IGNORE
from glasscluster.model.text.packing import Packed, best_fit
from glasscluster.model.text.sampler import BLOCK, Sample, Sampler
from glasscluster.model.text.texts import documents
from glasscluster.model.text.tokenizer import END_OF_TEXT, Tokenizer

FILLING = 0  # the token where a packed row has none


class Batch(NamedTuple):
    """Rows of a step: tokens and targets [G, s], the samples they are, and of packed rows the lengths of
    their documents.
    """

    tokens: Tensor
    targets: Tensor
    samples: list[Sample]
    documents: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class Mixture:
    """What to train on: sources (see texts.py) with their weights, a tokenizer.json or None for bytes, packed
    or not.
    """

    sources: tuple[tuple[str, float], ...]
    tokenizer: str | None = None
    packed: bool = False
    block: int = BLOCK
    # which files these were when the mixture was made: a run reads them once, and the next run anew
    files: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", stamp(*(name for name, _ in self.sources), self.tokenizer))

    def batch(self, step: int, sequences: int, seq: int, vocab: int, seed: int) -> Batch:
        """The global batch of a step; depends on (seed, step) alone. Without a tokenizer bytes are taken
        modulo the vocabulary.
        """
        rows = read(self, seq)
        order = rows.sampler(seed)
        samples = order.share(step * sequences, sequences, 0, 1)
        drawn = [rows.row(sample) for sample in samples]
        tokens, targets = (
            torch.from_numpy(np.stack(x)) for x in zip(*((r.tokens, r.targets) for r in drawn), strict=True)
        )
        if self.tokenizer is None:
            tokens, targets = tokens % vocab, torch.where(targets == IGNORE, targets, targets % vocab)
        return Batch(tokens, targets, samples, tuple(r.lengths for r in drawn) if self.packed else None)


class Row(NamedTuple):
    """One sample: tokens and targets [s], and the lengths of its documents."""

    tokens: np.ndarray
    targets: np.ndarray
    lengths: tuple[int, ...]


class Source:
    """One source's tokens, cut into rows of `seq`. ValueError if there is not one."""

    def __init__(self, name: str, texts: Sequence[np.ndarray], seq: int, packed: bool) -> None:
        self.texts, self.seq = texts, seq
        self.tokens = sum(map(len, texts))
        self.packed: Packed | None = best_fit([len(t) for t in texts], seq) if packed else None
        self.stream = np.concatenate(texts) if not packed and texts else np.empty(0, dtype=np.int64)
        self.rows = len(self.packed.rows) if self.packed else max(0, (len(self.stream) - 1) // seq)
        if not self.rows:
            raise ValueError(f"{name} has {self.tokens} tokens, a row needs {1 if packed else seq + 1}")
        if packed and all(len(text) < 2 for text in texts):
            raise ValueError(
                f"{name} has no document of two tokens, so no token has one behind it to predict"
            )

    @property
    def largest(self) -> int:
        """The largest of its tokens."""
        return max((int(text.max()) for text in self.texts if len(text)), default=0)

    def row(self, number: int) -> Row:
        """A row by number."""
        if self.packed is None:
            here = self.stream[number * self.seq : (number + 1) * self.seq + 1]
            return Row(here[:-1], here[1:], (self.seq,))
        tokens, targets = (
            np.full(self.seq, FILLING, dtype=np.int64),
            np.full(self.seq, IGNORE, dtype=np.int64),
        )
        at = 0
        for document, start, stop in self.packed.rows[number]:
            following = self.texts[document][
                start + 1 : stop + 1
            ]  # one more than the piece where the document was cut
            tokens[at : at + stop - start] = self.texts[document][start:stop]
            targets[at : at + len(following)] = following
            at += stop - start
        return Row(tokens, targets, self.packed.lengths(number))


class Rows:
    """All sources of a mixture, in rows of one length."""

    def __init__(self, mixture: Mixture, seq: int) -> None:
        self.mixture = mixture
        self.tokenizer = Tokenizer.load(mixture.tokenizer) if mixture.tokenizer is not None else None
        self.sources = [
            Source(name, self.tokenised(documents(name)), seq, mixture.packed) for name, _ in mixture.sources
        ]

    def tokenised(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Each document's tokens [n], with what the tokenizer puts around a text, and the end of text if it
        has one.
        """
        if self.tokenizer is None:
            return [np.frombuffer(text, dtype=np.uint8).astype(np.int64) for text in texts]
        end = [self.tokenizer.specials[END_OF_TEXT]] if END_OF_TEXT in self.tokenizer.specials else []
        if end == [*self.tokenizer.rules.after][-1:]:
            end = []
        return [np.array(self.tokenizer.encode(text, whole=True) + end, dtype=np.int64) for text in texts]

    def sampler(self, seed: int) -> Sampler:
        """The order of the rows of all sources."""
        weights = tuple(weight for _, weight in self.mixture.sources)
        return Sampler(tuple(s.rows for s in self.sources), weights, seed, self.mixture.block)

    def row(self, sample: Sample) -> Row:
        """The row that a sample is."""
        return self.sources[sample.source].row(sample.row)


@lru_cache(maxsize=4)
def read(mixture: Mixture, seq: int) -> Rows:
    """Read and cut all sources, once a process. OSError, ValueError."""
    return Rows(mixture, seq)
