"""A whole model from what every rank has of it, however it was cut: the other side of `Shard.take`.

    tp 0  [w0 w1]  ┐
    tp 1  [w2 w3]  ├─►  [w0 w1 w2 w3]       each rank says which elements its piece is; padding is dropped
    stages, experts┘

Pieces that several ranks have are the same bits (the checks say so); the last one is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan


def assemble(
    plan: Plan, model: ModelConfig, pieces: Sequence[Mapping[str, Tensor]], dtype: torch.dtype = torch.float32
) -> GPTStage:
    """All layers on one device from each rank's weights by full name, in the order of ranks. ValueError names
    what nobody has.
    """
    stage = GPTStage(model, dtype=dtype)
    constants = {name: (tensor, None) for name, tensor in stage.full_constants().items()}
    for name, (parameter, shard) in (stage.full_names() | constants).items():
        numbers = torch.arange(1, parameter.numel() + 1).view(parameter.shape)
        missing = torch.ones(parameter.numel(), dtype=torch.bool)
        for rank, tensors in enumerate(pieces):
            if name in tensors:
                mine = (
                    numbers
                    if shard is None
                    else shard.take(numbers, rank % plan.tp, plan.tp, rank // plan.tp % plan.ep, plan.ep)
                )
                here = mine > 0
                with torch.no_grad():
                    parameter.view(-1)[mine[here] - 1] = tensors[name].to(parameter.dtype)[here]
                missing[mine[here] - 1] = False
        if bool(missing.any()):
            raise ValueError(
                f"no rank has {int(missing.sum())} of the {parameter.numel()} elements of {name}"
            )
    return stage
