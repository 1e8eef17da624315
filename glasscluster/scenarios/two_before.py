"""A language whose next token follows from the two tokens before, and a small GPT that learns it in seconds.

Lessons train on it where they ask what a model sees: it needs two positions, in order, and its entropy is
known, so a loss says how far a model is from the best there can be.
But: nothing in it reaches further back than two tokens, which flatters whatever forgets the distant past.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage

VOCAB = 8
FOLLOWS = 0.8  # of the tokens; the rest are drawn at random
ROWS = 16  # of a batch


def draw_table(draw: torch.Generator) -> Tensor:
    """What follows from each pair of tokens, [VOCAB, VOCAB]."""
    return torch.randint(0, VOCAB, (VOCAB, VOCAB), generator=draw)


def language(rows: int, n: int, table: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [rows, n] and their next tokens: four in five follow from the two tokens before, in order."""
    x = torch.randint(0, VOCAB, (rows, n + 1), generator=draw)
    follows = torch.rand(rows, n + 1, generator=draw) < FOLLOWS
    for t in range(2, n + 1):
        x[:, t] = torch.where(follows[:, t], table[x[:, t - 2], x[:, t - 1]], x[:, t])
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()


def best_loss() -> float:
    """The entropy of the language: no model can be below it, in nats a token."""
    other = (1 - FOLLOWS) / VOCAB
    likely = FOLLOWS + other
    return -likely * math.log(likely) - (VOCAB - 1) * other * math.log(other)


def train(model: GPTStage, steps: int, n: int, table: Tensor, draw: torch.Generator) -> list[Tensor]:
    """Train a whole model by AdamW, gradients clipped to 1, on batches of `ROWS` sequences of n tokens.

    Returns:
        The model's weights, each once.
    """
    weights: list[Tensor] = [weight for weight, _ in model.full_names().values()]
    flat = torch.cat([w.detach().flatten() for w in weights])
    for w, place in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        w.data = place.view_as(w)  # the optimizer moves all of them at once
    optimizer, moments = Optimizer(lr=1e-2), [torch.zeros_like(flat) for _ in range(2)]
    batches = (x.split(ROWS) for x in language(ROWS * steps, n, table, draw))
    for step, (tokens, targets) in enumerate(zip(*batches, strict=True)):
        slopes = torch.autograd.grad(model(tokens, targets) / targets.numel(), weights)
        gradient = torch.cat([g.flatten() for g in slopes])
        optimizer.update(flat, gradient * min(1.0, 1 / float(gradient.norm())), moments, step + 1)
    return weights
