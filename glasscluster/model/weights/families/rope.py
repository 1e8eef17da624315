"""Rotary positions in config.json: one dictionary since transformers 5, two keys before.

    rope_parameters   {"rope_type", "rope_theta", and what its type needs}
    rope_scaling      the same, of older files; `type` may stand for `rope_type`
    rope_theta        the base, where the dictionary has none

Absent values mean what modeling_rope_utils.py makes of them. Two keys of yarn, `mscale` and `mscale_all_dim`
(DeepSeek), say the same as one `attention_factor`, which we keep; what else the second does: deepseek.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import (
    NOT_ALLOWED,
    KeyRefused,
    Special,
    WeightsError,
    taken,
)

SCALINGS = {"none": "default", "interpolation": "linear", "yarn": "yarn", "llama3": "llama3"}
TRAINED = "original_max_position_embeddings"
NEEDS: dict[str, tuple[str, ...]] = {  # what each type may say beside rope_type and rope_theta
    "default": (),
    "linear": ("factor",),
    "yarn": (
        *("factor", TRAINED, "beta_fast", "beta_slow", "truncate"),
        *("attention_factor", "mscale", "mscale_all_dim"),
    ),
    "llama3": ("factor", TRAINED, "low_freq_factor", "high_freq_factor"),
}
FIELDS = {  # ours -> the key that a message names
    "rope_theta": "rope_theta",
    "rope_scaling": "rope_scaling",
    "rope_factor": "rope_scaling[factor]",
    "rope_trained": f"rope_scaling[{TRAINED}]",
    "rope_low_factor": "rope_scaling[low_freq_factor]",
    "rope_high_factor": "rope_scaling[high_freq_factor]",
    "rope_beta_fast": "rope_scaling[beta_fast]",
    "rope_beta_slow": "rope_scaling[beta_slow]",
    "rope_attention_factor": "rope_scaling[attention_factor]",
}


@dataclass(frozen=True)
class Turning:
    """The dictionary that says how positions turn, and the key that it stands under."""

    key: str
    said: Mapping[str, Any]

    @property
    def kind(self) -> Any:
        """Its type, in transformers' words."""
        return self.said.get("rope_type", self.said.get("type", "default"))

    def take(self, name: str, kind: type, absent: Any, null: Any = NOT_ALLOWED) -> Any:
        """One of its values; KeyRefused names both keys."""
        try:
            return taken(self.said, name, kind, absent, null)
        except KeyRefused as problem:
            raise KeyRefused(f"{self.key}[{name}]", problem.value, problem.why) from None

    def needed(self, name: str, kind: type) -> Any:
        """One that must be there."""
        if name not in self.said:
            raise KeyRefused(f"{self.key}[{name}]", None, f"{self.kind} needs one")
        return self.take(name, kind, None)


def turning(content: Mapping[str, Any], absent: Mapping[str, Any] | None = None) -> Turning:
    """What config.json says; `absent`: what it means to say nothing."""
    for key in ("rope_scaling", "rope_parameters"):  # in transformers' order
        said = content.get(key)
        if said is not None and not isinstance(said, Mapping):
            raise KeyRefused(key, said, "it must be an object, as {'rope_type': 'linear', 'factor': 2.0}")
        if said:
            return Turning(key, said)
    return Turning("rope_parameters", absent or {})


