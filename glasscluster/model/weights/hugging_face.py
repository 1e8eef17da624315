"""Weights and shapes in Hugging Face's layout: a folder with config.json and model.safetensors, or several
files and an index.

Two libraries lay the same numbers out differently: we keep queries, keys and values in one matrix, Llama in
three; GPT-2 stores its matrices transposed (its Conv1D computes x W, torch's Linear x W^T). Both sides are
cut into the same *parts*:

    ours    layers.0.qkv_weight                 =  layers.0.q_weight | layers.0.k_weight | layers.0.v_weight
                                                   below each other
    theirs  transformer.h.0.attn.c_attn.weight  =  the same three, side by side, because transposed

A family (families.py) is a table from part to the name of their tensor; parts with the same name lie in one
tensor, in our order. Names, shapes, loading and saving follow from it. A head that is the embedding table is
in neither layout.
Format: safetensors (https://huggingface.co/docs/safetensors); the index is transformers'
`model.safetensors.index.json`.
But: no tokenizer, no download, no quantised files; `save` wants a whole model. Dropout of config.json is not
taken over, and a padding token (BERT's 0) gets a gradient like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glasscluster.base.files import check_regular, finish, read_json, replacing_together
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.weights.families import FAMILIES, Family, WeightsError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Piece(NamedTuple):
    """A part of a tensor: rows `start` to `start + rows` along dim 0.

    Rows of their tensor are counted after it was transposed back, where it lies transposed.
    """

    part: str
    start: int
    rows: int


class Layout:
    """One model on both sides: each of our tensors, and each of theirs, as pieces."""

    def __init__(self, family: Family, config: ModelConfig) -> None:
        self.family = family
        self.shapes = {
            name: tuple(x.shape) for name, x in tensors_of(GPTStage(config, device="meta")).items()
        }
        self.ours = {name: pieces(name, shape[0], config) for name, shape in self.shapes.items()}
        self.theirs: dict[str, list[Piece]] = {}
        self.at: dict[str, tuple[str, Piece]] = {}  # part -> their tensor, and where in it
        self.home: dict[str, str] = {}  # part -> our tensor
        for name, parts in self.ours.items():
            for part, _, rows in parts:
                tensor = family.name(part)
                beside = self.theirs.setdefault(tensor, [])
                beside.append(Piece(part, sum(p.rows for p in beside), rows))
                self.at[part], self.home[part] = (tensor, beside[-1]), name

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of one of their tensors."""
        stacked = self.theirs[tensor]
        shape = (sum(p.rows for p in stacked), *self.shapes[self.home[stacked[0].part]][1:])
        return shape[::-1] if self.family.is_transposed(stacked[0].part) else shape

    def to_ours(self, name: str, theirs: Mapping[str, Tensor]) -> Tensor:
        """One of our tensors."""
        made = []
        for part, _, _ in self.ours[name]:
            tensor, piece = self.at[part]
            whole = theirs[tensor].t() if self.family.is_transposed(part) else theirs[tensor]
            made.append(whole.narrow(0, piece.start, piece.rows))
        return (torch.cat(made) if len(made) > 1 else made[0]).contiguous()

    def to_theirs(self, tensor: str, ours: Mapping[str, Tensor]) -> Tensor:
        """One of their tensors."""
        made = []
        for part, _, _ in self.theirs[tensor]:
            mine = next(p for p in self.ours[self.home[part]] if p.part == part)
            made.append(ours[self.home[part]].narrow(0, mine.start, mine.rows))
        whole = torch.cat(made) if len(made) > 1 else made[0]
        return (whole.t() if self.family.is_transposed(self.theirs[tensor][0].part) else whole).contiguous()


def tensors_of(stage: GPTStage) -> dict[str, Tensor]:
    """Everything that is saved, by full name: parameters, and numbers that are not trained."""
    return {name: p.detach() for name, (p, _) in stage.full_names().items()} | stage.full_constants()


def pieces(name: str, rows: int, config: ModelConfig) -> list[Piece]:
    """What lies in one of our tensors: three of qkv, gate and value of a gated MLP's first matrix, otherwise
    itself.
    """
    place, _, rest = name.rpartition(".")
    stem, _, kind = rest.rpartition("_")
    if stem == "qkv":
        inside = [("q", config.query_width), ("k", config.key_width), ("v", config.key_width)]
    elif stem == "up" and config.gates == 2:
        inside = [("gate", config.width), ("value", config.width)]
    else:
        return [Piece(name, 0, rows)]
    return [Piece(f"{place}.{s}_{kind}", sum(n for _, n in inside[:i]), n) for i, (s, n) in enumerate(inside)]


