"""What a family is: one architecture of transformers, as tables from our parts and fields to its own names.

A family says three things: how its config.json reads as a ModelConfig, what its tensors are called, and in
which form they lie (forms.py). Everything in config.json is one of these:

    a key        of the table, a number or a word for one field of ours, with its own meaning when it is
                 absent and when it is null, which are those of transformers' configuration_*.py
    special      several keys for several fields (rotary positions, windows, latents): a pair of functions
    fixed        can have one value here; any other is refused by name
    harmless     changes nothing in the model (names, tokens that end a text, dropout)
    unknown      nobody knows it here; transformers passes such keys over, and so do we; they are shown by
                 `glass doctor --model`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from math import isclose, isfinite, log
from typing import Any

from glasscluster.base.errors import InputError
from glasscluster.base.requests import build
from glasscluster.model.config import ModelConfig
from glasscluster.model.weights.families.forms import PLAIN_FORM, Form


class WeightsError(ValueError):
    """A folder that is not what its config.json says, or a model that the layout cannot say."""


class KeyRefused(WeightsError):
    """A key of config.json whose value cannot be read as our model."""

    def __init__(self, key: str, value: Any, why: str) -> None:
        super().__init__(f"config.json: {key} is {value!r}; {why}")
        self.key, self.value, self.why = key, value, why


class _Missing:
    """Stands where null is no value of a key."""

    def __repr__(self) -> str:
        return "not allowed"


NOT_ALLOWED = _Missing()
KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (float, int), bool: (bool,), str: (str,)}
CALLED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


COUNTS = ("experts",)  # of which a config.json cannot have 0, though to us 0 means that there are none


@dataclass(frozen=True)
class Key:
    """A key of config.json for one field of ours.

    name: theirs. absent: the value in their words that its absence means. null: what null means; NOT_ALLOWED
    where transformers refuses it. kind: the type of its value. words: our words and theirs.
    """

    name: str
    absent: Any = None
    null: Any = NOT_ALLOWED
    kind: type = int
    words: Mapping[Any, Any] | None = None

    def ours(self, content: Mapping[str, Any]) -> Any:
        """The value in our words; KeyRefused where it has none."""
        value = content.get(self.name, self.absent)
        if self.name in content and value is None:
            if self.null is NOT_ALLOWED:
                raise KeyRefused(self.name, None, f"it must be {CALLED[self.kind]}")
            value = self.null
        if value is None:
            return None
        return self.word(checked(self.name, value, self.kind))

    def word(self, value: Any) -> Any:
        """Our word for theirs."""
        if self.words is None:
            return value
        for ours, theirs in self.words.items():
            if value == theirs:
                return ours
        raise KeyRefused(self.name, value, f"one of {list(self.words.values())} is known here")

    def theirs(self, value: Any) -> Any:
        """The value in their words."""
        if self.words is None:
            return None if value == 0 and self.null == 0 and self.kind is int else value
        if value not in self.words:
            raise WeightsError(f"{self.name} has no word for {value!r}; it has one for {list(self.words)}")
        return self.words[value]


def checked(name: str, value: Any, kind: type) -> Any:
    """A value of a type; KeyRefused where it is of another. A flag is no number, and infinity none either."""
    fits = isinstance(value, KINDS[kind]) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not isfinite(value)):
        raise KeyRefused(name, value, f"it must be {CALLED[kind]}")
    return value


def taken(content: Mapping[str, Any], name: str, kind: type, absent: Any, null: Any = NOT_ALLOWED) -> Any:
    """The value of a key, as `Key` reads it."""
    return Key(name, absent, null, kind).ours(content)


@dataclass(frozen=True)
class Special:
    """Keys of config.json that make several fields of ours together, and both ways between them.

    keys: their names. ours: from config.json's content to our fields; KeyRefused where they cannot say it.
    theirs: from a model to their keys; WeightsError where these cannot say it. fields: ours -> the key that a
    message about it names.
    """

    keys: tuple[str, ...]
    ours: Callable[[Mapping[str, Any]], dict[str, Any]]
    theirs: Callable[[ModelConfig], dict[str, Any]]
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """A config.json, read: our fields, what each key was taken for, what was refused, what nobody knows."""

    values: dict[str, Any]
    recognised: dict[str, str]  # key -> "heads = 32", or what it says
    refused: list[KeyRefused]
    refused_weights: list[KeyRefused]  # what does not concern shapes, and keeps weights from being read
    harmless: list[str]
    unknown: list[str]


# Keys that every config.json may have and that change nothing here.
HARMLESS = (
    *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
    *("auto_map", "use_cache", "*_token_id", "id2label", "label2id", "problem_type", "return_dict"),
    *("output_*", "gradient_checkpointing", "pretraining_tp", "*dropout*", "*_pdrop", "summary_*"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "task_specific_params", "tokenizer_class"),
    *(
        "reorder_and_upcast_attn",
        "_attn_implementation*",
        "attn_implementation",
        "classifier_*",
        "num_labels",
    ),
)
# Keys that change what a model computes, in whatever family they stand: one value can be read.
FIXED_FOR_ALL: dict[str, Any] = {
    "partial_rotary_factor": (1.0, None),
    "original_max_position_embeddings": None,  # beside the dictionary of rotary positions
}
# Keys that change how tensors are stored: shapes can be read without them, weights cannot.
FOR_WEIGHTS: dict[str, str] = {"quantization_config": "quantised weights are not read here; shapes are"}
# Fields that say how a model is computed or trained, and nothing that config.json would have to say.
FREE = ("attention", "qkv", "dropout", "residual_init", "aux_loss", "z_loss")
# Fields that mean nothing unless another one has a value.
IDLE: tuple[tuple[str, Callable[[ModelConfig], bool]], ...] = (
    ("rope_", lambda config: config.position != "rope"),
    ("rope_trained", lambda config: config.rope_scaling not in ("yarn", "llama3")),
    ("rope_dim", lambda config: not config.kv_latent),
    ("relative_", lambda config: config.position != "relative"),
    ("top_k", lambda config: not config.experts),
    ("patch_size", lambda config: not config.patches),
)


@dataclass(frozen=True)
class Family:
    """One architecture: tables, and what is fixed in it."""

    model_type: str
    architecture: str
    base: str  # in front of the names of all but the head; a file of the bare model lacks it
    ends: Mapping[str, str]  # parts outside the layers, by full name
    layer: str  # in front of a layer's names
    # a layer's parts: ours without _weight and _bias, theirs without .weight and .bias; `expert.` is a part
    # of one expert, {} in its name the expert's number
    inside: Mapping[str, str]
    keys: Mapping[str, Key]  # fields of ModelConfig in config.json
    always: Mapping[str, Any]  # fields of ModelConfig that the family fixes
    fixed: Mapping[str, Any]  # keys of config.json that can have one value here, or one of a tuple's
    whole: Mapping[str, str] = field(default_factory=dict)  # a layer's parts by full name, theirs too
    said: Mapping[str, Any] = field(default_factory=dict)  # keys that are written and not read
    specials: tuple[Special, ...] = ()
    unread: Mapping[str, Any] = field(
        default_factory=dict
    )  # fields that a loaded model has, of any value saved
    notes: Mapping[str, str] = field(default_factory=dict)  # keys that need no field, and what they are
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names of keys
    forms: Mapping[str, Form] = field(default_factory=dict)  # a part's end, as "q_weight" -> how it lies
    unused: tuple[str, ...] = ()  # patterns of tensors that some files have and nobody needs
    renamed: Mapping[str, str] = field(default_factory=dict)  # ends of names in older files
    # names in a model in memory where these are not the file's: `inside` and `whole`
    stacked: Mapping[str, str] = field(default_factory=dict)
    beyond: Callable[[Mapping[str, Any]], tuple[str, ...]] = (
        lambda content: ()
    )  # more `unused`, by config.json

    # ---- tensors ---------------------------------------------------------------------------------------
    def name(self, part: str) -> str:
        """Their tensor that holds our part."""
        if part in self.ends:
            return self.ends[part]
        split = re.fullmatch(r"layers\.(\d+)\.(?:expert\.(\d+)\.)?(\w+)", part)
        if split is not None:
            layer, expert, rest = split.groups()
            where = self.layer.format(layer)
            if expert is None and rest in self.whole:
                return where + self.whole[rest]
            stem, _, kind = rest.rpartition("_")
            stem = stem if expert is None else f"expert.{stem}"
            if stem in self.inside and kind in ("weight", "bias"):
                return f"{where}{self.inside[stem].format(expert)}.{kind}"
        raise WeightsError(f"{self.model_type} has no place for {part}")

    def form(self, part: str) -> Form:
        """How a part lies in their tensor."""
        return self.forms.get(part if part in self.forms else part.rpartition(".")[2], PLAIN_FORM)

    @property
    def splits_experts(self) -> bool:
        """Whether each expert has tensors of its own."""
        return any(stem.startswith("expert.") for stem in self.inside)

    def in_memory(self) -> Family:
        """The same with the names of a model in memory, where experts lie stacked in one tensor."""
        if not self.stacked:
            return self
        inside = {k: v for k, v in self.inside.items() if not k.startswith("expert.")}
        moved = {k: v for k, v in self.stacked.items() if k in inside}
        rest = {k: v for k, v in self.stacked.items() if k not in inside}
        return replace(self, inside={**inside, **moved}, whole={**self.whole, **rest}, stacked={})

    # ---- config.json -> ours ---------------------------------------------------------------------------
    def read(self, content: Mapping[str, Any]) -> Reading:
        """Look at every key of config.json."""
        content = self.by_own_names(content)
        values: dict[str, Any] = {}
        recognised: dict[str, str] = {}
        refused: list[KeyRefused] = []
        for name, value in {**FIXED_FOR_ALL, **self.fixed}.items():
            known = value if isinstance(value, tuple) else (value,)
            given = content.get(name, known[0])
            if not any(given == v and isinstance(given, bool) == isinstance(v, bool) for v in known):
                only = " or ".join(map(repr, known))
                refused.append(KeyRefused(name, given, f"only {only} is known here"))
            elif name in content:
                recognised[name] = "as here"
        for ours, key in self.keys.items():
            try:
                values[ours] = key.ours(content)
                if ours in COUNTS and key.name in content and values[ours] == 0:
                    raise KeyRefused(key.name, 0, "it must be at least 1")
            except KeyRefused as problem:
                refused.append(problem)
                continue
            if key.name in content:
                recognised[key.name] = f"{ours} = {shown(values[ours])}"
            elif values[ours] is not None:  # else it follows from other keys
                recognised[key.name] = f"absent: {ours} = {shown(values[ours])}, as transformers has it"
        for special in self.specials:
            try:
                fields = special.ours(content)
            except KeyRefused as problem:
                refused.append(problem)
                at_fault = problem.key.partition("[")[0]
                others = [name for name in special.keys if name in content and name != at_fault]
                recognised |= dict.fromkeys(others, f"with {at_fault}, which is refused")
                continue
            values |= fields
            said = ", ".join(f"{ours} = {shown(value)}" for ours, value in fields.items())
            first, *others = [name for name in special.keys if name in content] or [""]
            recognised |= dict.fromkeys(others, f"with {first}") | ({first: said} if first else {})
        stored = [
            KeyRefused(k, content[k], why) for k, why in FOR_WEIGHTS.items() if content.get(k) is not None
        ]
        recognised |= {name: said for name, said in self.notes.items() if name in content}
        listed = set(recognised) | {problem.key.partition("[")[0] for problem in (*refused, *stored)}
        rest = sorted(set(content) - listed)
        harmless = [n for n in rest if n in self.said or any(fnmatch(n, p) for p in HARMLESS)]
        unknown = [n for n in rest if n not in harmless and content[n] is not None]
        return Reading(
            {**values, **self.unread, **self.always}, recognised, refused, stored, harmless, unknown
        )

    def by_own_names(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """config.json with the family's own names in place of their aliases."""
        own = {name: value for name, value in content.items() if name not in self.aliases}
        other = {self.aliases[name]: value for name, value in content.items() if name in self.aliases}
        return {**own, **other}

    def to_config(self, content: Mapping[str, Any], **overrides: Any) -> ModelConfig:
        """config.json as our model.

        Raises:
            KeyRefused: for a key whose value cannot be read: its name, its value, and why.
            InputError: for an override that is no value of its field, or contradicts the others.
        """
        reading = self.read(content)
        if reading.refused:
            raise reading.refused[0]
        return self.made(reading, content, overrides)

    def made(self, reading: Reading, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> ModelConfig:
        """The model of a reading. A mistake of config.json's is told by its own key."""
        try:
            config: ModelConfig = build(ModelConfig, {**reading.values, **overrides})
        except InputError as problem:
            field = problem.field
            if field in overrides or field == "options":
                raise
            if field in self.always:  # a rule of what the family fixes: broken by the size of a head
                field = "head_dim" if content.get("head_dim") is not None else "heads"
            key, there, value = self.said_as(field, content)
            value = value if there else reading.values.get(field, problem.value)
            near = "" if problem.nearest is None else f"; the nearest valid choice is {problem.nearest}"
            why = f"{problem.field} = {problem.value}: {problem.rule}{near}"
            raise KeyRefused(key, value, why if there else f"as it is absent: {why}") from None
        return config

    def said_as(self, ours: str, content: Mapping[str, Any]) -> tuple[str, bool, Any]:
        """The key of config.json that a field of ours comes from, whether it is there, and its value.

        A key inside a dictionary, as rope_scaling[factor], is looked for in each one that may have it.
        """
        said, key = self.by_own_names(content), self.key_of(ours)
        inner = key.partition("[")[2].removesuffix("]") or key
        for special in self.specials:
            for other in special.keys if key in special.fields.values() else ():
                if isinstance(said.get(other), Mapping) and inner in said[other]:
                    return f"{other}[{inner}]", True, said[other][inner]
        return key, key in said, said.get(key)

    def key_of(self, ours: str) -> str:
        """The key of config.json that a field of ours comes from."""
        if ours in self.keys:
            return self.keys[ours].name
        return next((s.fields[ours] for s in self.specials if ours in s.fields), ours)

    # ---- ours -> config.json ---------------------------------------------------------------------------
    def to_json(self, config: ModelConfig, dtype: str) -> dict[str, Any]:
        """Our model as config.json; WeightsError where it is none of this family."""
        for name, value in self.always.items():
            if getattr(config, name) != value:
                raise WeightsError(
                    f"{self.model_type} has {name} = {value}, this model {getattr(config, name)}"
                )
        written = {key.name: key.theirs(getattr(config, ours)) for ours, key in self.keys.items()}
        for special in self.specials:
            written |= special.theirs(config)
        fixed = {name: value[0] if isinstance(value, tuple) else value for name, value in self.fixed.items()}
        content = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": dtype,
            **self.said,
            **fixed,
            **written,
        }
        self.check_said(config, content)
        return content

    def check_said(self, config: ModelConfig, content: Mapping[str, Any]) -> None:
        """WeightsError where config.json reads as another model than the one that was written."""
        covered = {*self.keys, *(f for s in self.specials for f in s.fields)}
        if "kv_heads" not in covered and config.key_heads != config.heads:
            raise WeightsError(
                f"{self.model_type} has as many key heads as heads, this model {config.key_heads} of "
                f"{config.heads}"
            )
        try:
            again, mine = meant(self.to_config(content)), meant(config)
        except InputError as problem:
            raise WeightsError(f"{self.model_type}: {problem}") from None
        for name, value in mine.items():
            if not alike(again.get(name), value):
                raise WeightsError(f"{self.model_type} cannot say {name} = {value}")

    def tensors_passed_over(self, content: Mapping[str, Any]) -> tuple[str, ...]:
        """Patterns of tensors that a file may have and nobody needs."""
        return (*self.unused, *self.beyond(content))


