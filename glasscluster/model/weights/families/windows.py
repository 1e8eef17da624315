"""Sliding windows in config.json: in all layers (Mistral), in some (Qwen), or in every other one (Gemma 2 and
gpt-oss).

sliding_window      tokens that a query looks back over; null: all
layer_types         for each layer full_attention or sliding_attention
use_sliding_window, max_window_layers
                    of Qwen, where layer_types is not given: windows from that layer on
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import KeyRefused, Special, WeightsError, taken

FULL, SLIDING = "full_attention", "sliding_attention"
FIELDS = {"window": "sliding_window", "window_layers": "layer_types"}
MOST = 100_000  # layers
AS_TYPES = ("sliding_window", "layer_types")


def length_in(content: Mapping[str, Any], absent: int | None) -> int:
    """The window, 0 for none."""
    length = taken(content, "sliding_window", int, absent, None)
    if length is not None and length < 1:
        raise KeyRefused("sliding_window", length, "it must be a number of tokens, or null")
    return length or 0


def fields_of(types: list[str], window: int, key: str, value: Any) -> dict[str, Any]:
    """Our fields from the type of each layer; KeyRefused, with key and value, where they cannot say it."""
    if window == 0 or SLIDING not in types:
        return {"window": 0}
    if FULL not in types:
        return {"window": window}
    if types == alternating(len(types)):
        return {"window": window, "window_layers": "alternate"}
    rule = "windows in all layers, in none, and in layers 0, 2, 4, ... are known here"
    raise KeyRefused(key, value, rule)


def alternating(layers: int) -> list[str]:
    """Windows in layers 0, 2, 4, ..."""
    return [FULL if i % 2 else SLIDING for i in range(layers)]


def layers_in(content: Mapping[str, Any], absent: int) -> int:
    """num_hidden_layers, of which there are not so many that a list of them would fill the memory."""
    layers: int = taken(content, "num_hidden_layers", int, absent)
    if not 1 <= layers <= MOST:
        raise KeyRefused("num_hidden_layers", layers, f"it must be from 1 to {MOST:,}")
    return layers


def types_in(content: Mapping[str, Any], layers: int, absent: list[str]) -> list[str]:
    """layer_types, or what its absence means."""
    types = content.get("layer_types")
    if types is None:
        return absent
    if not isinstance(types, list) or any(t not in (FULL, SLIDING) for t in types) or len(types) != layers:
        raise KeyRefused("layer_types", types, f"it must say {FULL} or {SLIDING} for each of {layers} layers")
    return types


def window_of(config: ModelConfig) -> dict[str, Any]:
    """sliding_window, of a model that has it in all layers or in none."""
    if config.window and config.window_layers != "all":
        raise WeightsError(f"sliding_window has no word for window_layers = {config.window_layers!r}")
    return {"sliding_window": config.window or None}


def all_layers(absent: int | None) -> Special:
    """Windows in all layers. absent: the window where config.json has none."""
    return Special(
        ("sliding_window",), lambda content: {"window": length_in(content, absent)}, window_of, FIELDS
    )


def some_layers(layers: int = 32) -> Special:
    """Qwen's: windows from a layer on, where they are used at all."""
    keys = ("use_sliding_window", "max_window_layers", *AS_TYPES)

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        used = taken(content, "use_sliding_window", bool, False)
        window = length_in(content, 4096) if used else 0
        first = taken(content, "max_window_layers", int, 28)
        count = layers_in(content, layers)
        absent = [SLIDING if window and i >= first else FULL for i in range(count)]
        types = types_in(content, count, absent)
        key = "max_window_layers" if content.get("layer_types") is None else "layer_types"
        return fields_of(types, window, key, content.get(key, first))

    def theirs(config: ModelConfig) -> dict[str, Any]:
        return {
            **window_of(config),
            "use_sliding_window": config.window > 0,
            "max_window_layers": 0,
        }

    return Special(keys, ours, theirs, FIELDS)


def every_other_layer(absent: int, layers: int) -> Special:
    """Windows in layers 0, 2, 4, ... unless layer_types says otherwise.

    absent: the window where config.json has none; layers: their number there.
    """

    def ours(content: Mapping[str, Any]) -> dict[str, Any]:
        window = length_in(content, absent)
        types = types_in(content, layers_in(content, layers), alternating(layers_in(content, layers)))
        if not window and SLIDING in types:
            raise KeyRefused("sliding_window", None, f"there are layers of {SLIDING}")
        return fields_of(types, window, "layer_types", types)

    def theirs(config: ModelConfig) -> dict[str, Any]:
        plain = [SLIDING if config.window else FULL] * config.layers
        types = alternating(config.layers) if config.window and config.window_layers == "alternate" else plain
        # they make a mask of it even where no layer uses it
        return {"sliding_window": config.window or absent, "layer_types": types}

    return Special(AS_TYPES, ours, theirs, FIELDS)
