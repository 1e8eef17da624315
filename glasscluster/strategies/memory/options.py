"""The options of recomputation: which activations are freed in forward and computed again in backward."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout


class MemoryOptions(Options):
    """Activations: kept, attention's let go, or whole segments of layers let go."""

    model_config = ConfigDict(title="Recomputation")

    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed again in backward"
    )
    recompute_every: int = Field(1, ge=1, description="layers a segment of full recomputation")

    def rules(self, _model: ModelConfig, _layout: Layout) -> None:
        """Every combination runs."""
