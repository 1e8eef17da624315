"""Segments of full recomputation: which layers run again together, and whether the last matrix of one does.

Recomputation counts FLOPs by this, tensor parallelism its collectives.
"""

from __future__ import annotations

from collections.abc import Sequence

from glasscluster.model.config import ModelConfig


def segments(layers: int, every: int) -> list[int]:
    """Layers of each segment of a stage."""
    return [min(every, layers - start) for start in range(0, layers, every)]


def ends(layers: Sequence[int], every: int) -> list[int]:
    """The last layer of each segment of a stage that has these layers."""
    return [layers[min(start + every, len(layers)) - 1] for start in range(0, len(layers), every)]


def branch_of(model: ModelConfig, layer: int) -> str:
    """The part that a layer's second branch is: "moe" or "mlp"."""
    return "moe" if model.routed(layer) else "mlp"


def dense_again(model: ModelConfig, layers: Sequence[int], parts: Sequence[str]) -> list[int]:
    """The layers of which selective recomputation repeats the MLP, the experts or the shared expert."""
    return [
        layer
        for layer in layers
        if branch_of(model, layer) in parts or ("shared" in parts and model.routed(layer))
    ]


def last_spared(model: ModelConfig, layer: int, fused: bool = False) -> bool:
    """Whether recomputation of a segment stops before its last matrix, and before that matrix's collective.

    It stops at the last tensor that was kept. A dropout mask comes after the matrix, and a norm behind the
    branch keeps its input: then all of the branch runs again.

    Args:
        layer: the last one of the segment.
        fused: matrix and collective are one operation (--tp-overlap), which runs again as a whole. Where the
            last branch is routed experts they are two all the same.
    """
    routed_last = not model.dense_width(layer)
    return model.norm_position == "pre" and not model.dropout and (not fused or routed_last)
