"""The options of recomputation: which activations are freed in forward and computed again in backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout
from glasscluster.strategies.memory.dialects import MEGATRON, parts_of

KEEPS_ITS_OUTPUT = ("relu",)  # activations whose backward needs what they gave, and keeps that itself


class MemoryOptions(Options):
    """Activations: kept, attention's let go, or whole segments of layers let go."""

    model_config = ConfigDict(title="Recomputation")

    recompute: Literal["none", "selective", "op", "full"] = Field(
        "none",
        description="activations computed again in backward; op: but for torchtitan's list of operators",
    )
    recompute_modules: str = Field(
        "core_attn", description=f"of --recompute selective, in Megatron's words: {','.join(MEGATRON)}"
    )
    recompute_every: int = Field(1, ge=1, description="layers a segment of full recomputation")
    recompute_nth: int = Field(
        1,
        ge=1,
        description="full recomputation of each nth layer alone, as torchtitan's selective_ac_option = n",
    )

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Parts of a layer that are computed again in backward, in our words (dialects.py)."""
        parts = {"none": (), "op": ("core", "mlp"), "full": ("core", "mlp", "moe")}
        return parts[self.recompute] if self.recompute in parts else parts_of(self.recompute_modules)

    def recomputed_layers(self, layers: Iterable[int]) -> list[int]:
        """Which of these layers recomputation has to do with: all, or each nth of the model.

        Args:
            layers: by number, from 0.

        Returns:
            Their numbers: those of layers n, 2n, ... where the first is number 1.
        """
        if self.recompute == "none":
            return []
        return [layer for layer in layers if self.recompute != "full" or not (layer + 1) % self.recompute_nth]

    def rules(self, model: ModelConfig, layout: Layout) -> None:
        """Every module must be known and be in the model, and be asked for by --recompute selective.

        Operator by operator a layer must lie on one rank and be dense.
        """
        parts = parts_of(self.recompute_modules)
        if self.recompute == "op":
            self._check_operators(model, layout)
        if self.recompute == "selective":
            self._check_modules(model, layout, parts)
        elif parts != ("core",):
            rule = f"--recompute-modules {self.recompute_modules} needs --recompute selective"
            raise InputError("recompute", self.recompute, rule, ["selective"])
        if self.recompute_nth > 1:
            self._check_nth(model)

    def _check_operators(self, model: ModelConfig, layout: Layout) -> None:
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

    def _check_modules(self, model: ModelConfig, layout: Layout, parts: Sequence[str]) -> None:
        """Whether the model has each module, and none is inside another one."""
        inside_moe = "moe" in parts, "a part of moe, which runs again as a whole"
        for word, refused, rule in (
            ("moe", not model.experts, "the model has no experts"),
            ("mlp", model.routed_layers == model.layers, "every layer of the model has experts"),
            (
                "layernorm",
                model.norm_position == "post",
                "it is of norms before a branch, and here they stand behind it",
            ),
            ("moe_act", not model.experts, "the model has no experts"),
            (
                "moe_act",
                model.activation in KEEPS_ITS_OUTPUT,
                f"it would free nothing, because the backward of {model.activation} needs what it gave",
            ),
            ("moe_act", *inside_moe),
            ("shared_experts", not model.experts or not model.shared_ffn, "the model has no shared expert"),
            ("shared_experts", *inside_moe),
            ("mla_up_proj", not model.kv_latent, "the model has no latents"),
            (
                "mla_up_proj",
                "core" not in parts and (model.attention != "flash" or layout.cp > 1),
                "attention keeps copies of Q, K and V here: it needs core_attn beside it",
            ),
            (
                "mla_up_proj",
                "norm" in parts and not model.q_latent,
                "queries without a latent are made from what the norm gave, which layernorm discards",
            ),
        ):
            if refused and MEGATRON[word] in parts:
                others = ",".join(w for w, part in MEGATRON.items() if part in parts and w != word)
                choices = [others or "core_attn"]
                raise InputError("recompute_modules", self.recompute_modules, f"{word}: {rule}", choices)

    def _check_nth(self, model: ModelConfig) -> None:
        for refused, rule, choices in (
            (self.recompute != "full", "needs --recompute full", [1]),
            (
                self.recompute_every > 1,
                "needs --recompute-every 1: each nth layer is a segment of its own",
                [1],
            ),
            (
                self.recompute_nth > model.layers,
                f"no layer would run again: the model has {model.layers}",
                [*range(1, model.layers + 1)],
            ),
        ):
            if refused:
                raise InputError("recompute_nth", self.recompute_nth, rule, choices)
