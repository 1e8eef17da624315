"""Families of models in Hugging Face's layout, by `model_type`: one file a family. Read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.files import finish, is_folder, is_there, read_json
from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.base import Family, KeyRefused, Reading, WeightsError
from glasscluster.model.weights.families.bert import BERT
from glasscluster.model.weights.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from glasscluster.model.weights.families.gemma import GEMMA2
from glasscluster.model.weights.families.gpt2 import GPT2
from glasscluster.model.weights.families.gpt_oss import GPT_OSS
from glasscluster.model.weights.families.llama import LLAMA, MISTRAL
from glasscluster.model.weights.families.mixtral import MIXTRAL, QWEN3_MOE
from glasscluster.model.weights.families.qwen import QWEN2, QWEN3

__all__ = [
    "FAMILIES",
    "Family",
    "KeyRefused",
    "Reading",
    "WeightsError",
    "config_file",
    "family_in",
    "is_path",
    "json_object",
    "read_shape",
]

FAMILIES = {
    family.model_type: family
    for family in (
        *(GPT2, LLAMA, BERT, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE),
        *(GEMMA2, DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS),
    )
}


def family_in(content: Mapping[str, Any]) -> Family:
    """The family of a config.json; WeightsError where it is none of ours."""
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        raise KeyRefused("model_type", content.get("model_type"), f"known are {', '.join(FAMILIES)}")
    return family


def json_object(field: str, path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        InputError: it cannot be read; `field` is the option that named it.
        WeightsError: it holds something else.
    """
    content = read_json(field, path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no object")
    return content


# ---- a config.json on its own: shapes without weights ------------------------------------------------------
def is_path(name: str) -> bool:
    """Whether a model's name is that of a file or folder: it has a slash, ends in .json, or is there."""
    return "/" in name or "\\" in name or name.endswith(".json") or is_there(name)


def config_file(path: str) -> Path:
    """The config.json that a path means: itself, or the one in a folder."""
    file = Path(path)
    if not is_folder(file):
        return file
    finish(file)
    return file / "config.json"


def read_shape(path: str, **overrides: Any) -> ModelConfig:
    """The model of a config.json, or of a folder with one, with some fields otherwise.

    Args:
        path: of the file, or of its folder.
        **overrides: fields of ModelConfig. A width that others in the file were made for needs them too.

    Raises:
        InputError: for a file that cannot be read (field `model`), a key in it that cannot (its name and its
            value are in the rule), or an override that contradicts it.
    """
    try:
        content = json_object("model", config_file(path))
        family = family_in(content)
        check_widths(family, content, overrides)
        config = family.to_config(content, **same_heads(family, content, overrides))
    except WeightsError as problem:
        raise InputError("model", path, str(problem)) from None
    return config


def same_heads(family: Family, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """The overrides; heads of the size that the file says, where their number alone is another."""
    same_hidden = "hidden" not in overrides or overrides["hidden"] == family.read(content).values.get(
        "hidden"
    )
    if "heads" in overrides and "head_dim" not in overrides and same_hidden and content.get("head_dim"):
        return {**overrides, "head_dim": content["head_dim"]}
    return overrides


def check_widths(family: Family, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """InputError for another hidden size where the file says a head size or a width that go with its own."""
    said = family.read(content).values
    if overrides.get("hidden", said.get("hidden")) == said.get("hidden"):
        return
    content = family.by_own_names(content)
    needed = {"head_dim": ("head_dim", "heads"), family.key_of("ffn"): ("ffn",)}
    for key, fields in needed.items():
        if content.get(key) is not None and not any(field in overrides for field in fields):
            option = " or ".join("--" + field.replace("_", "-") for field in fields)
            rule = f"config.json says {key} = {content[key]} for hidden = {said['hidden']}: give {option} too"
            raise InputError("hidden", overrides["hidden"], rule, [said["hidden"]])