def shown(value: Any) -> str:
    """A value in a line of text."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def meant(config: ModelConfig) -> dict[str, Any]:
    """The fields of a model that its logits depend on, with their values where None stands for one."""
    idle = tuple(start for start, is_idle in IDLE if is_idle(config))
    fields = {k: v for k, v in config.model_dump().items() if k not in FREE and not k.startswith(idle)}
    fields |= {"qkv_bias": config.biased_qkv, "ffn": config.width}
    if config.kv_latent:
        fields |= {"rope_dim": config.rotary, "qkv_bias": None}
    if config.experts:
        fields |= {"expert_ffn": config.expert_width, "router_normalised": config.normalises}
    if config.attention_scale is None:
        fields["attention_scale"] = config.score_dim**-0.5
    if config.rope_scaling == "yarn" and config.rope_attention_factor is None:
        fields["rope_attention_factor"] = 0.1 * log(config.rope_factor) + 1
    if config.rope_scaling in ("yarn", "llama3"):
        fields["rope_trained"] = config.rope_trained or max(1, round(config.seq / config.rope_factor))
    return fields


def alike(one: Any, other: Any) -> bool:
    """Equal; numbers with a fraction to the last digits."""
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=1e-12)
    return bool(one == other)


# What a plain model of today's families has not.
PLAIN: dict[str, Any] = {
    "norm_position": "pre",
    "qk_norm": False,
    "experts": 0,
    "objective": "causal",
    "prefix": 0,
    "kv_latent": 0,
}
