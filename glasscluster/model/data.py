"""Real text as bytes. The default corpus is the running Python's own standard library: real, offline, everywhere."""

from __future__ import annotations

import sysconfig
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LIMIT = 4_000_000


@lru_cache(maxsize=4)
def corpus(path: str | None = None) -> np.ndarray:
    """Bytes of a file, or of the standard library's top-level sources in alphabetical order (first 4 MB)."""
    if path is not None:
        return np.frombuffer(Path(path).read_bytes(), dtype=np.uint8)
    pieces, size = [], 0
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        pieces.append(source.read_bytes())
        size += len(pieces[-1])
        if size > LIMIT:
            break
    return np.frombuffer(b"".join(pieces)[:LIMIT], dtype=np.uint8)


def batch(text: np.ndarray, step: int, sequences: int, seq: int, vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and next-token targets [sequences, seq] of a step; depends on (seed, step) alone."""
    draw = np.random.default_rng([seed, step])
    starts = draw.integers(0, len(text) - seq, size=sequences)
    rows = torch.from_numpy(np.stack([text[a : a + seq + 1] for a in starts]).astype(np.int64)) % vocab
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
