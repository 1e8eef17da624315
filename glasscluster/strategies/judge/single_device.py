"""One device: the reference every run is checked against. Nothing distributed, nothing flat, nothing clever.

Losses are summed over tokens and divided once by their count; the gradient norm is clipped; the optimizer
steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.layers.dropout import Draw
from glasscluster.model.text.data import count_targets
from glasscluster.model.weights import hugging_face
from glasscluster.strategies.numerics.bad_batch import Guard, SkipRule


@dataclass
class Reference:
    """Per step: mean loss, averaged unclipped gradients, weights after the step; by full parameter name."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    weights: list[dict[str, Tensor]]
    shards: dict


def train_one_device(
    config: ModelConfig,
    batches: list[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    clip: float,
    seed: int,
    dtype: torch.dtype = torch.float64,
    weights: str | None = None,
    documents: Sequence[tuple[tuple[int, ...], ...] | None] | None = None,
    skip: SkipRule | None = None,
) -> Reference:
    """Train on whole batches [G, s] in one piece each; from a folder's `weights`, or from those of the seed.

    documents: for each batch the lengths of its rows' documents, where rows are packed. skip: which steps are
    not taken.
    """
    # a loss in chunks is compared with the whole one
    model = GPTStage(config.model_copy(update={"loss": "whole"}), seed=seed, dtype=dtype)
    if weights is not None:
        hugging_face.fill(model, weights)
    named = model.full_names()
    state = {n: [torch.zeros_like(p) for _ in range(optimizer.moments)] for n, (p, _) in named.items()}
    out = Reference([], [], [], {n: s for n, (_, s) in named.items()})
    guard, updates = Guard(skip) if skip else None, 0
    for step, (tokens, targets) in enumerate(batches):
        if guard and step % guard.rule.every == 0:
            snapshot = copy.deepcopy((model.state_dict(), state, updates))
        model.zero_grad()
        packed = documents[step] if documents is not None else None
        loss = model(tokens, targets, Draw(seed, step, tuple(range(len(tokens))), packed))
        loss.backward()
        count = count_targets(targets)
        gradients = {n: p.grad / count for n, (p, _) in named.items() if p.grad is not None}
        norm = torch.sqrt(sum(((g * g).sum() for g in gradients.values()), torch.zeros((), dtype=dtype)))
        factor = min(1.0, clip / (float(norm) + 1e-6)) if clip else 1.0
        if guard is None or not guard.harmful(float(norm)):
            updates += 1
            with torch.no_grad():
                for name, (p, _) in named.items():
                    optimizer.update(p, gradients[name] * factor, state[name], updates)
        elif guard.must_return():
            weights_then, state, updates = copy.deepcopy(snapshot)
            model.load_state_dict(weights_then)
        out.losses.append(float(loss.detach()) / count)
        out.gradients.append({n: g.clone() for n, g in gradients.items()})
        out.weights.append({n: p.detach().clone() for n, (p, _) in named.items()})
    return out