def rope(theta: float = 10000.0, absent: Mapping[str, Any] | None = None, length: int = 2048) -> Special:
    """The keys of rotary positions.

    Args:
        theta: the base where config.json has none.
        absent: the dictionary where config.json has none.
        length: max_position_embeddings where config.json has none.
    """

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        turns = turning(content, absent)
        key, said, kind = turns.key, turns.said, turns.kind
        if not isinstance(kind, str) or kind not in NEEDS:
            raise KeyRefused(f"{key}[rope_type]", kind, f"one of {list(NEEDS)} is known here")
        for name, value in said.items():
            known = name in ("rope_type", "type", "rope_theta", *NEEDS[kind])
            if not known and value is not None and (name, value) != ("partial_rotary_factor", 1.0):
                raise KeyRefused(f"{key}[{name}]", value, f"it is not known here with {kind}")
        base = taken(said if "rope_theta" in said else content, "rope_theta", float, theta)
        values: dict[str, Any] = {
            "rope_theta": float(base),
            "rope_scaling": next(ours for ours, theirs in SCALINGS.items() if theirs == kind),
        }
        if kind == "default":
            return values
        trained = taken(content, "max_position_embeddings", int, length)
        if kind in ("yarn", "llama3"):
            values["rope_trained"] = turns.take(TRAINED, int, trained)
            checked_positive(turns, TRAINED, values["rope_trained"])
        if kind == "yarn":
            return values | yarn(turns, trained / values["rope_trained"])
        values["rope_factor"] = float(turns.needed("factor", float))
        if kind == "llama3":
            values["rope_low_factor"] = float(turns.needed("low_freq_factor", float))
            values["rope_high_factor"] = float(turns.needed("high_freq_factor", float))
        return values

    return Special(
        ("rope_theta", "rope_scaling", "rope_parameters"),
        ours,
        lambda config: {"rope_parameters": written(config)},
        FIELDS,
    )


def checked_positive(turns: Turning, name: str, value: float) -> None:
    """KeyRefused unless a value, or what is made of it, is larger than 0 and a number."""
    if not 0 < value < inf:
        raise KeyRefused(f"{turns.key}[{name}]", turns.said.get(name), "it must be larger than 0")


def yarn(turns: Turning, ratio: float) -> dict[str, Any]:
    """What yarn says; `ratio`: the factor where it says null."""
    if "factor" not in turns.said:
        turns.needed("factor", float)
    factor = float(turns.take("factor", float, None, ratio))
    checked_positive(turns, "factor", factor)
    together = None
    if (given := turns.take("attention_factor", float, None, None)) is not None:
        together = float(given)
    else:
        above, below = (turns.take(name, float, 0, 0) for name in ("mscale", "mscale_all_dim"))
        if above and below:
            together = temperature(factor, above) / temperature(factor, below)
            checked_positive(turns, "mscale", together)
    return {
        "rope_factor": factor,
        "rope_beta_fast": float(turns.take("beta_fast", float, 32, 32) or 32),
        "rope_beta_slow": float(turns.take("beta_slow", float, 1, 1) or 1),
        "rope_truncate": turns.take("truncate", bool, True, False),
        "rope_attention_factor": together,
    }


def temperature(factor: float, weight: float) -> float:
    """1 + 0.1 m ln s: what yarn multiplies queries and keys by, with DeepSeek's weight m."""
    return 0.1 * weight * log(factor) + 1.0 if factor > 1 else 1.0


def written(config: ModelConfig) -> dict[str, Any]:
    """config.json's dictionary from our fields."""
    if config.rope_scaling not in SCALINGS:
        raise WeightsError(
            f"rope_type has no word for {config.rope_scaling!r}; it has one for {list(SCALINGS)}"
        )
    said: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": SCALINGS[config.rope_scaling]}
    if config.rope_scaling != "none":
        said["factor"] = config.rope_factor
    if config.rope_scaling in ("yarn", "llama3"):
        said[TRAINED] = config.rope_trained or max(1, round(config.seq / config.rope_factor))
    if config.rope_scaling == "llama3":
        said |= {"low_freq_factor": config.rope_low_factor, "high_freq_factor": config.rope_high_factor}
    if config.rope_scaling == "yarn":
        said |= {"beta_fast": config.rope_beta_fast, "beta_slow": config.rope_beta_slow}
        said["truncate"] = config.rope_truncate
        if config.rope_attention_factor is not None:
            said["attention_factor"] = config.rope_attention_factor
    return said
