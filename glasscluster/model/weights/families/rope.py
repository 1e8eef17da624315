"""Rotary positions in config.json: one dictionary since transformers 5, two keys before.

    rope_parameters   {"rope_type", "rope_theta", and what its type needs}; what it says wins
    rope_scaling      the same without the base, `type` for `rope_type` in older files
    rope_theta        the base

Absent values mean what modeling_rope_utils.py makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import NOT_ALLOWED, KeyRefused, Special, WeightsError, taken

SCALINGS = {"none": "default", "interpolation": "linear", "yarn": "yarn"}
NEEDS = {  # what each type may say beside rope_type and rope_theta
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def dictionary(content: Mapping[str, Any], absent: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The key that says how positions turn, and what it says."""
    for key in ("rope_scaling", "rope_parameters"):  # in transformers' order
        said = content.get(key)
        if said is not None and not isinstance(said, Mapping):
            raise KeyRefused(key, said, "it must be an object, as {'rope_type': 'linear', 'factor': 2.0}")
        if said:
            return key, dict(said)
    return "rope_parameters", dict(absent or {})


def rope(theta: float = 10000.0, absent: Mapping[str, Any] | None = None, trained: int = 2048) -> Special:
    """The keys of rotary positions.

    Args:
        theta: the base where config.json has none.
        absent: the dictionary where config.json has none.
        trained: max_position_embeddings where config.json has none.
    """

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        key, said = dictionary(content, absent)
        kind = said.get("rope_type", said.get("type", "default"))
        if kind not in NEEDS:
            raise KeyRefused(f"{key}[rope_type]", kind, f"one of {list(NEEDS)} is known here")
        spare = [name for name in said if name not in ("rope_type", "type", "rope_theta", *NEEDS[kind])]
        if spare and said[spare[0]] is not None:
            raise KeyRefused(f"{key}[{spare[0]}]", said[spare[0]], f"it is not known here with {kind}")
        base = taken(said if "rope_theta" in said else content, "rope_theta", float, theta)
        found: dict[str, Any] = {
            "rope_theta": float(base),
            "rope_scaling": next(ours for ours, theirs in SCALINGS.items() if theirs == kind),
        }

        def of(name: str, kind: type, absent: Any, null: Any = NOT_ALLOWED) -> Any:
            try:
                return taken(said, name, kind, absent, null)
            except KeyRefused as problem:
                raise KeyRefused(f"{key}[{name}]", problem.value, problem.why) from None

        if kind != "default":
            if "factor" not in said:
                raise KeyRefused(f"{key}[factor]", None, f"{kind} needs one")
            found["rope_factor"] = float(of("factor", float, None))
        if kind == "yarn":
            length = taken(content, "max_position_embeddings", int, trained)
            found["rope_trained"] = of("original_max_position_embeddings", int, length)
        return found

    return Special(
        ("rope_theta", "rope_scaling", "rope_parameters"),
        ours,
        lambda config: {"rope_parameters": written(config)},
        {
            "rope_theta": "rope_theta",
            "rope_scaling": "rope_scaling",
            "rope_factor": "rope_scaling[factor]",
            "rope_trained": "rope_scaling[original_max_position_embeddings]",
        },
    )


def written(config: ModelConfig) -> dict[str, Any]:
    """config.json's dictionary from our fields."""
    if config.rope_scaling not in SCALINGS:
        raise WeightsError(
            f"rope_type has no word for {config.rope_scaling!r}; it has one for {list(SCALINGS)}"
        )
    said: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": SCALINGS[config.rope_scaling]}
    if config.rope_scaling != "none":
        said["factor"] = config.rope_factor
    if config.rope_scaling == "yarn":
        said["original_max_position_embeddings"] = config.rope_trained or max(
            1, round(config.seq / config.rope_factor)
        )
    return said
