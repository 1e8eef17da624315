"""Families of models in Hugging Face's layout, by `model_type`: one file a family. Read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glasscluster.model.weights.families.base import Family, KeyRefused, Reading, WeightsError
from glasscluster.model.weights.families.bert import BERT
from glasscluster.model.weights.families.gpt2 import GPT2
from glasscluster.model.weights.families.llama import LLAMA, MISTRAL
from glasscluster.model.weights.families.mixtral import MIXTRAL
from glasscluster.model.weights.families.qwen import QWEN2, QWEN3

__all__ = ["FAMILIES", "Family", "KeyRefused", "Reading", "WeightsError", "family_in", "json_object"]

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, BERT, MISTRAL, MIXTRAL, QWEN2, QWEN3)}


def family_in(content: Mapping[str, Any]) -> Family:
    """The family of a config.json; WeightsError where it is none of ours."""
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        raise KeyRefused("model_type", content.get("model_type"), f"known are {', '.join(FAMILIES)}")
    return family


def json_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; WeightsError where it has none. A byte-order mark is passed over."""

    def no_number(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=no_number)
    except (OSError, ValueError, RecursionError) as problem:
        raise WeightsError(f"{path} cannot be read: {problem}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no object")
    return content
