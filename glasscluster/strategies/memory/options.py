"""The options of recomputation: which activations are freed in forward and computed again in backward."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout
from glasscluster.strategies.memory.dialects import parts_of


class MemoryOptions(BaseModel):
    """Activations: kept, attention's let go, or whole segments of layers let go."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Recomputation")

    recompute: Literal["none", "selective", "op", "full"] = Field(
        "none",
        description="activations computed again in backward; op: but for torchtitan's list of operators",
    )
    recompute_modules: str = Field(
        "core_attn", description="of --recompute selective, in Megatron's words: core_attn,mlp,moe"
    )
    recompute_every: int = Field(1, ge=1, description="layers a segment of full recomputation")

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Parts of a layer that are computed again in backward: core, mlp, moe; all of it for "full"."""
        parts = {"none": (), "op": ("core", "mlp"), "full": ("core", "mlp", "moe")}
        return parts[self.recompute] if self.recompute in parts else parts_of(self.recompute_modules)

    def rules(self, model: ModelConfig, layout: Layout) -> None:
        """Every module must be known and be in the model, and be asked for by --recompute selective.

        Operator by operator a layer must lie on one rank and be dense.
        """
        if self.recompute == "op":
            for refused, rule in (
                (
                    layout.tp * layout.cp > 1,
                    "needs --tp 1 and --cp 1: what ranks send is no operator of torch",
                ),
                (model.experts > 0, "needs --experts 0: how often an expert multiplies depends on the data"),
                (model.kv_latent > 0, "needs --kv-latent 0: the list knows no latents"),
            ):
                if refused:
                    raise InputError("recompute", "op", rule, ["full"])
        parts = parts_of(self.recompute_modules)
        if self.recompute != "selective":
            if parts != ("core",):
                rule = "needs --recompute selective"
                raise InputError("recompute_modules", self.recompute_modules, rule, ["core_attn"])
            return
        missing = "mlp" if model.experts else "moe"
        if missing in parts:
            rule = "the model has experts" if model.experts else "the model has no experts"
            raise InputError("recompute_modules", missing, rule, ["moe" if model.experts else "mlp"])
