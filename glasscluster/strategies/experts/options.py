"""The options of expert parallelism."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout, divisors


class ExpertOptions(Options):
    """Experts are spread evenly over ep neighbours that see different tokens."""

    model_config = ConfigDict(title="Expert parallelism")

    ep: int = Field(1, ge=1, description="GPUs the experts are spread over")

    def rules(self, model: ModelConfig, layout: Layout) -> None:
        """ep divides both the ranks that see different tokens and the experts."""
        if self.ep == 1:
            return
        if not model.experts:
            raise InputError("ep", self.ep, "needs a model with --experts", [1])
        for what, size in (("dp x cp", layout.data_ranks), ("experts", model.experts)):
            if size % self.ep:
                raise InputError("ep", self.ep, f"must divide {what} = {size}", divisors(size))
