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
        if self.sequence_parallel and model.seq % self.tp:
            rule = f"must divide seq = {model.seq} when the sequence is cut"
            raise InputError("tp", self.tp, rule, divisors(model.seq))
        shared = {"shared-ffn": model.shared_ffn} if model.shared_ffn else {}
        sizes = {"heads": model.heads, "ffn": model.width, **shared}
        for field, size in sizes.items():
            if size % self.tp:
                fits = [t for t in divisors(size) if all(n % t == 0 for n in sizes.values())]
                raise InputError("tp", self.tp, f"must divide {field} = {size}", fits)
        heads = model.key_heads
        if heads % self.tp and (self.tp % heads or model.key_width % self.tp):
            fits = [t for t in divisors(model.heads) if heads % t == 0 or t % heads == 0]
            raise InputError("tp", self.tp, f"must divide kv-heads = {heads}, or be a multiple of them", fits)
        if self.tp_overlap and not self.sequence_parallel:
            rule = "cuts the gathers and scatters of --sequence-parallel in pieces"
            raise InputError("tp_overlap", True, rule, ["--sequence-parallel"])
