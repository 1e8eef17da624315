"""Images and their captions, made by a rule: something for a model with patches to learn that a small one
can, and that is easily judged.

    ┌────┬────┐  one patch of the image has a pattern (plain, rows, columns), all have noise;
    │    │▤▤▤▤│  the caption says which, and the pattern:   "1: rows⏎"
    ├────┼────┤
    │    │    │  a sequence comes in as the pixels of all patches, then the caption's tokens:
    └────┴────┘  an image is numbers, too

Patches are embedded by one matrix in place of the first tokens (ViT, 2010.11929, section 3.1; straight into a
decoder's sequence as in Fuyu, Adept 2023). With `prefix` = patches they see each other, as in PaliGemma
(2407.07726, section 3.1).
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.parallel import IGNORE

PATTERNS = ("plain", "rows", "columns")
NOISE = 60  # of 255: brightness of what is no pattern, at most


def patch(pattern: str, pixels: int) -> np.ndarray:
    """Which pixels of a patch a pattern lights: [pixels], row by row of a square (the last row
    may be short).
    """
    side = max(1, isqrt(pixels))
    row, column = np.divmod(np.arange(pixels), side)
    return {"plain": row >= 0, "rows": row % 2 == 0, "columns": column % 2 == 0}[pattern]


def caption(pattern: str, place: int) -> bytes:
    """What is said of an image."""
    return f"{place}: {pattern}\n".encode()


def image(model: ModelConfig, pattern: str, place: int, draw: np.random.Generator) -> np.ndarray:
    """Pixels [patches x patch size], 0 to 255."""
    pixels = draw.integers(0, NOISE, (model.patches, model.patch_size))
    lit = patch(pattern, model.patch_size)
    pixels[place, lit] = draw.integers(160, 256, int(lit.sum()))
    return pixels.reshape(-1)


def drawn(step: int, sequences: int, model: ModelConfig, seed: int) -> list[tuple[np.ndarray, str, int]]:
    """The images of a step, and what is on them; depends on (seed, step) alone."""
    draw = np.random.default_rng([seed, step, 9])
    what = [
        (PATTERNS[draw.integers(len(PATTERNS))], int(draw.integers(model.patches))) for _ in range(sequences)
    ]
    return [(image(model, pattern, place, draw), pattern, place) for pattern, place in what]


def captioned(step: int, sequences: int, model: ModelConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs [G, columns] (pixels, then tokens) and targets [G, s] of a step. The last patch predicts a
    caption's first token.
    """
    inputs = np.zeros((sequences, model.columns), dtype=np.int64)
    targets = np.full((sequences, model.seq), IGNORE, dtype=np.int64)
    for row, target, (pixels, pattern, place) in zip(
        inputs, targets, drawn(step, sequences, model, seed), strict=True
    ):
        text = (
            np.frombuffer(caption(pattern, place), dtype=np.uint8).astype(np.int64)[
                : model.seq - model.patches + 1
            ]
            % model.vocab
        )
        row[: len(pixels)] = pixels
        row[len(pixels) : len(pixels) + len(text)] = text[: model.seq - model.patches]
        target[model.patches - 1 : model.patches - 1 + len(text)] = text
    return torch.from_numpy(inputs), torch.from_numpy(targets)
