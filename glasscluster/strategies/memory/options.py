"""The options of recomputation: which activations are freed in forward and computed again in backward."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout
from glasscluster.strategies.memory.dialects import parts_of


class MemoryOptions(Options):
    """Activations: kept, attention's let go, or whole segments of layers let go."""

    model_config = ConfigDict(title="Recomputation")

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
                (
                    model.attention == "flash"
                    and (model.sinks or model.prefix > 0 or model.position in ("relative", "alibi")),
                    "needs --attention unfused: flash attention in parts changes what was saved of it",
                ),
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
        if "moe" in parts and not model.experts:
            raise InputError("recompute_modules", "moe", "the model has no experts", ["mlp"])
        if "mlp" in parts and model.routed_layers == model.layers:
            raise InputError("recompute_modules", "mlp", "every layer of the model has experts", ["moe"])
