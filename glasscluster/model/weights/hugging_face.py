"""Weights and shapes in Hugging Face's layout: a folder with config.json and model.safetensors, or several
files and an index.

Two libraries lay the same numbers out differently: we keep queries, keys and values in one matrix, Llama in
three; GPT-2 stores its matrices transposed (its Conv1D computes x W, torch's Linear x W^T). Both sides are
cut into the same *parts*:

    ours    layers.0.qkv_weight                 =  layers.0.q_weight | layers.0.k_weight | layers.0.v_weight
                                                   below each other
    theirs  transformer.h.0.attn.c_attn.weight  =  the same three, side by side, because transposed

A family (families/) is a table from part to the name of their tensor; parts with the same name lie in one
tensor, in our order. Names, shapes, loading and saving follow from it. A head that is the embedding table is
in neither layout. We keep a layer's experts in one tensor; their files have a tensor for each, or one too.
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
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glasscluster.base.errors import NonFinite
from glasscluster.base.files import check_regular, finish, replacing_together
from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.weights.families import FAMILIES, Family, WeightsError, family_in, json_object

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
NUMBERS = (*(f"F{bits}" for bits in (64, 32, 16)), "BF16")  # types of tensors; others are quantised


class Piece(NamedTuple):
    """A part of a tensor: rows `start` to `start + rows` along dim 0.

    Rows of their tensor are counted in the form that ours has (families/forms.py); those of a tensor of ours
    with an expert in each row of dim 0 are the experts' rows, one below the other.
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
        self.ours = {name: pieces(name, shape, config, family) for name, shape in self.shapes.items()}
        self.theirs: dict[str, list[Piece]] = {}
        self.at: dict[str, tuple[str, Piece]] = {}  # part -> their tensor, and where in it
        self.home: dict[str, str] = {}  # part -> our tensor
        for name, parts in self.ours.items():
            for part, _, rows in parts:
                tensor = family.name(part)
                beside = self.theirs.setdefault(tensor, [])
                beside.append(Piece(part, sum(p.rows for p in beside), rows))
                self.at[part], self.home[part] = (tensor, beside[-1]), name

    def natural(self, tensor: str) -> tuple[int, ...]:
        """The shape of one of their tensors in the form that ours has."""
        parts = self.theirs[tensor]
        name = self.home[parts[0].part]
        if len(parts) == 1 and len(self.ours[name]) == 1:
            return self.shapes[name]
        return (sum(p.rows for p in parts), *rows_of(name, self.shapes[name])[1:])

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of one of their tensors."""
        form = self.family.form(self.theirs[tensor][0].part)
        return tuple(form.theirs(torch.empty(self.natural(tensor), device="meta")).shape)

    def to_ours(self, name: str, theirs: Mapping[str, Tensor]) -> Tensor:
        """One of our tensors."""
        made = []
        for part, _, _ in self.ours[name]:
            tensor, piece = self.at[part]
            whole = self.family.form(part).ours(theirs[tensor])
            alone = len(self.theirs[tensor]) == 1
            made.append(whole if alone else whole.narrow(0, piece.start, piece.rows))
        return (torch.cat(made) if len(made) > 1 else made[0]).reshape(self.shapes[name]).contiguous()

    def to_theirs(self, tensor: str, ours: Mapping[str, Tensor], gradients: bool = False) -> Tensor:
        """One of their tensors, or its gradient."""
        made = []
        for part, _, _ in self.theirs[tensor]:
            name = self.home[part]
            mine = next(p for p in self.ours[name] if p.part == part)
            alone = len(self.ours[name]) == 1
            below = ours[name].reshape(rows_of(name, self.shapes[name]))
            made.append(ours[name] if alone else below.narrow(0, mine.start, mine.rows))
        form = self.family.form(self.theirs[tensor][0].part)
        whole = torch.cat(made) if len(made) > 1 else made[0]
        turn = form.gradient if gradients and form.gradient is not None else form.theirs
        return turn(whole).contiguous()


def tensors_of(stage: GPTStage) -> dict[str, Tensor]:
    """Everything that is saved, by full name: parameters, and numbers that are not trained."""
    return {name: p.detach() for name, (p, _) in stage.full_names().items()} | stage.full_constants()


def rows_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor of ours with its experts' rows below each other."""
    stacked = ".expert_" in name and len(shape) > 1
    return (shape[0] * shape[1], *shape[2:]) if stacked else shape


