"""The options of tensor and sequence parallelism."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout, divisors


class TensorOptions(BaseModel):
    """A layer's matrices are cut over tp ranks; with sequence parallelism the rest of it too, along the
    sequence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, title="Tensor and sequence parallelism")

    tp: int = Field(1, ge=1, description="tensor-parallel GPUs a layer is cut over")
    sequence_parallel: bool = Field(False, description="norms and residuals cut along the sequence")
    tp_overlap: bool = Field(
        False,
        description="sequence parallelism's gathers and scatters in pieces, under the matrices' products",
    )

    def rules(self, model: ModelConfig, _layout: Layout) -> None:
        """tp divides what it cuts. A key-value head is whole on a rank, or shared evenly by several ranks."""
        if rule := self.broken(model, self.tp):
            fits = [t for t in divisors(model.heads) if self.broken(model, t) is None]
            raise InputError("tp", self.tp, rule, fits)
        if self.tp_overlap and not self.sequence_parallel:
            rule = "cuts the gathers and scatters of --sequence-parallel in pieces"
            raise InputError("tp_overlap", True, rule, ["--sequence-parallel"])

    def broken(self, model: ModelConfig, tp: int) -> str | None:
        """The first rule that so many tensor ranks break with a model; None: they fit."""
        if self.sequence_parallel and model.seq % tp:
            return f"must divide seq = {model.seq} when the sequence is cut"
        sizes = {"heads": model.heads}
        if not model.experts or model.dense_layers or not model.expert_ffn:
            sizes["ffn"] = model.width
        if model.experts:
            sizes |= {"expert-ffn": model.expert_width, "shared-ffn": model.shared_ffn}
        if model.expert_bias:  # each rank adds a part of a bias that is not cut with its matrix
            sizes["hidden"] = model.hidden
        for field, size in sizes.items():
            if size % tp:
                return f"must divide {field} = {size}"
        heads, width = model.key_heads, model.key_width
        if heads % tp and tp % heads:
            return f"must divide kv-heads = {heads}, or be a multiple of them"
        if heads % tp and width % tp:
            return f"must divide the {width} columns of keys where ranks share one of {heads} kv-heads"
        return None
