"""The options of tensor and sequence parallelism."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout, divisors


class TensorOptions(Options):
    """A layer's matrices are cut over tp ranks; with sequence parallelism the rest of it too, along the
    sequence.
    """

    model_config = ConfigDict(title="Tensor and sequence parallelism")

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
        check_tensor_ranks(model, self.tp)
        if self.tp_overlap and not self.sequence_parallel:
            rule = "cuts the gathers and scatters of --sequence-parallel in pieces"
            raise InputError("tp_overlap", True, rule, [False])


def check_tensor_ranks(model: ModelConfig, tp: int) -> None:
    """Check that a layer can be cut over tp ranks: the same rules for training, generation, serving and
    evaluation.

    Heads and the MLP's inner widths divide evenly. A key-value head is whole on a rank, or several ranks
    share it: then each computes an equal part of all columns of K and V, and gathers the part that its heads
    see.

    Raises:
        InputError: naming tp, what it does not divide, and the nearest number of ranks that fits.
    """
    if rule := broken(model, tp):
        raise InputError("tp", tp, rule, [t for t in divisors(model.heads) if broken(model, t) is None])


def broken(model: ModelConfig, tp: int) -> str | None:
    """The first rule that so many tensor ranks break with a model; None: they fit."""
    sizes = {"heads": model.heads}
    if not model.experts or model.dense_layers or not model.expert_ffn:
        sizes["ffn"] = model.width
    if model.experts:
        sizes["expert-ffn"] = model.expert_width
    if model.shared_ffn:
        sizes["shared-ffn"] = model.shared_ffn
    if model.expert_bias:  # each rank adds a part of a bias that is not cut with its matrix
        sizes["hidden"] = model.hidden
    for field, size in sizes.items():
        if size % tp:
            return f"must divide {field} = {size}"
    heads, columns = model.key_heads, model.key_width
    if heads % tp and (tp % heads or columns % tp):
        return (
            f"must divide kv-heads = {heads}, or be a multiple of them that divides the "
            f"{columns} columns of K: kv-heads x head size {model.head_dim}"
        )
    return None