def pieces(name: str, shape: tuple[int, ...], config: ModelConfig, family: Family) -> list[Piece]:
    """What lies in one of our tensors, from its first row to its last.

    Three of qkv, gate and value of a gated MLP's first matrix, each expert's where a family has a tensor for
    each, the two ways down to latents; otherwise itself.
    """
    place, _, rest = name.rpartition(".")
    stem, _, kind = rest.rpartition("_")
    inside: list[tuple[str, int]] = []
    if stem == "qkv":
        keys = config.key_width
        inside = [("q", shape[0] - 2 * keys), ("k", keys), ("v", keys)]
    elif stem.startswith("expert_") and family.splits_experts:
        own, each = stem.removeprefix("expert_"), shape[1]
        split = (
            [("gate", each // 2), ("value", each // 2)]
            if own == "up" and config.gates == 2
            else [(own, each)]
        )
        inside = [(f"expert.{e}.{s}", rows) for e in range(shape[0]) for s, rows in split]
    elif stem in ("up", "shared_up") and config.gates == 2:
        before = stem.removesuffix("up")
        inside = [(f"{before}gate", shape[0] // 2), (f"{before}value", shape[0] // 2)]
    elif stem == "down_to_latents":
        inside = [("kv_down", config.kv_latent + config.rotary), ("q_down", config.q_latent)]
        inside = [(own, rows) for own, rows in inside if rows]
    elif stem == "q_up" and not config.q_latent:
        inside = [("q_up_alone", shape[0])]
    else:
        return [Piece(name, 0, shape[0])]
    starts = accumulate((rows for _, rows in inside), initial=0)
    return [
        Piece(f"{place}.{s}_{kind}", start, rows) for (s, rows), start in zip(inside, starts, strict=False)
    ]


# ---- reading -----------------------------------------------------------------------------------------------
class Weights(Mapping[str, Tensor]):
    """A folder's tensors by our names, each read when it is asked for. Names and shapes are checked at once.

    The model is what config.json says, with `overrides` of its fields; or `config`, which the tensors must
    fit.
    """

    def __init__(self, folder: str | Path, config: ModelConfig | None = None, **overrides: Any) -> None:
        self.folder = Path(folder)
        finish(self.folder)
        self.content = json_object("weights", self.folder / "config.json")
        family = family_in(self.content)
        if unread := family.read(self.content).refused_weights:
            raise unread[0]
        self.config = config or family.to_config(self.content, **overrides)
        self.files = ExitStack()
        self.tensors = _Tensors(self.folder, family, self.files)
        stacked = any(
            n.endswith(end) for end in family.stacked.values() for n in self.tensors if ".experts." in n
        )
        self.family = family.in_memory() if stacked else family
        self.layout = Layout(self.family, self.config)
        self.passed_over: list[str] = []  # tensors in the files that the model has no use for
        try:
            self._check()
        except WeightsError as problem:
            said = family.read(self.content).values
            changed = [
                f"{name} = {value} was given where config.json says {said[name]}"
                for name, value in overrides.items()
                if name in said and said[name] != value
            ]
            raise WeightsError("; ".join([str(problem), *changed])) from None

    def _check(self) -> None:
        wanted, there = set(self.layout.theirs), set(self.tensors)
        patterns = self.family.tensors_passed_over(self.content)
        if self.config.tied:
            patterns += ("lm_head.weight", "cls.predictions.decoder.weight")
        self.passed_over = sorted(n for n in there - wanted if any(fnmatch(n, p) for p in patterns))
        if missing := sorted(wanted - there):
            raise WeightsError(
                f"{self.folder}: no tensor {missing[0]}"
                + (f" and {len(missing) - 1} others" if missing[1:] else "")
            )
        if odd := sorted(there - wanted - set(self.passed_over)):
            raise WeightsError(
                f"{self.folder}: nobody needs {odd[0]}" + (f" and {len(odd) - 1} others" if odd[1:] else "")
            )
        for name in sorted(wanted):
            if (shape := self.tensors.shape(name)) != (right := self.layout.shape(name)):
                raise WeightsError(
                    f"{self.folder}: {name} has shape {list(shape)}, config.json makes it {list(right)}"
                )
            if (dtype := self.tensors.dtype(name)) not in NUMBERS:
                raise WeightsError(
                    f"{self.folder}: {name} is of type {dtype}; known are {', '.join(NUMBERS)}"
                )
        head, table = self.family.ends.get("head.table"), self.family.ends["embedding.token"]
        if self.config.tied and head in there and not self.tensors[str(head)].equal(self.tensors[table]):
            raise WeightsError(
                f"{self.folder}: config.json says that the head is the embedding, but {head} is not {table}: "
                f"give --untied, or say tie_word_embeddings = false"
            )

    def predicts_more(self, name: str) -> bool:
        """Whether a tensor in the files is of a layer behind the last, which predicts more tokens at once."""
        return any(fnmatch(name, pattern) for pattern in self.family.beyond(self.content))

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
                if not bool(full.isfinite().all()):
                    raise NonFinite(f"{self.folder}: the weights of {name} are not finite", operation=name)
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

        names = _indexed(folder / INDEX) if (folder / INDEX).exists() else [FILE]
        self.where: dict[str, tuple[Any, str]] = {}
        if names == [FILE] and not (folder / FILE).exists() and any(folder.glob("pytorch_model*.bin")):
            raise WeightsError(f"{folder} holds pickled weights (.bin); only safetensors are read")
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
        for old, new in family.renamed.items():
            self.where = {
                (key.removesuffix(old) + new if key.endswith(old) else key): tensor
                for key, tensor in self.where.items()
            }

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        opened, key = self.where[name]
        return tuple(opened.get_slice(key).get_shape())

    def dtype(self, name: str) -> str:
        """The type that a tensor is stored in, as the file calls it."""
        opened, key = self.where[name]
        return str(opened.get_slice(key).get_dtype())

    def __getitem__(self, name: str) -> Tensor:
        opened, key = self.where[name]
        return opened.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def _indexed(path: Path) -> list[str]:
    """The files that an index names: beside it, in the same folder."""
    where = json_object("weights", path).get("weight_map")
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
    config: ModelConfig,
    ours: Mapping[str, Tensor],
    family: Family | None = None,
    in_memory: bool = False,
    gradients: bool = False,
) -> dict[str, Tensor]:
    """Tensors by our names as a state dict of theirs.

    Args:
        config: the model.
        ours: weights, or their gradients, by our full names. What is not there is left out: constants have
            no gradient.
        family: whose names; None: the first that has this shape.
        in_memory: the names of a model in memory, where experts lie stacked, and not those of its files.
        gradients: they are gradients: what is added to a weight in its file does not concern them.
    """
    family = family or family_of(config)
    layout = Layout(family.in_memory() if in_memory else family, config)
    wanted = [t for t, parts in layout.theirs.items() if all(layout.home[p.part] in ours for p in parts)]
    return {tensor: layout.to_theirs(tensor, ours, gradients) for tensor in wanted}


def save(stage: GPTStage, folder: str | Path, family: Family | None = None) -> Path:
    """Write a whole model so that transformers' `from_pretrained(folder)` loads it; returns the folder.

    family: whose layout; None: the first that has this shape.
    """
    from safetensors.torch import save_file

    folder, family = Path(folder), family or family_of(stage.config)
    ours = {name: x.cpu() for name, x in tensors_of(stage).items()}
    layout = Layout(family, stage.config)
    if {n: tuple(p.shape) for n, p in ours.items()} != layout.shapes:
        raise WeightsError("only a whole model can be saved; this stage has a part of it")
    content = family.to_json(stage.config, str(stage.dtype).removeprefix("torch."))
    with replacing_together(folder, "save", without=[INDEX]) as beside:
        (beside / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file({t: layout.to_theirs(t, ours) for t in layout.theirs}, beside / FILE, {"format": "pt"})
    return folder