# ---- reading -----------------------------------------------------------------------------------------------
class Weights(Mapping[str, Tensor]):
    """A folder's tensors by our names, each read when it is asked for. Names and shapes are checked at once.

    The model is what config.json says, with `overrides` of its fields; or `config`, which the tensors must
    fit.
    """

    def __init__(self, folder: str | Path, config: ModelConfig | None = None, **overrides: Any) -> None:
        self.folder = Path(folder)
        finish(self.folder)
        content = _json(self.folder / "config.json")
        family = FAMILIES.get(str(content.get("model_type")))
        if family is None:
            raise WeightsError(
                f"config.json: model_type is {content.get('model_type')!r}; known are {', '.join(FAMILIES)}"
            )
        self.family, self.config = family, config or family.to_config(content, **overrides)
        self.layout = Layout(family, self.config)
        self.files = ExitStack()
        self.tensors = _Tensors(self.folder, family, self.files)
        self._check()

    def _check(self) -> None:
        wanted, there = set(self.layout.theirs), set(self.tensors)
        spare = {
            n
            for n in there - wanted
            if any(fnmatch(n, p) for p in self.family.unused) or (n == "lm_head.weight" and self.config.tied)
        }
        if missing := sorted(wanted - there):
            raise WeightsError(
                f"{self.folder}: no tensor {missing[0]}"
                + (f" and {len(missing) - 1} others" if missing[1:] else "")
            )
        if odd := sorted(there - wanted - spare):
            raise WeightsError(
                f"{self.folder}: nobody needs {odd[0]}" + (f" and {len(odd) - 1} others" if odd[1:] else "")
            )
        for name in sorted(wanted):
            if (shape := self.tensors.shape(name)) != (right := self.layout.shape(name)):
                raise WeightsError(
                    f"{self.folder}: {name} has shape {list(shape)}, config.json makes it {list(right)}"
                )

    def __getitem__(self, name: str) -> Tensor:
        return self.layout.to_ours(name, self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.ours)

    def __len__(self) -> int:
        return len(self.layout.ours)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def fill(self, stage: GPTStage) -> GPTStage:
        """Copy into a stage whatever part of each tensor it has; returns the stage."""
        for part in stage.parts():
            for name, shard in part.shards.items():
                full, parallel = self[name], part.parallel
                if shard is not None:
                    full = shard.take(
                        full, parallel.rank, parallel.size, parallel.experts.rank, parallel.experts.size
                    )
                with torch.no_grad():
                    getattr(part, name.split(".")[-1]).copy_(full)
            for name in part.constants:
                getattr(part, name.split(".")[-1]).copy_(self[name])
        return stage


class _Tensors(Mapping[str, Tensor]):
    """The tensors of one file, or of all files that the index names.

    Where a file of the bare model lacks the base's prefix, it is put in front.
    """

    def __init__(self, folder: Path, family: Family, files: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        if (folder / INDEX).exists():
            names = _indexed(folder / INDEX)
        else:
            names = [FILE]
        self.where: dict[str, tuple[Any, str]] = {}
        for name in names:
            check_regular("weights", folder / name)
            try:
                opened = files.enter_context(safe_open(folder / name, framework="pt"))
            except (OSError, SafetensorError) as problem:
                raise WeightsError(f"{folder / name} cannot be read: {problem}") from None
            self.where |= {key: (opened, key) for key in opened.keys()}  # noqa: SIM118 - not a dict
        if family.base and not any(key.startswith(family.base) for key in self.where):
            self.where = {
                key if key.startswith(("lm_head.", "cls.")) else family.base + key: tensor
                for key, tensor in self.where.items()
            }

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        opened, key = self.where[name]
        return tuple(opened.get_slice(key).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        opened, key = self.where[name]
        return opened.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def _json(path: Path) -> dict[str, Any]:
    content = read_json("weights", path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no object")
    return content


def _indexed(path: Path) -> list[str]:
    """The files that an index names: beside it, in the same folder."""
    where = _json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise WeightsError(f"{path} holds no weight_map from names of tensors to names of files")
    for name in where.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise WeightsError(f"{path}: {name!r} is no file beside it")
    return sorted(set(where.values()))


def load(folder: str | Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> GPTStage:
    """A folder's model, whole.

    Overrides are fields of ModelConfig that its layout does not fix, as qkv or attention.
    """
    with Weights(folder, **overrides) as weights:
        return weights.fill(GPTStage(weights.config, dtype=dtype))


def fill(stage: GPTStage, folder: str | Path) -> GPTStage:
    """A stage with a folder's weights, the part of them that it has; returns the stage."""
    with Weights(folder, stage.config) as weights:
        return weights.fill(stage)


# ---- writing -----------------------------------------------------------------------------------------------
def family_of(config: ModelConfig) -> Family:
    """The first family that has a place for every part of a model; WeightsError with each one's reason
    otherwise.
    """
    reasons = []
    for family in FAMILIES.values():
        try:
            family.to_json(config, "")
            Layout(family, config)
            return family
        except WeightsError as reason:
            reasons.append(str(reason))
    raise WeightsError("no family of Hugging Face's has this shape: " + "; ".join(reasons))


def state_dict(
    config: ModelConfig, ours: Mapping[str, Tensor], family: Family | None = None
) -> dict[str, Tensor]:
    """Tensors by our names (weights, or their gradients) as a state dict of theirs."""
    layout = Layout(family or family_of(config), config)
    return {tensor: layout.to_theirs(tensor, ours) for tensor in layout.theirs}


def save(stage: GPTStage, folder: str | Path) -> Path:
    """Write a whole model so that transformers' `from_pretrained(folder)` loads it; returns the folder."""
    from safetensors.torch import save_file

    folder, family = Path(folder), family_of(stage.config)
    ours = {name: x.cpu() for name, x in tensors_of(stage).items()}
    layout = Layout(family, stage.config)
    if {n: tuple(p.shape) for n, p in ours.items()} != layout.shapes:
        raise WeightsError("only a whole model can be saved; this stage has a part of it")
    content = family.to_json(stage.config, str(stage.dtype).removeprefix("torch."))
    with replacing_together(folder, "save", without=[INDEX]) as beside:
        (beside / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file({t: layout.to_theirs(t, ours) for t in layout.theirs}, beside / FILE, {"format": "pt"})
    return folder
