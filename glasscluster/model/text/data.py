"""Real text as bytes. The default corpus is the running Python's own standard library: real, offline,
everywhere.
"""

from __future__ import annotations

import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glasscluster.base.files import read_bytes
from glasscluster.model.config import ModelConfig
from glasscluster.model.parallel import IGNORE

LIMIT = 4_000_000


@lru_cache(maxsize=4)
def corpus(path: str | None = None, _stamp: tuple[Any, ...] = ()) -> np.ndarray:
    """Bytes of a file, or of the standard library's top-level sources in alphabetical order (first 4 MB).

    They are read once for each stamp (`base.files.stamp`) of the file.
    """
    if path is not None:
        return np.frombuffer(read_bytes("data", path), dtype=np.uint8)
    pieces, size = [], 0
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        pieces.append(source.read_bytes())
        size += len(pieces[-1])
        if size > LIMIT:
            break
    return np.frombuffer(b"".join(pieces)[:LIMIT], dtype=np.uint8)


def batch(
    text: np.ndarray, step: int, sequences: int, seq: int, vocab: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Tokens and next-token targets [sequences, seq] of a step; depends on (seed, step) alone."""
    draw = np.random.default_rng([seed, step])
    starts = draw.integers(0, len(text) - seq, size=sequences)
    rows = torch.from_numpy(np.stack([text[a : a + seq + 1] for a in starts]).astype(np.int64)) % vocab
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def objective(
    tokens: Tensor, targets: Tensor, model: ModelConfig, step: int, seed: int
) -> tuple[Tensor, Tensor]:
    """What a model learns from [sequences, seq] tokens and the tokens behind them; whatever else carries no
    loss (IGNORE).

    A prefix is given, not predicted (1910.10683, section 3.2.1). A masked model predicts tokens that were
    chosen from its input.
    """
    if model.objective == "masked":
        return masked(tokens, model.vocab, step, seed)
    if model.prefix:
        targets = targets.clone()  # of a single sequence, tokens and targets are views of the same numbers
        targets[:, : model.prefix - 1] = IGNORE
    return tokens, targets


def chosen_of(seq: int) -> int:
    """How many tokens of a sequence a masked model predicts: 15 %, at least one."""
    return max(1, round(0.15 * seq))


def tokens_with_loss(model: ModelConfig) -> int:
    """How many tokens of a sequence carry loss."""
    return (
        chosen_of(model.seq)
        if model.objective == "masked"
        else model.seq - max(0, model.prefix - 1, model.patches - 1)
    )


def count_targets(targets: Tensor) -> int:
    """How many targets carry loss: what a sum over them is divided by. 1 where none does, so that the loss and
    the gradient of nothing are 0.
    """
    return max(1, int((targets != IGNORE).sum()))


def masked(tokens: Tensor, vocab: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """15 % of each sequence's tokens, at least one, are to be predicted: 80 % of these are hidden, 10 %
    become any token, 10 % stay.

    Devlin et al., 1810.04805, section 3.1 and appendix A.1. Depends on (seed, step, sequence) alone. The last
    token of the vocabulary stands for [MASK].
    """
    inputs, targets, seq = tokens.clone(), torch.full_like(tokens, IGNORE), tokens.shape[1]
    for number, (row, target) in enumerate(zip(inputs, targets, strict=True)):
        draw = np.random.default_rng([seed, step, number, seq])
        chosen = draw.permutation(seq)[: chosen_of(seq)]
        target[chosen] = row[chosen]
        fate, other = draw.random(len(chosen)), torch.from_numpy(draw.integers(0, vocab, len(chosen)))
        row[chosen[fate < 0.8]] = vocab - 1
        changed = (fate >= 0.8) & (fate < 0.9)
        row[chosen[changed]] = other[changed]
    return inputs, targets
