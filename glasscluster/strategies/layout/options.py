"""How the sequences of an optimizer step are shared out, and what carries messages."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, field_validator

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout

ALGORITHMS = ("ring", "native")


class BatchOptions(Options):
    """micro_batches = global_batch / (micro_batch·dp)."""

    model_config = ConfigDict(title="Batches and collectives")

    micro_batch: int = Field(1, ge=1, description="sequences in a micro-batch")
    global_batch: int = Field(
        0, ge=0, description="sequences in an optimizer step over all GPUs; 0 means 2 x dp x pp"
    )
    algorithm: str = Field(
        "ring",
        description="our rings, the collectives of gloo or NCCL (native), or your own: FILE.py:NAME",
    )

    @field_validator("algorithm")
    @classmethod
    def _absolute(cls, algorithm: str) -> str:
        """A file is named by its whole path: ranks may be processes that work in other folders."""
        file, colon, name = algorithm.rpartition(":")
        return f"{Path(file).absolute()}:{name}" if colon and file.endswith(".py") else algorithm

    def rules(self, _model: ModelConfig, layout: Layout) -> None:
        """The global batch is whole micro-batches on every data-parallel rank."""
        if self.algorithm not in ALGORITHMS and ".py:" not in self.algorithm:
            rule = "a training uses one of these, or one that a file registers: FILE.py:NAME"
            raise InputError("algorithm", self.algorithm, rule, ALGORITHMS)
        step = self.micro_batch * layout.dp
        if self.global_batch % step:
            down = self.global_batch // step * step
            near = [n for n in (down, down + step) if n]
            raise InputError(
                "global_batch", self.global_batch, f"must be a multiple of micro-batch x dp = {step}", near
            )
