"""What a rank brings back from training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class RankResult:
    """What a rank brings back: mean losses, state bytes, and in a check its gradients and weights by name."""

    losses: list[Tensor] = field(default_factory=list)
    state_bytes: dict[str, int] = field(default_factory=dict)
    units: list[tuple[str, int, int]] = field(default_factory=list)  # name, elements, padded elements
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)  # saved beside the weights, and not trained
    host_bytes: int = 0  # optimizer state kept in host memory
    in_flight: int = 0  # chunks' activations that waited for their B or W at once
    most_layers: int = 0  # ZeRO-3: blocks that were whole at once
    checkpoint_bytes: int = 0  # most that recomputation held to start from
    routing: dict[int, list[dict[str, Any]]] = field(
        default_factory=dict
    )  # layer -> what its router did, a micro-batch of the last step
    loss_scales: list[float] = field(
        default_factory=list
    )  # fp16: the scale of each step, and whether it was skipped
    skipped: list[bool] = field(default_factory=list)  # by the loss scale, or as a bad batch
    returned: list[int] = field(
        default_factory=list
    )  # bad batches: steps after which the last snapshot was taken up again
    readings: list[Any] = field(default_factory=list)  # probes: what this rank saw of each step

    def routing_counts(self, what: str) -> list[list[int]]:
        """Rows that were "wanted" by or "kept" for each expert, a layer and micro-batch."""
        return [made[what] for layer in self.routing.values() for made in layer]
